"""What merged folds say: numbers by hand, nothing known of a case's own fold, the same bytes again."""

import json
import weakref

import numpy as np
import pytest
from matplotlib.figure import Figure

from nnunet_calib import CaseStatistics, calibration_errors, cli
from nnunet_calib.figures import fold_figures as figures
from nnunet_calib.measuring.scopes import SCOPES
from nnunet_calib.metrics.errors import reliability_curve
from nnunet_calib.metrics.significance import mean_interval, percentile_interval, resampled_means, resampling_counts
from nnunet_calib.report.tables import crossval_table
from nnunet_calib.results import judged_cases as measured_cases
from nnunet_calib.results.crossval import ENSEMBLE_NOTE, merge_folds
from nnunet_calib.results.heads import Heads
from nnunet_calib.results.layout import case_file
from tests.worlds.measured_cases import assert_same_histograms
from tests.worlds.measured_folds import CROSSVAL, Model, fit_cases, made, three_folds
from tests.worlds.pictures import OF_MERGED_FOLDS


def merged(model, folds=(0, 1, 2), **options):
    """summary.json and temperature.json."""
    folder = merge_folds(model.model_folder, folds, **options)
    return tuple(json.loads((folder / name).read_text()) for name in ("summary.json", "temperature.json"))


def load(model, fold, name):
    """The statistics of a case."""
    return CaseStatistics.load(case_file(model.calibration(fold), name))


def all_cases(model):
    """Fold, name and statistics of all cases."""
    return [(fold, name, load(model, fold, name)) for fold, cases in model.cases.items() for name in cases]


def test_temperatures(model):
    """One for all cases, one for each fold, which is the fold's own, and one for the others of each fold."""
    summary, temperature = merged(model)
    cases = all_cases(model)
    fit = fit_cases([s for _, _, s in cases])
    assert temperature["temperature"] == summary["temperature"]["temperature"] == pytest.approx(fit.temperature)
    assert temperature["standard_error"] == pytest.approx(fit.standard_error, rel=3e-4)  # as near as it is computed
    assert (temperature["nll_before"], temperature["nll_after"]) == pytest.approx((fit.nll_before, fit.nll_after))
    assert temperature["folds"] == [0, 1, 2]
    assert temperature["cases"] == [f"case.{i}" for i in range(6)]
    assert temperature["in_sample"] is temperature["at_bound"] is False
    assert temperature["model"]["weights_sha256"] == {str(i): f"weights of {i}" for i in range(3)}
    for fold, row in enumerate(temperature["per_fold"]):
        own = json.loads((model.calibration(fold) / "temperature.json").read_text())
        assert {k: row[k] for k in ("temperature", "nll_before", "nll_after")} == pytest.approx(
            {k: own[k] for k in ("temperature", "nll_before", "nll_after")}
        )
        assert row["standard_error"] == pytest.approx(own["standard_error"], rel=3e-4)
        assert (row["fold"], row["cases"]) == (fold, 2)
        others = fit_cases([s for f, _, s in cases if f != fold])
        assert row["without_fold"]["temperature"] == pytest.approx(others.temperature)
    assert summary["temperature_per_fold"] == temperature["per_fold"]
    rising = [row["temperature"] for row in temperature["per_fold"]]
    assert rising == sorted(rising)


def test_errors(model):
    """Means over all cases of the errors of each; those with a temperature use the one of the other folds."""
    summary, _ = merged(model)
    without = [row["without_fold"]["temperature"] for row in summary["temperature_per_fold"]]
    rows = {(row["fold"], row["case"]): row for row in summary["metric_per_case"]}
    for when in ("uncalibrated", "calibrated"):
        errors = {scope: [] for scope in SCOPES}
        for fold, name, statistics in all_cases(model):
            assert rows[fold, name]["temperature"] == without[fold]
            assert rows[fold, name]["voxels"] == rows[fold, name]["kept_voxels"] == 9 * 9 * 6
            scaled = statistics.with_temperature(without[fold]) if when == "calibrated" else statistics
            for scope in SCOPES:
                errors[scope].append(calibration_errors(scaled, 20, scope))
            assert rows[fold, name][when]["image"]["nll"] == pytest.approx(float(errors["image"][-1]["nll"]))
        for scope in SCOPES:
            written, limits = (summary[kind][when][scope] for kind in ("metrics", "intervals"))
            assert written["definition"]["scope"] == limits["definition"]["scope"] == scope
            for metric in ("ece", "ace", "mce"):
                of_dark = [e[metric][2] for e in errors[scope]]
                assert written["per_class"]["2"][metric] == pytest.approx(np.mean(of_dark))
                assert limits["per_class"]["2"][metric] == pytest.approx(mean_interval(of_dark))
            nll = [float(e["nll"]) for e in errors[scope]]
            assert written["nll"] == pytest.approx(np.mean(nll))
            assert limits["nll"] == pytest.approx(mean_interval(nll))
    nll = [[row[when]["image"]["nll"] for row in rows.values()] for when in ("uncalibrated", "calibrated")]
    change = summary["intervals"]["change"]["image"]["nll"]
    assert change == pytest.approx(mean_interval(np.subtract(*nll[::-1])))
    assert change[1] < 0


def test_interval_of_a_mean_over_classes(model):
    """By hand: the mean over classes of each resample, without the resamples that draw no case of a class."""
    names = ("case.4", "case.5")
    model.write(2, {name: made(4 + i, 1.8, without=2 if i else None) for i, name in enumerate(names)})
    for fold in (0, 1):
        model.write(fold, {name: made(9 + int(name[-1]), without=2) for name in model.cases[fold]})
    summary, _ = merged(model)
    assert summary["metrics"]["uncalibrated"]["image"]["per_class"]["2"]["cases"] == 1
    limits = summary["intervals"]["uncalibrated"]["image"]
    assert limits["per_class"]["2"]["ace"] == [None, None]
    values = np.array([calibration_errors(s)["ace"] for _, _, s in all_cases(model)])
    counts = resampling_counts(6)
    means = [resampled_means(column, counts) for column in values.T]
    assert limits["foreground_mean"]["ace"] == pytest.approx(percentile_interval((means[1] + means[2]) / 2, 6))
    kept = counts[:, 4] > 0  # the only case with class 2
    assert np.isnan(means[2]).tolist() == (~kept).tolist()


def test_own_fold_does_not_calibrate(model):
    """However wild another case of the same fold, the temperature and the errors of a case stay to the last digit."""
    before, _ = merged(model)
    wild = model.cases[1]["case.3"]
    wild.labels[:] = wild.probabilities.argmin(0)
    model.write(1, model.cases[1])
    after, _ = merged(model)
    assert after["temperature"]["temperature"] > 1.05 * before["temperature"]["temperature"]
    pairs = list(zip(before["metric_per_case"], after["metric_per_case"], strict=True))
    assert [old["case"] for old, new in pairs if old == new] == ["case.2"]
    assert [old["case"] for old, new in pairs if old["temperature"] == new["temperature"]] == ["case.2", "case.3"]


def test_two_runs_write_the_same(model):
    """The same bytes, in whatever order the folds are named, and nothing else in the folder."""
    contents = []
    for folds in ((0, 1, 2), ("2", "0", "1")):
        folder = merge_folds(model.model_folder, folds)
        assert folder == model.folder / "crossval_results_folds_0_1_2" / "calibration"
        assert sorted(p.name for p in folder.iterdir()) == ["summary.json", "temperature.json"]
        contents.append([p.read_bytes() for p in sorted(folder.iterdir())])
    assert contents[0] == contents[1]


def test_without_splits(tmp_path):
    """Where the preprocessed data are gone, each fold says what it validated."""
    with_splits, without = three_folds(tmp_path / "a"), three_folds(tmp_path / "b", splits=False)
    assert merged(with_splits) == merged(without)


def test_some_folds(model):
    """Folds that are not named take no part, even where they are broken."""
    (model.calibration(1) / "summary.json").write_text("{")
    summary, temperature = merged(model, (0, 2))
    assert temperature["folds"] == [0, 2]
    assert [row["without_fold"]["temperature"] for row in summary["temperature_per_fold"]] == pytest.approx(
        [summary["temperature_per_fold"][other]["temperature"] for other in (1, 0)]
    )


def test_regions_and_a_case_without_a_voxel(tmp_path):
    """Regions merge like labels, and a case whose every voxel is ignored counts for nothing."""
    heads = Heads(("(1, 2, 3)", "(2, 3)", "3"), ("any", "inner", "core"), ((1, 2, 3), (2, 3), (3,)), 9)
    model = Model(tmp_path)
    for fold in range(2):
        model.write(fold, {f"case{fold}{i}": made(4 * fold + i, mode="regions+ignore") for i in range(2)}, heads)
    before = merged(model, (0, 1))[1]["temperature"]
    empty = made(9, mode="regions+ignore")
    empty.labels[:] = empty.ignore_label
    model.write(1, model.cases[1] | {"empty": empty}, heads)
    summary, temperature = merged(model, (0, 1))
    assert temperature["temperature"] == pytest.approx(before)
    assert summary["metric_per_case"][-1]["case"] == "empty"
    assert summary["metric_per_case"][-1]["calibrated"]["image"]["nll"] is None
    assert summary["heads"]["regions"] == [[1, 2, 3], [2, 3], [3]]


def test_thinned_cases(tmp_path):
    """Cases of which a sample was kept state the error of it; whole ones state none."""
    model = Model(tmp_path)
    for fold, options in enumerate(({"max_voxels": 300}, {})):
        model.write(fold, {f"case{fold}{i}": made(3 * fold + i, 1.5) for i in range(2)}, options=options)
    summary, _ = merged(model, (0, 1))
    assert [row["kept_voxels"] for row in summary["metric_per_case"]] == [300, 300, 486, 486]
    assert [row["voxels"] for row in summary["metric_per_case"]] == [486] * 4
    assert 0 < summary["sampling_error"]["image"]["nll"] < 0.1
    model.write(0, model.cases[0])
    assert merged(model, (0, 1))[0]["sampling_error"]["image"]["nll"] == 0


def test_command(model, capsys):
    """The dataset by its number: files, figures, and a table that says what T is not."""
    assert cli.main([*CROSSVAL, "-f", "0", "1", "2"]) == 0
    captured = capsys.readouterr()
    folder = model.folder / "crossval_results_folds_0_1_2" / "calibration"
    expected = [*OF_MERGED_FOLDS, "expected.json", "summary.json", "temperature.json"]
    assert sorted(p.name for p in folder.iterdir()) == sorted(expected)
    summary = json.loads((folder / "summary.json").read_text())
    lines = captured.out.splitlines()
    assert ENSEMBLE_NOTE in lines
    assert lines[-1] == str(folder)
    assert summary["temperature"]["note"] == ENSEMBLE_NOTE
    fold = summary["temperature_per_fold"][1]
    numbers = (fold["temperature"], fold["standard_error"], fold["without_fold"]["temperature"])
    assert lines[2].split() == ["1", "2", *(f"{number:.4f}" for number in numbers)]
    nll = [summary["metrics"][when]["image"]["nll"] for when in ("uncalibrated", "calibrated")]
    limits = [summary["intervals"][when]["image"]["nll"] for when in ("uncalibrated", "calibrated")]
    (line,) = (line for line in lines if line.startswith("NLL"))
    expected = [f"{value:.4f} {low:.4f} to {high:.4f}" for value, (low, high) in zip(nll, limits, strict=True)]
    assert line.split() == ["NLL", *" ".join(expected).split()]
    assert "reading cases" in captured.err


def test_no_figures(model):
    """Only numbers are written."""
    assert cli.main([*CROSSVAL, "-f", "0", "1", "--no-figures"]) == 0
    written = (model.folder / "crossval_results_folds_0_1" / "calibration").iterdir()
    assert {path.suffix for path in written} == {".json"}


def test_table_without_values(model):
    """What is not there is a dash; cases that were left out and temperatures on a bound are told."""
    summary, _ = merged(model)
    summary["metrics"]["calibrated"]["image"]["nll"] = None
    summary["intervals"]["calibrated"]["image"]["nll"] = [None, None]
    summary["missing_cases"] = ["case.8", "case.9"]
    summary["temperature_per_fold"][2]["at_bound"] = True
    lines = crossval_table(summary).splitlines()
    (line,) = (line for line in lines if line.startswith("NLL"))
    assert line.endswith("-                     - to -")
    assert "left out, not measured: case.8, case.9" in lines
    assert "T lies on the bound of the search, do not use it: 2" in lines


def test_memory(model, monkeypatch):
    """Cases beyond those that fit are read again where their voxels are needed: two are never in memory together."""
    monkeypatch.setattr(measured_cases, "_HELD_BYTES", 0)
    read, most = [], []

    def counted(path, **options):
        statistics = load_file(path, **options)
        read.append(weakref.ref(statistics.sample))
        most.append(sum(sample() is not None for sample in read))
        return statistics

    load_file = CaseStatistics.load
    monkeypatch.setattr(CaseStatistics, "load", counted)
    merged(model)
    assert len(most) > 4 * 6
    assert max(most) <= 2  # the last one is let go when the next has been read


def test_a_running_validation(model):
    """A fold that is validated again while folds are merged: its old summary beside files of its new network."""
    cases = model.cases[1]
    other = model.identity(1, weights_sha256="retrained")
    cases["case.2"].measure(case="case.2", model=other).save(case_file(model.calibration(1), "case.2"))
    summary, _ = merged(model, allow_missing=True)
    assert summary["missing_cases"] == ["case.2"]
    assert [row["case"] for row in summary["metric_per_case"]] == ["case.0", "case.1", "case.3", "case.4", "case.5"]


def test_class_that_no_case_has(tmp_path):
    """No interval of its own, and the mean over classes is that of the others."""
    model = Model(tmp_path)
    for fold in range(2):
        model.write(fold, {f"case{fold}{i}": made(4 * fold + i, without=2) for i in range(2)})
    image = merged(model, (0, 1))[0]["intervals"]["calibrated"]["image"]
    assert image["per_class"]["2"]["ace"] == [None, None]
    assert image["foreground_mean"]["ace"] == image["per_class"]["1"]["ace"]
    assert None not in image["foreground_mean"]["ace"]


def test_pictures(model, monkeypatch):
    """They are drawn from the cases of all folds, before and after the temperature of the other folds."""
    drawn = []
    monkeypatch.setattr(figures, "reliability_figure", lambda *arguments: drawn.append(arguments) or Figure())
    monkeypatch.setattr(figures, "save_figure", lambda draw, *_: draw())
    folder = merge_folds(model.model_folder, (0, 1, 2))
    figures.draw_fold(folder)
    summary = json.loads((folder / "summary.json").read_text())
    ((before, after, calibrator, _),) = drawn
    assert calibrator.to_json() == {"temperature": summary["temperature"]["temperature"]}
    statistics = [case for _, _, case in all_cases(model)]
    rows = zip(statistics, summary["metric_per_case"], strict=True)
    scaled = [case.with_temperature(row["temperature"]) for case, row in rows]
    for drawn_cases, expected in ((before, statistics), (after, scaled)):
        assert_same_histograms(drawn_cases.pooled.histograms, CaseStatistics.merge(expected).histograms)
        for curve, case in zip(drawn_cases.curves, expected, strict=True):
            np.testing.assert_array_equal(curve.counts, reliability_curve(case).counts)
            np.testing.assert_array_equal(curve.frequency, reliability_curve(case).frequency)

"""What a fold's files say, from statistics made here: no nnU-Net is run."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nnunet_calib import CaseStatistics, calibration_errors
from nnunet_calib.measuring.scopes import SCOPES
from nnunet_calib.report.fold_words import notes
from nnunet_calib.report.tables import summary_table
from nnunet_calib.results import judged_cases as measured_cases
from nnunet_calib.results.fold_summary import write_fold
from nnunet_calib.results.heads import Heads
from nnunet_calib.results.layout import case_file
from nnunet_calib.results.training_split import Split
from nnunet_calib.synthetic import synthetic_case
from tests.worlds.measured_cases import make_case
from tests.worlds.measured_folds import fit_cases

MODEL = {"weights_sha256": "ours", "fold": 0}
LABELS = Heads(("0", "1", "2"), ("background", "bright", "dark"), None, None)
REGIONS = Heads(("(1, 2, 3)", "(2, 3)", "3"), ("any", "inner", "core"), ((1, 2, 3), (2, 3), (3,)), None)
BINNED = ("ece", "ace", "mce", "ece_by_chance", "ace_by_chance")
PER_HEAD = (*BINNED, "ace_min_count", "adaptive_ece", "ks")
RANKINGS = ("aurc", "confidence_auroc", "entropy_auroc")
SCORES = (
    *("nll", "brier", *RANKINGS),
    *("brier_reliability", "brier_resolution", "brier_uncertainty", "brier_within_bin"),
)


def case(seed, mode="labels", without=None, shape=(9, 9, 6)):
    """A case of three heads; `without` is a label that background replaces."""
    made = make_case(mode, shape, seed=seed)
    if without is not None:
        made.labels[made.labels == without] = 0
    return made


def save(folder, cases, model=MODEL):
    """Measure cases by name into a calibration folder."""
    for name, made in cases.items():
        path = case_file(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        made.measure(case=name, model=model).save(path)


def strict(text):
    """Parse JSON, which knows no NaN."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def files(folder):
    """Both JSON files of a fold."""
    return (strict((folder / name).read_text(encoding="utf-8")) for name in ("summary.json", "temperature.json"))


def fold(folder, cases, heads=LABELS, model=MODEL):
    """Write a fold of these cases and read its files."""
    save(folder, cases, model)
    write_fold(folder, [*cases], heads, model)
    return files(folder)


def mean(values):
    """Mean of the numbers that are there; None, as in the files, for none."""
    finite = [v for v in values if not np.isnan(v)]
    return pytest.approx(np.mean(finite), rel=1e-12) if finite else None


def load(folder, name):
    """The statistics of a case."""
    return CaseStatistics.load(case_file(folder, name))


def errors_of(statistics, scope):
    """All errors that a fold's summary has."""
    errors = dict(calibration_errors(statistics, 20, scope))
    counted = calibration_errors(statistics, 20, scope, min_count=100)
    errors |= {f"{kind}ace_min_count": counted[f"{kind}ace"] for kind in ("", "top_label_")}
    for bins in (10, 15):
        other = calibration_errors(statistics, bins, scope)
        errors |= {f"top_label_{m}_{bins}": other[f"top_label_{m}"] for m in BINNED}
    return errors


@pytest.mark.parametrize("heads", [LABELS, REGIONS], ids=["labels", "regions"])
def test_values(tmp_path, heads):
    """Means over cases per class, then over classes: absent classes left out and counted, background no foreground."""
    mode = "labels" if heads is LABELS else "regions"
    absent = 2 if heads is LABELS else 3
    cases = {f"case.{i}": case(i, mode, absent if i == 1 else None, (12, 12, 9)) for i in range(3)}
    summary, temperature = fold(tmp_path, cases, heads)

    assert summary["heads"]["keys"] == [*heads.keys]
    assert summary["missing_cases"] == []
    assert [row["case"] for row in summary["metric_per_case"]] == temperature["cases"] == sorted(cases)
    assert summary["temperature"]["temperature"] == temperature["temperature"]
    assert temperature["nll_after"] < temperature["nll_before"]
    foreground = [*heads.keys][1 if heads is LABELS else 0 :]
    for name in ("uncalibrated", "calibrated"):
        measured = []
        for row in summary["metric_per_case"]:
            statistics = load(tmp_path, row["case"])
            if name == "calibrated":
                statistics = statistics.with_temperature(row["temperature"])
            measured.append({scope: errors_of(statistics, scope) for scope in SCOPES})
            of_case = row[name]["image"]["per_class"][heads.keys[1]]
            assert of_case == {m: pytest.approx(measured[-1]["image"][m][1]) for m in BINNED}
            assert row["voxels"] == row["kept_voxels"] == cases[row["case"]].labels.size
        for scope in SCOPES:
            written = summary["metrics"][name][scope]
            for i, key in enumerate(heads.keys):
                expected = {m: mean([errors[scope][m][i] for errors in measured]) for m in PER_HEAD}
                assert written["per_class"][key] == expected | {"cases": 2 if i == 2 else 3}
            for m in PER_HEAD:
                per_class = {k: np.nan if (v := written["per_class"][k][m]) is None else v for k in heads.keys}
                assert written["mean"][m] == mean(per_class.values())
                assert written["foreground_mean"][m] == mean([per_class[k] for k in foreground])
            assert written["top_label"] == {m: mean([e[scope][f"top_label_{m}"] for e in measured]) for m in PER_HEAD}
            for bins in (10, 15):
                expected = {m: mean([e[scope][f"top_label_{m}_{bins}"] for e in measured]) for m in BINNED}
                assert written[f"top_label_{bins}_bins"] == expected
            assert {m: written[m] for m in SCORES} == {m: mean([e[scope][m] for e in measured]) for m in SCORES}


def test_own_labels_do_not_calibrate_a_case(tmp_path):
    """A case's temperature comes from other cases: its own labels, however wild, cannot change it."""
    cases = {f"case{i}": case(i) for i in range(7)}
    before, fitted = fold(tmp_path / "a", cases)
    wild = cases["case0"]
    wild.labels[:] = wild.probabilities.argmin(0)
    after, refitted = fold(tmp_path / "b", cases)
    assert refitted["temperature"] > 1.05 * fitted["temperature"]
    pairs = zip(before["metric_per_case"], after["metric_per_case"], strict=True)
    same = [row["case"] for row, other in pairs if row["temperature"] == other["temperature"]]
    assert same == ["case0", "case5"]  # five groups: these two are fitted on the same other cases


def test_single_case(tmp_path):
    """Nothing else to fit on: no temperature of its own, and the fold's is used."""
    summary, temperature = fold(tmp_path, {"case0": case(0)})
    (row,) = summary["metric_per_case"]
    assert row["temperature"] is None
    calibrated = load(tmp_path, "case0").with_temperature(temperature["temperature"])
    assert row["calibrated"]["image"]["nll"] == pytest.approx(float(calibration_errors(calibrated)["nll"]))
    assert row["calibrated"]["image"]["nll"] < row["uncalibrated"]["image"]["nll"]


def test_missing_and_foreign_cases(tmp_path):
    """Cases without a file, or measured with other weights, are named and take no part."""
    ours = {f"case{i}": case(i) for i in range(2)}
    save(tmp_path / "a", {"case2": case(2)}, MODEL | {"weights_sha256": "theirs"})
    save(tmp_path / "a", ours)
    write_fold(tmp_path / "a", ["case3", "case2", *ours], LABELS, MODEL)
    summary, temperature = files(tmp_path / "a")
    assert summary["missing_cases"] == ["case2", "case3"]
    expected_summary, expected_temperature = fold(tmp_path / "b", ours)
    assert temperature == expected_temperature
    assert summary == expected_summary | {"missing_cases": ["case2", "case3"]}


@pytest.mark.parametrize(("number", "in_sample"), [(0, False), ("all", True)])
def test_in_sample(tmp_path, number, in_sample):
    """Fold "all" validates on what it trained on, and both files say so."""
    summary, temperature = fold(tmp_path, {f"case{i}": case(i) for i in range(2)}, model=MODEL | {"fold": number})
    assert temperature["in_sample"] is summary["temperature"]["in_sample"] is in_sample
    assert temperature["folds"] == [number]


@pytest.mark.parametrize("seen", [[], ["case1"], ["case0", "case1"]])
def test_training_cases(tmp_path, seen):
    """One case that the network was trained on is enough; both files, the table and the report say so."""
    cases = {f"case{i}": case(i) for i in range(2)}
    save(tmp_path, cases)
    written = write_fold(tmp_path, [*cases], LABELS, MODEL, split=Split.of(["other", *seen], cases))
    summary, temperature = files(tmp_path)
    assert temperature["in_sample"] is summary["temperature"]["in_sample"] is bool(seen)
    assert temperature["seen_in_training"] == seen
    assert summary["split"] == {"training": sorted([*seen, "other"]), "validation": ["case0", "case1"]}
    said = f"T was fitted on {len(seen)} case{'s' * (len(seen) > 1)} that the network was trained on: expect larger"
    for text in (summary_table(written), " ".join(notes(written))):
        assert (said in text) is bool(seen)


def test_trained_without_its_loss(tmp_path):
    """A loss that the training did without is named in the file, the table and the report."""
    model = MODEL | {"hyperparameters": {"nacl_weight": 0.01, "not_trained_with": ["NACLLoss"]}}
    summary, _ = fold(tmp_path, {f"case{i}": case(i) for i in range(2)}, model=model)
    said = "This network was trained without NACLLoss, at least in its last epochs, though its trainer promises it: "
    assert any(note.startswith(said) for note in summary["notes"])
    for text in (summary_table(summary), " ".join(notes(summary))):
        assert said in text


def test_class_that_no_case_has(tmp_path):
    """Null in the files, zero cases, and the means are over the other classes."""
    summary, _ = fold(tmp_path, {f"case{i}": case(i, without=2) for i in range(2)})
    image = summary["metrics"]["calibrated"]["image"]
    assert image["per_class"]["2"] == dict.fromkeys(PER_HEAD) | {"cases": 0}
    assert image["foreground_mean"]["ace"] == image["per_class"]["1"]["ace"] > 0


def test_case_without_a_voxel(tmp_path):
    """A case whose every voxel is ignored counts for nothing, and the fold is measured all the same."""
    empty = case(1, "labels+ignore")
    empty.labels[:] = empty.ignore_label
    cases = {"case0": case(0, "labels+ignore"), "case1": empty}
    summary, temperature = fold(tmp_path, cases, replace(LABELS, ignore_label=empty.ignore_label))
    _, alone = fold(tmp_path / "alone", {"case0": cases["case0"]}, replace(LABELS, ignore_label=empty.ignore_label))
    assert temperature["temperature"] == alone["temperature"]
    assert temperature["temperature"] == pytest.approx(fit_cases([load(tmp_path, "case0")]).temperature)
    assert [row["voxels"] for row in summary["metric_per_case"]][1] == 0


def test_no_case(tmp_path):
    """A sentence with the number of cases and the folder; nothing is written."""
    with pytest.raises(ValueError, match=rf"expected statistics of 2 cases in {tmp_path}, found none with a voxel"):
        write_fold(tmp_path, ["case0", "case1"], LABELS, MODEL)
    assert not [*tmp_path.iterdir()]


def test_repetition(tmp_path):
    """The same bytes again, in whatever order the cases are named; nothing else is left behind."""
    cases = [f"case{i}" for i in range(6)]
    save(tmp_path, {name: case(i) for i, name in enumerate(cases)})
    contents = []
    for order in (cases, cases[::-1]):
        write_fold(tmp_path, order, LABELS, MODEL)
        contents.append([(tmp_path / name).read_bytes() for name in ("summary.json", "temperature.json")])
    assert contents[0] == contents[1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cases", "summary.json", "temperature.json"]


def numbers(tree, path=()):
    """Places and values of all numbers of a part of summary.json."""
    for key, value in tree.items():
        if key not in ("definition", "cases"):
            yield from numbers(value, (*path, key)) if isinstance(value, dict) else [((*path, key), value)]


def thinned(folder, seeds=range(3), max_voxels=1500):
    """The summary of a fold of thinned synthetic cases, and that of the same cases with every voxel kept."""
    summaries = []
    for budget in (max_voxels, 10**6):
        for seed in seeds:
            made = synthetic_case(seed, (24, 24, 24))
            path = case_file(folder / str(budget), f"case{seed}")
            path.parent.mkdir(parents=True, exist_ok=True)
            p = made.probabilities**1.7  # over-confident
            CaseStatistics.from_probabilities(
                p / p.sum(0), made.labels, case=f"case{seed}", model=MODEL, max_voxels=budget
            ).save(path)
        write_fold(folder / str(budget), [f"case{seed}" for seed in seeds], LABELS, MODEL)
        summaries.append(strict((folder / str(budget) / "summary.json").read_text(encoding="utf-8")))
    return summaries


def test_sampling_error(tmp_path, monkeypatch):
    """The errors after temperature lie within three stated errors of those of all voxels, which state none."""
    monkeypatch.setattr(measured_cases, "cross_fitting_groups", lambda kept: [None] * len(kept))
    fit = measured_cases.fit_sets
    monkeypatch.setattr(
        measured_cases, "fit_sets", lambda *args: {k: replace(v, temperature=1.5) for k, v in fit(*args).items()}
    )
    sampled, whole = thinned(tmp_path)
    stated = dict(numbers(sampled["sampling_error"]))
    of_sample, of_all = (dict(numbers(s["metrics"]["calibrated"])) for s in (sampled, whole))
    assert stated.keys() == of_sample.keys()
    assert set(dict(numbers(whole["sampling_error"])).values()) <= {0, None}
    for place, error in stated.items():
        if "mce" not in place and "ace_min_count" not in place:  # one bin of few voxels decides these
            assert abs(of_sample[place] - of_all[place]) <= 3 * error, place
    assert 0 < stated["image", "nll"] < 0.1 * of_all["image", "nll"]


def test_definitions_beside_the_values(tmp_path):
    """Each scope says what its numbers depend on, and every name is explained."""
    summary, _ = fold(tmp_path, {f"case{i}": case(i) for i in range(2)})
    for tree in (*summary["metrics"].values(), summary["sampling_error"]):
        assert [tree[scope]["definition"]["scope"] for scope in tree] == [*SCOPES]
        assert tree["image"]["definition"]["bins"] == 20
        assert [tree[scope]["definition"].get("boundary_mm") for scope in tree] == [None, None, 2.0]
        for place, _value in numbers(tree):
            assert place[-1].removeprefix("brier_") in summary["definitions"]


def test_summary_that_another_part_has_removed(tmp_path, monkeypatch):
    """A file system of a network may name a file that is gone: the fold is written all the same."""
    cases = {"case0": case(0)}
    expected = [*fold(tmp_path, cases)]
    gone = tmp_path / "summary.json"
    gone.unlink()
    is_file = Path.is_file
    monkeypatch.setattr(Path, "is_file", lambda path: path == gone or is_file(path))
    write_fold(tmp_path, [*cases], LABELS, MODEL)
    monkeypatch.undo()
    assert [*files(tmp_path)] == expected

"""What a comparison says: numbers by hand and from merged folds, the same in every file, the same bytes again."""

import csv
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from nnunet_calib import cli
from nnunet_calib.metrics.catalogue import BY_CHANCE, RANKINGS
from nnunet_calib.metrics.significance import mean_interval, training_difference
from nnunet_calib.report.comparison_tables import COLUMNS, comparison_markdown, comparison_table
from nnunet_calib.results.comparison import QUANTITIES, compare_models
from nnunet_calib.results.crossval import merge_folds
from nnunet_calib.results.heads import Heads
from nnunet_calib.results.layout import ModelFolder, case_file, comparison_folder
from nnunet_calib.results.training_split import Split
from tests.worlds.compared_folds import COMPARE, DATASET, DICE, DICE_OTHER, OTHER, TRAINER, two_models, write_dice
from tests.worlds.measured_folds import Model, made


@pytest.fixture
def models(tmp_path, monkeypatch):
    """Two models with two folds of four cases each, and nnU-Net's variables for them."""
    made_here = two_models(tmp_path)
    for name, value in made_here[0].environment().items():
        monkeypatch.setenv(name, value)
    return made_here


def compared(models, folds=(0, 1), **options):
    """The content of comparison.json."""
    return compare_models([model.model_folder for model in models], folds, **options)


def find(comparison, metric, of=None, scope="image", stage="uncalibrated"):
    """The models of one group of results."""
    (group,) = (
        g for g in comparison["results"] if (g["metric"], g["of"], g["scope"], g["stage"]) == (metric, of, scope, stage)
    )
    return group["models"]


def test_dice_by_hand(models):
    """nnU-Net's own: the mean over classes of each case, the means, the mean difference and the test of the signs."""
    first, other = find(compared(models), "dice", "foreground_mean", stage="both")
    means = [np.array([np.mean(dice[f"case.{i}"]) for i in range(8)]) for dice in (DICE, DICE_OTHER)]
    assert (first["mean"], other["mean"]) == pytest.approx([m.mean() for m in means])
    assert first["interval"] == pytest.approx(mean_interval(means[0]))
    assert other["difference"] == pytest.approx(0.02)
    assert other["difference_interval"] == pytest.approx(mean_interval(means[1] - means[0]))
    assert other["difference_interval"][0] > 0
    assert (other["pairs"], other["cases"]) == (8, 8)
    # the only loss, of .01, shares ranks 2 and 3 with the gain of .01: of 256 signs 4 give a sum up to 2.5, and 4 the
    # same on the other side
    assert other["p"] == other["p_holm"] == pytest.approx(8 / 256)
    assert first["difference"] is first["p"] is first["p_holm"] is first["pairs"] is None


@pytest.mark.parametrize("stage", ["uncalibrated", "calibrated"])
def test_errors(models, stage):
    """Means are those of merged folds, where every case has every class; the surer model has the larger errors."""
    comparison = compared(models)
    summaries = [json.loads((merge_folds(m.model_folder, (0, 1)) / "summary.json").read_text()) for m in models]
    for metric, of, scope in QUANTITIES[1:]:
        rows = find(comparison, metric, of, scope, stage)
        for row, summary in zip(rows, summaries, strict=True):
            tree = summary["metrics"][stage][scope]
            assert row["mean"] == pytest.approx((tree[of] if of else tree)[metric])
            chance = BY_CHANCE.get(metric)
            assert row["by_chance"] == (chance and pytest.approx((tree[of] if of else tree)[chance]))
            for kind, name in (("pooled", "pooled"), ("pooled_intervals", "pooled_interval")):
                tree = summary[kind][stage][scope]
                if metric in RANKINGS:
                    assert row[name] is None
                else:
                    assert row[name] == pytest.approx((tree[of] if of else tree)[metric], nan_ok=True)
        assert rows[1]["difference"] == pytest.approx(rows[1]["mean"] - rows[0]["mean"])
        if metric not in RANKINGS:
            assert rows[1]["pooled_difference"] == pytest.approx(rows[1]["pooled"] - rows[0]["pooled"])
            low, high = rows[1]["pooled_difference_interval"]
            assert low <= rows[1]["pooled_difference"] <= high
    for row, summary in zip(find(comparison, "nll", stage=stage), summaries, strict=True):
        assert row["interval"] == pytest.approx(summary["intervals"][stage]["image"]["nll"])
    if stage == "uncalibrated":
        _, nll = find(comparison, "nll")
        assert nll["difference"] < nll["difference_interval"][1] < 0
        assert nll["p"] == nll["p_holm"] == pytest.approx(2 / 2**8)  # all eight differ in the same direction


def test_rows_of_cases(models):
    """Each case of each model, with the temperature of the other fold."""
    comparison = compared(models)
    rows = comparison["metric_per_case"]
    assert [(row["case"], row["model"]) for row in rows] == [
        (f"case.{i}", name) for i in range(8) for name in (TRAINER, OTHER)
    ]
    for model in models:
        summary = json.loads((merge_folds(model.model_folder, (0, 1)) / "summary.json").read_text())
        expected = {row["case"]: row for row in summary["metric_per_case"]}
        for row in rows:
            if row["model"] == model.named["trainer"]:
                for name in ("fold", "voxels", "temperature", "uncalibrated", "calibrated"):
                    assert row[name] == expected[row["case"]][name]
    (about, _) = comparison["models"]
    used = [row["temperature"] for row in rows if row["model"] == TRAINER]
    assert about["temperature"] == {"mean": pytest.approx(np.mean(used)), "min": min(used), "max": max(used)}
    assert about["weights_sha256"] == {"0": f"{TRAINER} of 0", "1": f"{TRAINER} of 1"}


def test_one_fold(models):
    """Each case with the temperature of the fold's own cross-fitting, as its summary.json has it; the notes say so."""
    comparison = compared(models, (1,))
    for model in models:
        summary = json.loads((model.calibration(1) / "summary.json").read_text())
        rows = [row for row in comparison["metric_per_case"] if row["model"] == model.named["trainer"]]
        assert [row["case"] for row in rows] == [f"case.{i}" for i in range(4, 8)]
        for row, expected in zip(rows, summary["metric_per_case"], strict=True):
            for name in ("voxels", "temperature", "uncalibrated", "calibrated"):
                assert row[name] == expected[name]
    assert "same fold (cross-fitting)" in comparison["notes"][0]
    assert "other cases of the same fold" in comparison["definitions"]["calibrated"]
    both = compared(models)
    assert not any("cross-fitting" in note for note in both["notes"])
    assert "the other folds" in both["definitions"]["calibrated"]


@pytest.fixture
def three_folds(tmp_path, monkeypatch):
    """Two models with three folds of two cases each."""
    made_here = two_models(tmp_path, folds=3, cases=2)
    for name, value in made_here[0].environment().items():
        monkeypatch.setenv(name, value)
    return made_here


def test_trainings_by_hand(three_folds):
    """Dice of the folds differs by 0, .025 and .045; the ratio is of the other folds, or of recorded splits."""
    for trained, ratio in ((None, 1 / 2), (8, 1 / 4)):
        for model in three_folds if trained else ():
            for fold, cases in model.cases.items():
                others = [f"other.{i}" for i in range(trained)]
                model.write(fold, cases, split=Split.of(others, cases))
        comparison = compared(three_folds, (0, 1, 2))
        assert comparison["test_to_train"] == pytest.approx(ratio)
        first, other = find(comparison, "dice", "foreground_mean", stage="both")
        error = np.sqrt((1 / 3 + ratio) * np.var([0, 0.025, 0.045], ddof=1))
        mean, width = 0.07 / 3, stats.t.ppf(0.975, 2) * error
        assert other["folds"] == 3
        assert other["difference_training_interval"] == pytest.approx([mean - width, mean + width])
        assert other["p_training"] == other["p_training_holm"] == pytest.approx(2 * stats.t.sf(mean / error, 2))
        for name in ("folds", "difference_training_interval", "p_training", "p_training_holm"):
            assert first[name] is None


def test_trainings_of_each_metric(three_folds):
    """Every metric and stage: from the rows of the cases, the means of each fold."""
    comparison = compared(three_folds, (0, 1, 2))
    rows = comparison["metric_per_case"]
    nll = {(row["model"], row["case"]): row["calibrated"]["foreground"]["nll"] for row in rows}
    folds = {row["case"]: row["fold"] for row in rows}
    differences = [
        np.mean([nll[OTHER, case] - nll[TRAINER, case] for case in folds if folds[case] == fold]) for fold in range(3)
    ]
    _, other = find(comparison, "nll", scope="foreground", stage="calibrated")
    expected = training_difference(differences, 1 / 2)
    assert other["difference_training_interval"] == pytest.approx([expected.low, expected.high])
    assert other["p_training"] == pytest.approx(expected.p)
    assert all(row["folds"] == 3 for group in comparison["results"] for row in group["models"][1:])


def test_trainings_are_said(three_folds):
    """In the table, the Markdown and the notes; of two folds it is said that chance between trainings is unknown."""
    comparison = compared(three_folds, (0, 1, 2))
    table = comparison_table(comparison)
    _, nll = find(comparison, "nll")
    low, high = nll["difference_training_interval"]
    for text in ("  trainings, from ", "  trainings, to ", "  p, trainings ", f"{low:+.4f}", f"{high:+.4f}"):
        assert text in table
    assert f"; trainings {low:+.4f} to {high:+.4f}, p " in comparison_markdown(comparison)
    assert "a difference is one of the methods only if both agree" in comparison["notes"][-1]
    for folds, named in (((0, 1), "these 2 folds"), ((1,), "this fold")):
        comparison = compared(three_folds, folds)
        assert comparison["notes"][-1].startswith(f"Chance between trainings cannot be told from {named}: ")
        assert "trainings, from" not in comparison_table(comparison)
        assert "; trainings" not in comparison_markdown(comparison)
        assert np.isnan(find(comparison, "nll")[1]["p_training_holm"])


def test_three_models(models, tmp_path):
    """Both others are compared with the first, and corrected together: the smaller p twice, the larger once."""
    third = Model(tmp_path, trainer=TRAINER, configuration="2d", weights="2d")
    for fold, cases in models[0].cases.items():
        third.write(fold, {name: made(int(name[-1]) + 20 * (int(name[-1]) % 3), 1.9) for name in cases})
        write_dice(third, fold, DICE)
    comparison = compared([*models, third])
    assert [m["name"] for m in comparison["models"]] == [
        f"{TRAINER}, 3d_fullres",
        f"{OTHER}, 3d_fullres",
        f"{TRAINER}, 2d",
    ]
    corrected = 0
    for group in comparison["results"]:
        _, a, b = group["models"]
        small, large = sorted((a["p"], b["p"]))
        assert sorted((a["p_holm"], b["p_holm"])) == pytest.approx([min(2 * small, 1), min(max(2 * small, large), 1)])
        corrected += a["p_holm"] != a["p"] and b["p_holm"] == b["p"]
    assert corrected
    dice = find(comparison, "dice", "foreground_mean", stage="both")[2]
    assert (dice["difference"], dice["p"], dice["difference_interval"]) == (0, 1, [0, 0])


def test_absent_class(models):
    """A case without a class is the mean over the others, of Dice too; where it has no class at all it has no pair."""
    for model in models:
        model.cases[0]["case.0"] = made(0, 1.5, without=2)
        model.write(0, model.cases[0])
    nan = float("nan")
    write_dice(models[0], 0, DICE | {"case.0": (0.5, nan), "case.1": (nan, nan)})
    write_dice(models[1], 0, DICE_OTHER | {"case.0": (0.75, 0.0), "case.1": (0.0, 0.0)})
    comparison = compared(models)
    first, other = find(comparison, "dice", "foreground_mean", stage="both")
    assert (first["cases"], other["cases"], other["pairs"]) == (7, 8, 7)
    of_cases = {(row["case"], row["model"]): row for row in comparison["metric_per_case"]}
    assert of_cases["case.0", TRAINER]["dice"] == 0.5
    assert of_cases["case.0", OTHER]["dice"] == 0.375
    gains = [-0.125, *(np.mean(DICE_OTHER[n]) - np.mean(DICE[n]) for n in [*DICE][2:])]
    assert other["difference"] == pytest.approx(np.mean(gains))
    assert any(note.startswith("Not every case has a value of dice") for note in comparison["notes"])
    ace = [of_cases[name, TRAINER]["uncalibrated"]["image"]["per_class"] for name in DICE]
    expected = [np.nanmean([classes[key]["ace"] for key in "12"]) for classes in ace]
    assert np.isnan(ace[0]["2"]["ace"])
    assert find(comparison, "ace", "foreground_mean")[0]["mean"] == pytest.approx(np.mean(expected))


def test_regions(tmp_path):
    """All regions are foreground, and Dice is found under the names that nnU-Net gives them."""
    keys = ("(1, 2, 3)", "(2, 3)", "3")
    heads = Heads(keys, ("any", "inner", "core"), ((1, 2, 3), (2, 3), (3,)), 9)
    models = [Model(tmp_path, trainer=trainer, weights=trainer) for trainer in (TRAINER, OTHER)]
    for i, model in enumerate(models):
        for fold in range(2):
            cases = {f"case.{2 * fold + k}": made(2 * fold + k, mode="regions+ignore") for k in range(2)}
            cases = {n: replace(c, probabilities=c.probabilities ** (1 + i)) for n, c in cases.items()}
            model.write(fold, cases, heads)
            write_dice(model, fold, {name: (0.9, 0.8, 0.4) for name in cases}, keys=keys, slash="\\")
    comparison = compared(models)
    assert find(comparison, "dice", "foreground_mean", stage="both")[0]["mean"] == pytest.approx(0.7)
    case = comparison["metric_per_case"][0]["uncalibrated"]["image"]["per_class"]
    values = [row["uncalibrated"]["image"]["per_class"] for row in comparison["metric_per_case"][::2]]
    assert [*case] == [*keys]
    expected = np.mean([[row[key]["ace"] for key in keys] for row in values])
    assert find(comparison, "ace", "foreground_mean")[0]["mean"] == pytest.approx(expected)


def test_shared_cases(models):
    """With --chill: those that all models have; the others are named with the model that lacks them."""
    case_file(models[1].calibration(1), "case.6").unlink()
    models[0].write(0, models[0].cases[0], also=("case.9",))
    models[0].write_splits()
    comparison = compared(models, allow_missing=True)
    assert comparison["cases"] == [f"case.{i}" for i in (0, 1, 2, 3, 4, 5, 7)]
    assert comparison["left_out"] == [
        {"case": "case.6", "missing_in": [OTHER]},
        {"case": "case.9", "missing_in": [TRAINER, OTHER]},
    ]
    assert {row["cases"] for group in comparison["results"] for row in group["models"]} == {7}


def test_files(models, capsys):
    """JSON, CSV and Markdown hold the same numbers; two runs write the same bytes, and the table is short."""
    arguments = [*COMPARE, "-f", "1", "0"]
    assert cli.main(arguments) == 0
    captured = capsys.readouterr()
    folder = (
        models[0].results
        / DATASET
        / "calibration_comparisons"
        / (f"{TRAINER}_vs_{OTHER}__nnUNetPlans__3d_fullres__folds_0_1")
    )
    assert captured.out.splitlines()[-1] == str(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(before) == [
        "comparison.csv",
        "comparison.json",
        "comparison.md",
        "dice_against_ace.pdf",
        "dice_against_ace.png",
        "dice_against_ace.svg",
        "logit_distributions.pdf",
        "logit_distributions.png",
        "logit_distributions.svg",
        "report.html",
    ]
    assert cli.main([*arguments, "-o", str(folder.parent / "again" / "here")]) == 0
    capsys.readouterr()
    assert {path.name: path.read_bytes() for path in (folder.parent / "again" / "here").iterdir()} == before

    comparison = json.loads(before["comparison.json"])
    lines = list(csv.DictReader(before["comparison.csv"].decode().splitlines()))
    assert [*lines[0]] == [*COLUMNS]
    rows = [(group, row) for group in comparison["results"] for row in group["models"]]
    assert len(lines) == len(rows) == (1 + 2 * (len(QUANTITIES) - 1)) * 2
    for line, (group, row) in zip(lines, rows, strict=True):
        for name in ("metric", "of", "scope", "stage"):
            assert line[name] == (group[name] or "")
        for name in ("model", "cases", "mean", "pairs", "difference", "p", "p_holm", "by_chance", "pooled"):
            assert line[name] == ("" if row[name] is None else str(row[name]))
        assert [float(line["mean_low"]), float(line["mean_high"])] == row["interval"]
        limits = row["difference_interval"] or ["", ""]
        assert [line["difference_low"], line["difference_high"]] == [str(limit) for limit in limits]
        limits = row["pooled_difference_interval"] or ["", ""]
        assert [line["pooled_difference_low"], line["pooled_difference_high"]] == [str(limit) for limit in limits]

    text = before["comparison.md"].decode()
    for metric, of, scope in QUANTITIES:
        for stage in ("both",) if metric == "dice" else ("uncalibrated", "calibrated"):
            first, other = find(comparison, metric, of, scope, stage)
            for row in (first, other):
                low, high = row["interval"]
                chance = "" if metric not in ("ece", "ace") else f"; by chance {row['by_chance']:.4f}"
                assert f"| {row['mean']:.4f} ({low:.4f} to {high:.4f}{chance}) |" in text
                if metric not in ("dice", *RANKINGS):
                    low, high = row["pooled_interval"]
                    assert f"| {row['pooled']:.4f} ({low:.4f} to {high:.4f}) |" in text
            low, high = other["difference_interval"]
            assert f"| {other['difference']:+.4f} ({low:+.4f} to {high:+.4f}), p = {other['p_holm']:.3f} |" in text
    assert "| model | temperature | Dice ↑ | ECE ↓ | ACE ↓ | MCE ↓ | NLL ↓ | Brier ↓ |" in text
    assert text.count("| model | temperature | AURC ↓ | AUROC of 1 - confidence ↑ | AUROC of entropy ↑ |") == 4

    shown = captured.out.splitlines()
    assert max(map(len, shown[2:-3])) < 110
    row = next(row for row in shown if row.startswith(TRAINER)).split()
    means = [find(comparison, "dice", "foreground_mean", stage="both")[0]["mean"]]
    means += [find(comparison, m, "foreground_mean")[0]["mean"] for m in ("ece", "ace", "mce")]
    means += [find(comparison, m)[0]["mean"] for m in ("nll", "brier")]
    assert row == [TRAINER, "1", *(f"{mean:.4f}" for mean in means)]
    pooled = next(row for row in shown if row.startswith("  pooled")).split()
    assert pooled[:3] == ["pooled", "-", f"{find(comparison, 'ece', 'foreground_mean')[0]['pooled']:.4f}"]
    assert "Dice " in captured.out
    assert shown[-2] == comparison["notes"][-1]


def test_decimals(models):
    """As many as show three digits of the largest value of a column, four at least, with its differences."""
    comparison = compared(models)
    rows = [find(comparison, "ece", "foreground_mean", stage=stage) for stage in ("uncalibrated", "calibrated")]
    for row in itertools.chain(*rows):
        row.update(mean=0.000123, interval=[0.0001, 0.0002])
        if row["pairs"]:
            row.update(difference=-0.0000123, difference_interval=[-0.00002, 0.0])
    for text in (comparison_table(comparison), comparison_markdown(comparison)):
        assert "0.000123" in text
        assert "-0.000012" in text
        assert "-0.000020" in text
        assert f"{find(comparison, 'nll')[0]['mean']:.4f}" in text.split()


def test_long_names(tmp_path):
    """A folder for any number of models: shortened, and still another one for other models."""
    folders = [
        ModelFolder.below(tmp_path, DATASET, f"nnUNetTrainerNACL_{i}epochs", "nnUNetPlans", "3d_fullres")
        for i in range(100, 120)
    ]
    one, two = (comparison_folder(some, (0, 1)).name for some in (folders, folders[:-1]))
    assert len(one) == len(two) == 200
    assert one != two
    assert comparison_folder(folders[:2], (0, 1)).name == (
        "nnUNetTrainerNACL_100epochs_vs_nnUNetTrainerNACL_101epochs__nnUNetPlans__3d_fullres__folds_0_1"
    )

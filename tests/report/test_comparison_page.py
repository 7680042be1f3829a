"""The page of a comparison says what comparison.json says."""

import csv
import json

import pytest

from nnunet_calib import CaseStatistics, cli
from nnunet_calib.metrics.log_odds import log_odds_counts
from nnunet_calib.report.comparison_page import comparison_sentences, write_comparison_page
from tests.report.test_fold_page import CHROMIUM, Page, check_print, csv_rows
from tests.worlds.compared_folds import COMPARE, OTHER, TRAINER, two_models

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # nnU-Net's imports


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """The folder that `nnunet_calib compare` writes."""
    root = tmp_path_factory.mktemp("compared")
    models = two_models(root)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in models[0].environment().items():
            patch.setenv(name, value)
        assert cli.main([*COMPARE, "-f", "0", "1", "-o", str(root / "out")]) == 0
    return root / "out"


def test_numbers(compared):
    """Means, differences, each case of each model, the figure, and the command that repeats it."""
    page = Page((compared / "report.html").read_text(encoding="utf-8"))
    comparison = json.loads((compared / "comparison.json").read_text())
    (ace,) = (
        group
        for group in comparison["results"]
        if (group["metric"], group["of"], group["scope"], group["stage"])
        == ("ace", "foreground_mean", "image", "uncalibrated")
    )
    header = next(row for row in page.rows if row[:2] == ["model", "temperature"])
    for numbers in ace["models"]:
        row = next(row for row in page.rows if row[:2] == [numbers["model"], "T = 1"])
        low, high = numbers["interval"]
        assert row[header.index("ACE ↓")] == (
            f"{numbers['mean']:.4f}({low:.4f} to {high:.4f}; by chance {numbers['by_chance']:.4f})"
        )
    (other,) = (numbers for numbers in ace["models"] if numbers["model"] == OTHER)
    differences = [row for row in page.rows if row[:2] == [OTHER, "T = 1"]][1]
    assert differences[header.index("ACE ↓")].startswith(f"{other['difference']:+.4f}(")
    for case in comparison["cases"]:
        row = next(row for row in page.rows if row[0] == case)
        of_case = {entry["model"]: entry for entry in comparison["metric_per_case"] if entry["case"] == case}
        assert row[2] == f"{of_case[TRAINER]['dice']:.3f}"
        assert row[5] == f"{of_case[OTHER]['dice']:.3f}"
    assert [source[:19] for source in page.sources] == ["data:image/svg+xml;"] * 2
    assert "Distributions of the logits." in page.text
    assert "nnunet_calib compare -d 4 -c 3d_fullres -tr" in page.text
    assert all(note in page.text for note in comparison["notes"])
    for _, sentences in comparison_sentences(comparison):
        assert all(sentence in page.text for sentence in sentences)


def test_csv(compared):
    """Each table as it is shown, and all numbers with every digit."""
    page = Page((compared / "report.html").read_text(encoding="utf-8"))
    with (compared / "comparison.csv").open() as file:
        assert csv_rows(page, "comparison.csv") == [*csv.DictReader(file)]
    shown = next(row for row in page.rows if row[:2] == [OTHER, "T = 1"])
    (row,) = (
        row for row in csv_rows(page, "whole_image_1.csv") if (row["model"], row["temperature"]) == (OTHER, "T = 1")
    )
    assert [value.replace(" (", "(") for value in row.values()] == shown
    comparison = json.loads((compared / "comparison.json").read_text())
    assert [row["case"] for row in csv_rows(page, "cases.csv")] == comparison["cases"]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_print(compared, tmp_path):
    """On A4 nothing is cut off."""
    check_print(compared / "report.html", tmp_path)


def test_log_odds(compared):
    """Of each class and model the share of the kept voxels of all cases by log-odds."""
    comparison = json.loads((compared / "comparison.json").read_text())
    found = comparison["log_odds"]
    for model in comparison["models"]:
        folder = compared.parent / "results" / model["dataset"] / f"{model['trainer']}__nnUNetPlans__3d_fullres"
        files = [next(folder.glob(f"fold_*/validation/calibration/cases/{case}.npz")) for case in comparison["cases"]]
        counts = log_odds_counts(CaseStatistics.merge(map(CaseStatistics.load, files)).sample)
        assert [*found["per_class"]] == [*found["names"]]
        for of, classes in zip(counts, found["per_class"].values(), strict=True):
            for side, values in zip(("outside", "inside"), of, strict=True):
                assert classes[model["name"]][side] == pytest.approx(values / values.sum(), rel=1e-4, abs=1e-12)


def test_sentences(compared):
    """Each model but the first: better, worse, or that nothing can be told, as the corrected p says."""
    comparison = json.loads((compared / "comparison.json").read_text())
    groups = {
        (group["metric"], group["stage"]): (group, group["models"][1])
        for group in comparison["results"]
        if group["scope"] == "image" and group["of"] in ("foreground_mean", None)
    }

    def said(metric, stage, difference, limits, p, trainings=((None, None), None)):
        group, row = groups[metric, stage]
        row |= {"difference": difference, "difference_interval": limits, "p_holm": p}
        row |= {"difference_training_interval": trainings[0], "p_training_holm": trainings[1]}
        ((model, sentences),) = comparison_sentences(comparison)
        assert model == OTHER
        assert len(sentences) == 5
        order = [key for m in ("dice", "ace", "nll") for key in groups if key[0] == m]
        return sentences[order.index((metric, group["stage"]))]

    dice = ("dice", "both", 0.02, [0.01, 0.03], 0.01)
    assert said(*dice).endswith(
        "Segmentation: on these networks better, the Dice is 0.0200 larger (0.0100 to 0.0300, p = 0.010); chance "
        "between trainings cannot be told from these folds."
    )
    assert said(*dice, ([0.002, 0.038], 0.04)).endswith(
        "Segmentation: better; the Dice is 0.0200 larger (0.0100 to 0.0300, p = 0.010; +0.0020 to +0.0380 over "
        "trainings, p = 0.040)."
    )
    assert said(*dice, ([-0.01, 0.05], 0.1)).endswith(
        "Segmentation: on these networks better, the Dice is 0.0200 larger (0.0100 to 0.0300, p = 0.010); other "
        "trainings may turn out otherwise (-0.0100 to +0.0500 over trainings, p = 0.100)."
    )
    assert "other trainings may turn out otherwise" in said(*dice, ([-0.05, -0.01], 0.01))  # folds of unlike sizes
    ace = ("ace", "uncalibrated", -0.02, [-0.03, -0.01], 1e-5)
    assert said(*ace, ([-0.03, -0.01], 1e-4)).endswith(
        "as trained: better; the ACE is 0.0200 smaller (0.0100 to 0.0300, p < 0.001; -0.0300 to -0.0100 over "
        "trainings, p < 0.001)."
    )
    nll = ("nll", "calibrated", 0.02, [0.01, 0.03], 0.049)
    assert "temperature: worse; the NLL is 0.0200 larger" in said(*nll, ([0.001, 0.039], 0.049))
    for trainings in ((None, None), None), ([0.001, 0.039], 0.001):  # the cases decide first
        text = said("ace", "calibrated", 0.01, [-0.01, 0.03], 0.3, trainings)
        assert "no difference in ACE can be told (-0.0100 to +0.0300" in text
    assert "too few cases" in said("nll", "uncalibrated", 0.01, [None, None], None)


def test_without_dice(compared, tmp_path):
    """Without nnU-Net's summary there is no figure of the Dice, which is missing in each row."""
    comparison = json.loads((compared / "comparison.json").read_text())
    for entry in comparison["metric_per_case"]:
        entry["dice"] = None
    for group in comparison["results"]:
        for row in group["models"] if group["metric"] == "dice" else ():
            row |= {"mean": None, "interval": [None, None]}
    write_comparison_page(comparison, tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert len(page.sources) == 1
    assert "Dice against ACE" not in page.text
    assert {row[2] for row in page.rows if row[0] in comparison["cases"]} == {"-"}

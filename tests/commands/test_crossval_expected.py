"""Expected volumes and Dice of `crossval`: numbers, table, figure and page."""

import json

import numpy as np
import pytest
from scipy.special import softmax

from nnunet_calib import CaseStatistics, cli
from nnunet_calib.decisions.expected_of_folds import read_expected
from nnunet_calib.figures.expected_figure import expected_figure
from nnunet_calib.figures.style import figure_bytes
from nnunet_calib.results.layout import EXPECTED_FILE, case_file
from tests.worlds.measured_folds import CROSSVAL


def write_dice(model) -> dict[str, float]:
    """nnU-Net's summary.json of each fold; the Dice of the structure 1 by case."""
    (model.folder / "dataset.json").write_text(json.dumps({"file_ending": ".nii.gz"}))
    dice = {name: (1 + i) / 10 for i, name in enumerate(name for cases in model.cases.values() for name in cases)}
    for fold, cases in model.cases.items():
        rows = [
            {
                "prediction_file": f"/somewhere/{name}.nii.gz",
                "metrics": {"1": {"Dice": dice[name]}, "2": {"Dice": float("nan")}},
            }
            for name in cases
        ]
        (model.calibration(fold).parent / "summary.json").write_text(json.dumps({"metric_per_case": rows}))
    return dice


def test_crossval(model, capsys):
    """Each case with the temperature of the other folds, from all of its voxels; the table, and the figure."""
    dice = write_dice(model)
    assert cli.main([*CROSSVAL, "-f", "0", "1", "2"]) == 0
    folder = model.model_folder.crossval([0, 1, 2])
    content, table = json.loads((folder / EXPECTED_FILE).read_text()), capsys.readouterr().out
    summary = json.loads((folder / "summary.json").read_text())
    temperatures = {row["case"]: row["temperature"] for row in summary["metric_per_case"]}
    assert [row["case"] for row in content["metric_per_case"]] == [*dice]
    for row in content["metric_per_case"]:
        case = CaseStatistics.load(case_file(model.calibration(row["fold"]), row["case"]))
        z, y = case.sample.logits.T.astype(np.float64), case.sample.labels
        for stage, t in (("uncalibrated", 1), ("calibrated", temperatures[row["case"]])):
            p, found, segmented = softmax(z / t, 0)[1], row["structures"]["1"][stage], z.argmax(0) == 1
            assert found["expected_voxels"] == pytest.approx(p.sum(), rel=1e-4)
            expected = 2 * p[segmented].sum() / (segmented.sum() + p.sum())
            assert found["expected_dice"] == pytest.approx(expected, rel=1e-4)
        assert row["structures"]["1"]["true_voxels"] == (y == 1).sum()
        assert row["structures"]["1"]["dice"] == dice[row["case"]]
        assert row["structures"]["2"]["dice"] is None
    of = content["dice"]["1"]
    expected = [row["structures"]["1"]["calibrated"]["expected_dice"] for row in content["metric_per_case"]]
    assert of["cases"] == 6
    assert of["calibrated"]["error"] == pytest.approx(np.mean(np.abs(np.array(expected) - [*dice.values()])))
    assert content["dice"]["2"]["cases"] == 0
    assert content["volumes"]["1"]["calibrated"]["low"] is None  # of six cases
    assert "1 bright" in table
    assert "cannot be judged here" in table
    assert (folder / "expected.png").is_file()
    names = {"1": "bright", "2": "dark"}
    (svg,) = figure_bytes(lambda: expected_figure(read_expected(folder), names), "svg").values()
    assert len(svg) > 10_000


def test_without_nnunets_dice(model):
    """The volumes are there all the same."""
    assert cli.main([*CROSSVAL, "-f", "0", "1", "2"]) == 0
    content = json.loads((model.model_folder.crossval([0, 1, 2]) / EXPECTED_FILE).read_text())
    assert content["dice"]["1"] | {"uncalibrated": 0, "calibrated": 0} == {
        "cases": 0,
        "dice": None,
        "uncalibrated": 0,
        "calibrated": 0,
    }
    assert content["volumes"]["1"]["calibrated"]["cases"] == 6

"""The tables and figures of the study, from a comparison made up here."""

import numpy as np
import pytest
from scipy import stats

from benchmarks.study.collect import comparable, swept
from benchmarks.study.figures import families, looks_of, reliability_figure, sweep_figure
from benchmarks.study.report import filled, trainings
from benchmarks.study.tables import (
    COLUMNS,
    bins_table,
    calibrator_differences_table,
    differences_table,
    folds_table,
    means_table,
    nll_table,
    sweep_differences_table,
    sweep_table,
    swept_value,
)
from nnunet_calib.results.schemas import STAGES


def comparison() -> dict:
    """Two models; each number tells metric, stage and model apart."""
    models = [
        {"name": "Calib", "hyperparameters": {}, "temperature": {"mean": 1.5}},
        {
            "name": "ML1ACE_w03",
            "temperature": {"mean": 1.25},
            "hyperparameters": {"ml1_ace_weight": 0.3, "ml1_ace_every_resolution": False},
        },
    ]
    results = []
    for i, (metric, of, _, _) in enumerate(COLUMNS):
        for j, stage in enumerate(("both",) if metric == "dice" else STAGES):
            for scope in ("foreground", "image"):
                base = (i + 1) / 100 + j / 1000 + (scope == "foreground")
                rows = [
                    {
                        "model": "Calib",
                        "mean": base,
                        "interval": [base - 0.001, base + 0.002],
                        "difference": None,
                        "difference_interval": None,
                        "p_holm": None,
                    },
                    {
                        "model": "ML1ACE_w03",
                        "mean": base / 2,
                        "interval": [None, None],
                        "difference": -base / 2,
                        "difference_interval": [-base, 0.0],
                        "p_holm": 0.0001 if i else 0.04,
                    },
                ]
                results.append({"metric": metric, "of": of, "scope": scope, "stage": stage, "models": rows})
    return {"first_model": "Calib", "models": models, "results": results, "folds": [0, 1], "cases": ["a", "b"]}


def test_means():
    """Numbers of the whole image with their intervals, of the stage asked for."""
    before, after = (means_table(comparison(), stage).splitlines() for stage in STAGES)
    assert before[0] == "| method | T | Dice | ECE | ACE | MCE | NLL | Brier |"
    assert before[2].startswith("| Calib | 1 | 0.010 (0.009 to 0.012) | 0.0200 (0.0190 to 0.0220) | 0.030 ")
    assert after[2].startswith("| Calib | 1.50 | 0.010 (0.009 to 0.012) | 0.0210 (0.0200 to 0.0230) | 0.031 ")
    assert "0.005 (- to -)" in before[3]


def test_trainings(tmp_path):
    """From the rows of the cases: by hand for Dice, and bold only where the tests over cases and trainings agree."""
    columns = ["model", "case", "fold", "dice"] + [f"{m}_{stage}" for m, *_ in COLUMNS[1:] for stage in STAGES]
    lines = [",".join(columns)]
    for fold, gains in enumerate([(-0.01, -0.03), (-0.02, -0.02), (-0.03, -0.03)]):
        for i, gain in enumerate(gains):
            for model, dice in (("Calib", 0.8 + 0.1 * i), ("ML1ACE_w03", 0.8 + 0.1 * i + gain)):
                others = [f"{0.5 + (-1) ** fold * gain * (model != 'Calib')}"] * (len(columns) - 4)
                lines.append(",".join([model, f"case{fold}{i}", f"{fold}", f"{dice}", *others]))
    (tmp_path / "cases.csv").write_text("\n".join(lines))
    methods = comparison() | {"folds": [0, 1, 2]}
    text = trainings(methods, tmp_path / "cases.csv", "uncalibrated")
    error = np.sqrt((1 / 3 + 1 / 4) * np.var([-0.02, -0.02, -0.03], ddof=1))
    low, high = (-0.07 / 3 + sign * 4.3026527 * error for sign in (-1, 1))
    p = f"{2 * stats.t.sf(0.07 / 3 / error, 2):.3f}".lstrip("0")
    (row,) = text.splitlines()[2:]
    cells = row.strip("| ").split(" | ")
    assert cells[:2] == ["ML1ACE_w03", f"**-0.023 ({low:+.3f} to {high:+.3f}), p {p}**"]
    assert len(cells) == 1 + len(COLUMNS)
    assert not any("**" in cell for cell in cells[2:])  # the folds do not agree
    known = trainings(methods | {"test_to_train": 1.0}, tmp_path / "cases.csv", "uncalibrated")
    assert "**" not in known
    few = trainings(comparison(), tmp_path / "none", "uncalibrated")
    assert few.startswith("Chance between trainings cannot be told from these 2 folds")


def test_differences():
    """Of all but the first, with interval and corrected p."""
    lines = differences_table(comparison(), "uncalibrated").splitlines()
    assert len(lines) == 3
    first, second = lines[2].split(" | ")[1:3]
    assert first == "-0.005 (-0.010 to +0.000), p .040"
    assert second == "-0.0100 (-0.0200 to +0.0000), p < .001"


def test_sweep():
    """What was set, and both stages beside each other."""
    lines = sweep_table(comparison()).splitlines()
    assert lines[3] == (
        "| ML1ACE_w03 | mL1-ACE 0.3, full resolution only | 0.005 | 0.0100 | 0.0105 | 0.015 | 0.015 | 0.0250 | 0.0255 "
        "| 1.25 |"
    )


def test_sweep_differences():
    """A row for each run but the first, with the intervals of the comparison."""
    head, _, row = sweep_differences_table(comparison()).splitlines()
    assert head == "| run | Dice | ECE | ECE, T | ACE | ACE, T | NLL | NLL, T |"
    assert row.startswith("| ML1ACE_w03 | -0.005 (-0.010 to +0.000) | -0.0100 (-0.0200 to +0.0000) | -0.0105 (")


def test_calibrator_differences():
    """The temperature against nothing, the others against the temperature; only vector scaling moves the Dice."""
    change = {"temperature": -0.2, "classwise": -0.25, "vector": -0.1}
    cases = []
    for number in range(20):
        row = {"model": "Calib", "dice": "0.5", "dice_vector": f"{0.5 + 0.01 * (number + 1)}"}
        for metric in ("ece", "ace", "nll"):
            row |= {f"{metric}_{kind}": f"{0.4 + 0.01 * number + by}" for kind, by in (("before", 0), *change.items())}
        cases.append(row)
    head, _, *rows = calibrator_differences_table(cases).splitlines()
    assert head == "| method | calibrator | Dice | ECE | ACE | NLL |"
    found = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    assert [row[1] for row in found] == ["T against -", "T by class against T", "w z + b against T"]
    means = [[float(cell.split(" (")[0]) for cell in row[2:]] for row in found]
    expected = [[0, -0.2, -0.2, -0.2], [0, -0.05, -0.05, -0.05], [0.105, 0.1, 0.1, 0.1]]
    assert np.array(means) == pytest.approx(np.array(expected), abs=1e-9)
    assert found[0][4] == "-0.200 (-0.200 to -0.200)"  # every case changes by the same, so no interval has a width
    low, high = (float(limit) for limit in found[2][2].partition("(")[2].rstrip(")").split(" to "))
    assert 0.07 < low < 0.105 < high < 0.14


def test_folds():
    """Differences from the baseline's run of the same fold; a run that is not there yet is a dash."""

    def run(method, fold, dice):
        image = {"foreground_mean": {"ace": dice / 10}, "nll": dice / 100}
        return {
            "run": {"method": method, "fold": fold},
            "dice": {"foreground_mean": dice},
            "calibration": {"uncalibrated": {"image": image}},
        }

    runs = [run("Calib", 0, 0.8), run("Calib", 1, 0.7), run("NACL", 1, 0.75)]
    lines = folds_table(runs, "Calib").splitlines()
    assert lines[2] == "| Calib | Dice | 0.800 | 0.700 |"
    assert lines[5] == "| NACL | Dice | - | +0.050 |"
    assert lines[6] == "| NACL | ACE | - | +0.005 |"


def test_nll():
    """The parts of borders and the rest add up to the NLL of all voxels."""
    curves = {
        "Calib": {
            STAGES[0]: {"nll": [30.0, 10.0], "voxels": [200, 800]},
            STAGES[1]: {"nll": [20.0, 15.0], "voxels": [200.0, 800.0]},
        }
    }
    assert nll_table(curves).splitlines()[2] == "| Calib | 0.0300 | 0.0100 | 0.0400 | 0.0200 | 0.0150 | 0.0350 |"


def test_bins():
    """Median and share, before and after."""
    curves = {"Calib": {STAGES[0]: {"of_bins": [3.0, 0.531]}, STAGES[1]: {"of_bins": [4.5, 0.4]}}}
    assert bins_table(curves).splitlines()[2] == "| Calib | 3 | 53 % | 4.5 | 40 % |"


def test_families():
    """Each method that was swept with its baseline, and pairs of runs with different seeds."""
    swept = ["Calib_seed", "NACL_w01", "NACL_probabilities", "DiceML1ACE_w1"]
    names = ["Calib", "NACL", "SVLS", "Dice", "DiceML1ACE", *swept]
    assert families(names) == {
        "NACL": ["Calib", "NACL", "NACL_w01", "NACL_probabilities"],
        "DiceML1ACE": ["Dice", "DiceML1ACE", "DiceML1ACE_w1"],
        "other seeds": ["Calib", "Calib_seed"],
    }
    assert families(["Calib", "NACL"]) == {}


def test_what_can_be_compared():
    """Methods with two folds on the folds they share; without a second method, or the baseline, nothing."""
    done = {"Calib": {0, 1, 2}, "ML1ACE": {0, 1}, "SVLS": {0}, "NACL_w003": {0}}
    assert comparable(done) == (["Calib", "ML1ACE"], [0, 1])
    assert comparable({"Calib": {0, 1}, "ML1ACE": {1, 2}}) == ([], [])
    assert comparable({"Calib": {0, 1}}) == ([], [])
    assert comparable({"ML1ACE": {0, 1}, "SVLS": {0, 1}}) == ([], [])
    assert swept(done) == ["Calib", "SVLS", "ML1ACE", "NACL_w003"]
    assert swept({"Calib": {1}, "SVLS": {0}}) == []


def test_markers():
    """A table replaces what stands between its markers, twice the same, and nothing else."""
    document = "a\n<!-- study: one -->\nold\n<!-- end -->\nb\n<!-- study: two -->\nkept\n<!-- end -->\n"
    new = filled(document, {"one": r"| \1 |"})
    assert new == document.replace("old", "\n| \\1 |\n")
    assert filled(new, {"one": r"| \1 |"}) == new
    with pytest.raises(ValueError, match="expected a marker <!-- study: three -->"):
        filled(document, {"three": ""})


def test_reliability_figure():
    """A panel for each method with a line for each stage, without the empty bins."""
    stage = {"counts": [4, 0, 2], "probability": [0.4, 0.0, 1.9], "positives": [1.0, 0.0, 2.0], "nll": [1.0, 1.0]}
    figure = reliability_figure(dict.fromkeys(("Calib", "NACL"), dict.fromkeys(STAGES, stage)), [0, 1])
    assert [ax.get_title() for ax in figure.axes] == ["Calib", "NACL"]
    for ax in figure.axes:
        _, *lines = ax.lines
        assert [line.get_label() for line in lines] == ["T = 1", "with temperature"]
        assert [line.get_xydata().tolist() for line in lines] == [[[0.1, 0.25], [0.95, 1.0]]] * 2


def sweep(hyperparameters: dict) -> dict:
    """A comparison of runs with these hyperparameters."""
    rows = [{"model": name, "mean": 0.1 + 0.01 * i, "interval": [None] * 2} for i, name in enumerate(hyperparameters)]
    common = {"of": "foreground_mean", "scope": "image", "models": rows}
    return {
        "models": [{"name": name, "hyperparameters": values} for name, values in hyperparameters.items()],
        "cases": ["a"],
        "results": [{"metric": "dice", "stage": "both", **common}]
        + [{"metric": "ace", "stage": stage, **common} for stage in STAGES],
    }


def test_sweep_figure():
    """A value looks the same in every panel, values are in rising order, and the legend lies below all panels."""
    runs = {
        "Calib": {},
        "NACL": {"nacl_weight": 0.1, "nacl_warmup_epochs": 10},
        "NACL_w1": {"nacl_weight": 1.0, "nacl_warmup_epochs": 10},
        "NACL_w03": {"nacl_weight": 0.3, "nacl_warmup_epochs": 0},
        "ML1ACE": {"ml1_ace_weight": 1.0, "ml1_ace_warmup_epochs": 10},
        "ML1ACE_w01": {"ml1_ace_weight": 0.1, "ml1_ace_warmup_epochs": 10},
        "ML1ACE_seed": {"ml1_ace_weight": 1.0, "ml1_ace_warmup_epochs": 10},
    }
    looks = looks_of(runs)
    assert [*looks] == [None, 0.1, 0.3, 1.0]
    assert len({look.marker for look in looks.values()}) == 4
    figure = sweep_figure(sweep(runs))
    panels = dict(zip((ax.get_title() for ax in figure.axes), figure.axes, strict=True))
    assert [*panels] == ["NACL: weight", "ML1ACE: weight", "other seeds"]
    for title, names in (
        ("NACL: weight", ("Calib", "NACL", "NACL_w1", "NACL_w03")),
        ("ML1ACE: weight", ("Calib", "ML1ACE", "ML1ACE_w01")),
        ("other seeds", ("ML1ACE", "ML1ACE_seed")),
    ):
        points = [line for line in panels[title].lines if len(line.get_xdata()) == 1]
        assert [line.get_markerfacecolor() == "white" for line in points] == [True, False] * len(names)
        assert [(line.get_color(), line.get_marker()) for line in points[::2]] == [
            looks[swept_value(runs[name])[1]] for name in names
        ]
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["Calib", "0.1", "0.3", "1", "T = 1", "with temperature", "whole from the start", "another seed"]
    figure.draw_without_rendering()
    below = legend.get_window_extent()
    assert below.y1 <= min(ax.get_tightbbox().y0 for ax in figure.axes)
    assert 0 <= below.x0 < below.x1 <= figure.bbox.x1

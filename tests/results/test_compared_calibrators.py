"""`crossval --calibrators`: calibrators judged by the other folds' cases, and the simplest that does."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from nnunet_calib.figures.fold_figures import FIGURES
from nnunet_calib.metrics.significance import resampling_counts
from nnunet_calib.posthoc import from_json
from nnunet_calib.posthoc.vector import Vector
from nnunet_calib.report.comparison_page import write_comparison_page
from nnunet_calib.report.comparison_tables import comparison_markdown, comparison_table
from nnunet_calib.report.fold_page import write_report
from nnunet_calib.report.tables import calibrators_table
from nnunet_calib.results.comparison import compare_models
from nnunet_calib.results.crossval import merge_folds, recommended, summary_with
from nnunet_calib.results.deployed_temperature import find_temperature, find_temperatures
from nnunet_calib.results.fold_summary import write_fold
from nnunet_calib.results.judged_cases import load_case
from tests.worlds.measured_folds import LABELS, Model, made

FOLDS = (0, 1, 2, 3)
KINDS = ["temperature", "classwise", "vector"]


def four_folds(root, factors, **named):
    """Folds of four cases, whose logits of each class were multiplied by a factor."""
    model = Model(root, **named)
    for fold in FOLDS:
        cases = {}
        for number in range(4 * fold, 4 * fold + 4):
            case = made(number)
            z = log_softmax(np.log(case.probabilities), axis=0)
            z = (z - z.mean(0)) * np.reshape(factors, (-1, 1, 1, 1))
            cases[f"case.{number:02}"] = replace(case, probabilities=softmax(z, axis=0).astype("float32"))
        model.write(fold, cases)
    return model


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A model whose classes need factors of their own, its folder, and its calibrators.json."""
    model = four_folds(tmp_path_factory.mktemp("model"), (0.5, 2.0, 4.0))
    folder = merge_folds(model.model_folder, FOLDS, calibrators=KINDS)
    return model, folder, json.loads((folder / "calibrators.json").read_text())


def test_out_of_fold(compared):
    """The errors are those of each case after the calibrator of the other folds."""
    model, _, content = compared
    for kind, entry in content["calibrators"].items():
        nll = []
        for fold in FOLDS:
            calibrator = from_json(entry["without_fold"][str(fold)])
            assert calibrator.kind == kind
            for name in model.cases[fold]:
                h = load_case(model.calibration(fold), name).with_temperature(calibrator).histograms
                nll.append(h.nll.sum() / h.voxels.sum())
        assert entry["metrics"]["image"]["nll"] == pytest.approx(np.mean(nll), rel=1e-9)
        low, high = entry["intervals"]["image"]["nll"]
        assert low < np.mean(nll) < high
        row = next(row for row in entry["differences"] if row["metric"] == "nll")
        expected = entry["metrics"]["image"]["nll"] - content["calibrators"]["temperature"]["metrics"]["image"]["nll"]
        assert row["difference"] == pytest.approx(expected, abs=1e-12)


def test_needed(compared):
    """Where classes need factors of their own, vector scaling is recommended; it alone changes the segmentation."""
    _, folder, content = compared
    assert [*content["calibrators"]] == KINDS
    assert content["recommended"] == "vector"
    vector = content["calibrators"]["vector"]
    assert vector["fit"]["take_temperature"] == []
    w = np.array(vector["fit"]["factors"])
    assert w[0] > w[1] > w[2]
    dice = {kind: entry["dice"] for kind, entry in content["calibrators"].items()}
    assert dice["temperature"]["before"] == dice["temperature"]["after"] == dice["classwise"]["after"]
    assert dice["vector"]["after"] > dice["vector"]["before"]
    table = calibrators_table(content)
    assert "recommended: vector" in table
    assert [line.split()[0] for line in table.splitlines()[1:4]] == KINDS
    assert content["folds"] == [*FOLDS]
    assert json.loads((folder / "temperature.json").read_text())["temperature"] == vector["fit"]["temperature"]


def test_deployed(compared):
    """`predict` and `bake` find a calibrator by its kind, with where it comes from; of others they tell the command."""
    model, folder, content = compared
    found = find_temperature(model.model_folder, [0, 2], kind="vector")
    assert found.calibrator == from_json(content["calibrators"]["vector"]["fit"])
    assert found.source == folder.relative_to(model.folder).joinpath("calibrators.json").as_posix()
    assert found.origin() == {"file": found.source, "folds": [*FOLDS], "cases": 16, "in_sample": False}
    found.check(model.model_folder, 0, "weights of 0")
    with pytest.raises(ValueError, match="found one of other weights"):
        found.check(model.model_folder, 0, "others")
    both = find_temperatures(model.model_folder, [0, 1], kind="classwise")
    assert [deployed.calibrator.kind for deployed in both] == ["classwise"] * 2
    assert find_temperature(model.model_folder, [0], kind="temperature").source.endswith("temperature.json")
    file = str(folder / "calibrators.json")
    assert find_temperature(model.model_folder, [0], file, "vector") == found
    assert found.describe() == f"{found.calibrator.words()}, fitted on 16 cases of folds 0 1 2 3: {found.source}"
    with pytest.raises(ValueError, match=r"expected --temperature with a calibrators.json for --calibrator vector"):
        find_temperature(model.model_folder, [0], "2", "vector")
    with pytest.raises(ValueError, match=r"fit one with nnunet_calib validate .* -f 7 --calibrator vector, or cross"):
        find_temperature(model.model_folder, [7], kind="vector")
    with pytest.raises(ValueError, match=r"fit one with nnunet_calib crossval .* -f 6 7 --calibrators vector"):
        find_temperature(model.model_folder, [6, 7], kind="vector")


def test_of_a_fold(compared, tmp_path):
    """A fold is judged by the kind it is written with, which one fold and several without merged ones deploy."""
    model = Model(tmp_path)
    for fold in (0, 1):
        model.write(fold, compared[0].cases[fold])
        write_fold(model.calibration(fold), [*model.cases[fold]], LABELS, model.identity(fold), kind="classwise")
    summary = json.loads((model.calibration(0) / "summary.json").read_text())
    fitted = json.loads((model.calibration(0) / "calibrators.json").read_text())["calibrators"]["classwise"]["fit"]
    assert from_json(summary["temperature"]) == from_json(fitted)
    assert {from_json(row).kind for row in summary["metric_per_case"]} == {"classwise"}
    assert find_temperature(model.model_folder, [0], kind="classwise").calibrator == from_json(fitted)
    both = find_temperatures(model.model_folder, [0, 1], kind="classwise")
    assert [deployed.source for deployed in both] == [
        f"fold_{i}/validation/calibration/calibrators.json" for i in (0, 1)
    ]
    assert summary_with(model.model_folder, [0], "classwise") is None
    with pytest.raises(ValueError, match=r"judge them with nnunet_calib validate .* -f 0 --calibrator vector"):
        summary_with(model.model_folder, [0], "vector")
    write_fold(model.calibration(0), [*model.cases[0]], LABELS, model.identity(0))
    assert not (model.calibration(0) / "calibrators.json").exists()


def test_report(compared, tmp_path, monkeypatch):
    """The page of merged folds has the out-of-fold errors that calibrators.json has, and names the calibrator."""
    model, folder, content = compared
    summary = summary_with(model.model_folder, FOLDS, "vector")
    of_kind = content["calibrators"]["vector"]
    for name in ("metrics", "intervals"):
        assert summary[name]["calibrated"] == of_kind[name]
    assert (
        summary["metrics"]["uncalibrated"]
        == json.loads((folder / "summary.json").read_text())["metrics"]["uncalibrated"]
    )
    assert [from_json(row) for row in summary["metric_per_case"]] == [
        from_json(of_kind["without_fold"][str(fold)]) for fold in FOLDS for _ in range(4)
    ]
    monkeypatch.setattr("nnunet_calib.report.fold_page.FIGURES", FIGURES[4:5])
    write_report(folder, tmp_path / "report.html", image_of=lambda case: None, summary=summary)
    page = (tmp_path / "report.html").read_text()
    assert "with vector scaling" in page
    assert f"{from_json(of_kind['fit']).words('.3f')}: w z + b of its logits gives" in page
    assert FIGURES[4].caption.format(effect=Vector.effect) in page
    assert "with temperature" not in page
    assert summary_with(model.model_folder, FOLDS, "temperature") is None


def test_report_refused(tmp_path):
    """Without the kind, or when the folds are no longer those that it was fitted to."""
    model = Model(tmp_path)
    for fold in (0, 1):
        model.write(fold, {f"case.{fold}": made(fold)})
    folder = merge_folds(model.model_folder, [0, 1], calibrators=["classwise"])
    with pytest.raises(
        ValueError, match=r"expected .* kind vector in .*, found none: fit it with .* --calibrators vec"
    ):
        summary_with(model.model_folder, [0, 1], "vector")
    model.write(1, {"case.1": made(1)}, weights_sha256="others")
    with pytest.raises(ValueError, match=r"expected the cases and networks that .* was made of, found others: make"):
        summary_with(model.model_folder, [0, 1], "classwise")
    (folder / "calibrators.json").unlink()
    with pytest.raises(ValueError, match=r"expected .* kind classwise in .*, found none"):
        summary_with(model.model_folder, [0, 1], "classwise")


def test_compared_models(compared, tmp_path):
    """Models are compared after the calibrator of their other folds, with the numbers that calibrators.json has."""
    model, _, content = compared
    other = four_folds(tmp_path, (1.0, 2.0, 2.0), trainer="nnUNetTrainerNACL", weights="other")
    found = compare_models([model.model_folder, other.model_folder], FOLDS, kind="vector")
    (nll,) = (
        group
        for group in found["results"]
        if (group["metric"], group["scope"], group["stage"]) == ("nll", "image", "calibrated")
    )
    of_kind = content["calibrators"]["vector"]
    assert nll["models"][0]["mean"] == pytest.approx(of_kind["metrics"]["image"]["nll"], rel=1e-12)
    assert found["models"][0]["estimated_dice"] == pytest.approx(of_kind["dice"], rel=1e-12)
    assert {row["kind"] for row in found["metric_per_case"]} == {"vector"}
    assert "the vector scaling of the other folds" in found["definitions"]["calibrated"]
    assert f"{of_kind['dice']['before']:.4f} before it" in " ".join(found["notes"])
    table = comparison_table(found)
    assert table.splitlines()[2].split()[2:6] == ["w", "z", "+", "b"]
    rows = [line.split() for line in table.splitlines() if line.startswith("nnUNetTrainer")]
    assert [row[1] for row in rows[:4]] == ["before", "after"] * 2
    write_comparison_page(found, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "ACE, nnUNetTrainerNACL, w z + b" in page
    assert "each model with its vector scaling" in page
    assert "temperature" not in comparison_markdown(found).split("# Whole image")[1].split("Whole image, top")[0]


def test_not_needed(tmp_path):
    """Where one temperature is right, it is recommended."""
    folder = merge_folds(four_folds(tmp_path, (2.0,) * 3).model_folder, FOLDS, calibrators=["classwise", "vector"])
    content = json.loads((folder / "calibrators.json").read_text())
    assert [*content["calibrators"]] == KINDS
    assert content["recommended"] == "temperature"


def test_other_numbers(tmp_path):
    """Without the option no file is written; that of other numbers goes with them."""
    model = four_folds(tmp_path, (2.0,) * 3)
    folder = merge_folds(model.model_folder, FOLDS, calibrators=["temperature"])
    merge_folds(model.model_folder, FOLDS)
    assert (folder / "calibrators.json").is_file()
    model.write(3, {"case.15": made(7)}, weights_sha256="others")
    merge_folds(model.model_folder, FOLDS)
    assert not (folder / "calibrators.json").exists()
    with pytest.raises(
        ValueError, match="expected kinds of calibrators among temperature, classwise, vector, got platt"
    ):
        merge_folds(model.model_folder, FOLDS, calibrators=["platt"])


def test_recommended():
    """The first kind that is not worse than the best one."""
    rng = np.random.default_rng(0)
    counts = resampling_counts(12)
    base = rng.random(12)
    assert recommended({"a": base, "b": base - 0.1, "c": base - 0.1 + 1e-3 * rng.normal(size=12)}, counts) == "b"
    assert recommended({"a": base, "b": base + 0.1}, counts) == "a"
    assert recommended({"a": base, "b": base}, counts) == "a"

"""`crossval --calibrators`: calibrators judged by the other folds' cases, and the simplest that does."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from nnunet_calib.metrics.significance import resampling_counts
from nnunet_calib.posthoc import from_json
from nnunet_calib.report.tables import calibrators_table
from nnunet_calib.results.crossval import merge_folds, recommended
from nnunet_calib.results.deployed_temperature import find_temperature, find_temperatures
from nnunet_calib.results.judged_cases import load_case
from tests.worlds.measured_folds import Model, made

FOLDS = (0, 1, 2, 3)
KINDS = ["temperature", "classwise", "vector"]


def four_folds(root, factors):
    """Folds of four cases, whose logits of each class were multiplied by a factor."""
    model = Model(root)
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
    with pytest.raises(ValueError, match=r"expected --calibrator or --temperature, got vector and 2"):
        find_temperature(model.model_folder, [0], "2", "vector")
    with pytest.raises(ValueError, match=r"fit one with nnunet_calib crossval .* -f 7 --calibrators vector"):
        find_temperature(model.model_folder, [7], kind="vector")


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

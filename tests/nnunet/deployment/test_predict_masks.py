"""`predict --masks`: the masks that keep the promises of a thresholds.json."""

import json

import numpy as np
import pytest

from nnunet_calib import cli
from nnunet_calib.results.heads import Heads
from tests.worlds.command_line import sentence
from tests.worlds.maps import assert_same_geometry, read
from tests.worlds.predicting import MARKS, change_json
from tests.worlds.promises import promised

pytestmark = MARKS


def write_thresholds(deployed, folds=(0,), thresholds=(0.6, 0.3)):
    """A thresholds.json of these folds, whose second structure has no second threshold; the heads."""
    summary = json.loads((deployed.folder / "fold_0" / "validation" / "calibration" / "summary.json").read_text())
    heads = Heads.of_summary(summary["heads"])
    model = {name: summary["model"][name] for name in ("dataset", "trainer", "plans", "configuration")}
    model["weights_sha256"] = {
        str(fold): json.loads(deployed.temperature_file(fold).read_text())["model"]["weights_sha256"] for fold in folds
    }
    first, second = heads.foreground
    content = promised(summary["heads"], {first: thresholds, second: (thresholds[0], None)}, model)
    file = deployed.root / "thresholds.json"
    file.write_text(json.dumps(content))
    return file, heads


@pytest.mark.parametrize("world", ["labels", "regions"], indirect=True)
def test_masks(deployed, capsys):
    """Of the uncalibrated probabilities of nnU-Net's ensemble, whatever temperature each fold has; nested."""
    deployed.add_fold()
    deployed.set_temperature(0.7, 1)
    _, heads = write_thresholds(deployed, (0, 1))
    first, second = (heads.keys.index(key) for key in heads.foreground)
    _, probabilities = deployed.reference(folds=(0, 1))
    # whatever the training has learned, they tell the voxels of an image apart
    low, high = np.quantile(probabilities["case.1"][first], (0.5, 0.9)).tolist()
    file, _ = write_thresholds(deployed, (0, 1), (high, low))
    folder = deployed.predict("-f", "0", "1", "--masks", str(file))
    said = capsys.readouterr().err
    assert said.count("no mask, since the file has no threshold for it: recall 0.95 of ") == 1
    about = json.loads((folder / "masks" / "masks.json").read_text())
    assert about["promise"] == "A promise."
    assert [level["level"] for level in about["levels"]] == [0.8, 0.95]
    expected = {("recall_0.8", first): high, ("recall_0.95", first): low, ("recall_0.8", second): high}
    assert len([*(folder / "masks").rglob("*.nii.gz")]) == len(expected) * len(probabilities)
    for name, p in probabilities.items():
        masks = {}
        for (level, head), threshold in expected.items():
            path = folder / "masks" / level / about["folders"][head] / f"{name}.nii.gz"
            assert_same_geometry(path, deployed.images / f"{name}_0000.nii.gz")
            masks[level, head] = read(path)
            assert masks[level, head].dtype == np.uint8
            near = np.abs(p[head] - threshold) < 1e-6
            np.testing.assert_array_equal(masks[level, head][~near], (p[head] >= threshold)[~near])
        inner, outer = masks["recall_0.8", first], masks["recall_0.95", first]
        assert (outer >= inner).all()
        assert outer.sum() > inner.sum() or name != "case.1"


def test_continued(deployed):
    """A case without one of its masks is predicted again; a folder of other thresholds is refused."""
    file, _ = write_thresholds(deployed)
    folder = deployed.predict("--masks", str(file))
    mask = next((folder / "masks").rglob("case.1.nii.gz"))
    other = folder / "case.2.nii.gz"
    content, time = mask.read_bytes(), other.stat().st_mtime_ns
    mask.unlink()
    deployed.predict("--masks", str(file), "--continue_prediction")
    assert mask.read_bytes() == content
    assert other.stat().st_mtime_ns == time
    write_thresholds(deployed, thresholds=(0.5, 0.3))
    assert cli.main(deployed.command("--masks", str(file), "--continue_prediction")) == 2


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ({"trainer": "nnUNetTrainerNACL"}, "thresholds of trainer nnUNetTrainerCalib_short, found those of nnUNetTr"),
        ({"weights_sha256": {"0": "other"}}, "of the weights in this checkpoint of fold 0, found those of other wei"),
        ({"weights_sha256": {"3": "other"}}, "thresholds of fold 0, found those of folds 3 in"),
    ],
    ids=["trainer", "weights", "fold"],
)
def test_of_another_model(deployed, capsys, model, text):
    """Refused before anything is written."""
    file, _ = write_thresholds(deployed, folds=())
    change_json(file, model=json.loads(file.read_text())["model"] | {"weights_sha256": None} | model)
    assert cli.main(deployed.command("--masks", str(file))) == 2
    assert text in sentence(capsys.readouterr().err.splitlines()[-1])
    assert not (deployed.root / "predicted").exists()

"""What `predict` refuses, each in one sentence and before anything is written; and which temperature it takes."""

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_calib import cli
from nnunet_calib.results.deployed_temperature import find_temperatures
from tests.nnunet.deployment.test_bake import SinglePrecision
from tests.worlds.command_line import sentence
from tests.worlds.maps import read_maps
from tests.worlds.measured_folds import three_folds
from tests.worlds.predicting import MARKS, TRAINER, change_json

pytestmark = MARKS
CASES = ("case.1", "case.2")


def change_checkpoint(deployed, **changes: object) -> None:
    file = deployed.folder / "fold_0" / "checkpoint_final.pth"
    torch.save(torch.load(file, weights_only=False) | changes, file)


def other_weights(deployed) -> None:
    file = deployed.folder / "fold_0" / "checkpoint_final.pth"
    weights = torch.load(file, weights_only=False)["network_weights"]
    change_checkpoint(deployed, network_weights={name: tensor + 1 for name, tensor in weights.items()})


REFUSALS = {
    "baked": (
        lambda t: change_checkpoint(t, nnunet_calib={"temperature": 1.8}),
        (),
        "found checkpoint_final.pth with one in its weights: use them as they are with --temperature 1, or name the",
    ),
    "other weights": (other_weights, (), "found one of other weights in fold_0/validation/calibration/"),
    "no temperature": (lambda t: t.temperature_file().unlink(), (), "of fold 0 of"),
    "at bound": (
        lambda t: change_json(t.temperature_file(), at_bound=True),
        (),
        "a temperature that the data determine",
    ),
    "in sample": (
        lambda t: change_json(t.temperature_file(), in_sample=True),
        (),
        "fitted on cases the model was not trained on",
    ),
    "no number": (lambda t: None, ("--temperature", "-1"), "expected a temperature above 0"),
    "no checkpoint": (lambda t: None, ("-f", "3"), "expected nnU-Net's checkpoint"),
    "no images": (
        lambda t: [p.unlink() for p in t.images.iterdir()],
        (),
        "images that end with _0000.nii.gz, found none",
    ),
    "no folder": (lambda t: None, ("-i", "/nowhere"), "found none in /nowhere: name their folder with -i"),
    "no trainer": (
        lambda t: change_checkpoint(t, trainer_name="nnUNetTrainerNone"),
        (),
        "expected a model that nnU-Net can load",
    ),
    "part": (lambda t: None, ("-num_parts", "2", "-part_id", "2"), "expected -part_id from 0 to 1 with -num_parts 2"),
    "step": (lambda t: None, ("-step_size", "1.5"), "expected -step_size above 0 and at most 1, got 1.5"),
    "GPU": (lambda t: None, ("-device", "cuda"), "expected a CUDA device to predict with, found none: predict with"),
    "one fold": (lambda t: None, ("--maps", "variance"), "expected several folds for --maps variance, got fold 0"),
    "processes": (lambda t: None, ("-npp", "0", "-nps", "2"), "expected -npp and -nps of at least 1, or 0 for both"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(deployed, capsys, name):
    """Nothing is written."""
    change, options, text = REFUSALS[name]
    if name == "GPU" and torch.cuda.is_available():
        pytest.skip("there is one")
    change(deployed)
    assert cli.main(deployed.command(*options)) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert text in sentence(last)
    assert not (deployed.root / "predicted").exists()


def test_baked(deployed, capsys, monkeypatch):
    """A temperature is not applied twice: what `bake` has written gives the maps of the original with temperature.

    With tiles added up in float32: in nnU-Net's half precision the edges of so small an image are coarse.
    """
    monkeypatch.setattr("nnunetv2.inference.predict_from_raw_data.torch", SinglePrecision())
    model = ["-d", str(deployed.world.dataset_id), "-c", "3d_fullres", "-tr", TRAINER]
    assert cli.main(["bake", *model, "-f", "0"]) == 0
    baked = ("-chk", "checkpoint_calibrated.pth")
    assert cli.main(deployed.command(*baked)) == 2
    assert "found checkpoint_calibrated.pth with one in its weights" in capsys.readouterr().err.splitlines()[-1]
    folders = deployed.predict(output="original"), deployed.predict(*baked, "--temperature", "1")
    assert json.loads((folders[1] / "maps" / "maps.json").read_text())["temperature"] == {"0": 1.0}
    for case in CASES:
        original, of_baked = (read_maps(folder / "maps", "probabilities", case) for folder in folders)
        assert np.quantile(np.abs(of_baked - original), 0.98) < 2e-3


def test_nnunet_stops(deployed, capsys):
    """A damaged image, which stops nnU-Net's worker, is one sentence after the worker's own words."""
    (deployed.images / "case.3_0000.nii.gz").write_text("damaged")
    assert cli.main(deployed.command("-npp", "1", "-nps", "1")) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "nnU-Net stopped (Background workers died" in sentence(last)
    assert last.endswith("rerun with --continue_prediction, which predicts what is missing")


def test_cascade(deployed, capsys):
    """The previous stage is asked for before anything is predicted, and goes to nnU-Net."""
    single = deployed.predict(output="single")
    previous = deployed.root / "previous"
    previous.mkdir()
    for case in CASES:  # some foreground, which the network of a few steps may not find
        image = sitk.ReadImage(str(single / f"{case}.nii.gz"))
        sitk.WriteImage(image * 0 + 1, str(previous / f"{case}.nii.gz"))
    plans = json.loads((deployed.folder / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["previous_stage"] = "3d_lowres"
    (deployed.folder / "plans.json").write_text(json.dumps(plans))
    file = deployed.folder / "fold_0" / "checkpoint_final.pth"
    weights = torch.load(file, weights_only=False)["network_weights"]
    wider = {n: w.repeat(1, 3, 1, 1, 1) if w.ndim == 5 and w.shape[1] == 1 else w for n, w in weights.items()}
    change_checkpoint(deployed, network_weights=wider)
    assert cli.main(deployed.command("--temperature", "1")) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "expected the segmentations of 3d_lowres, the previous stage of this cascade, got none" in last
    folder = deployed.predict("--temperature", "1", "-prev_stage_predictions", str(previous))
    (deployed.root / "reference").mkdir()
    deployed.predictor().predict_from_files_sequential(
        str(deployed.images), str(deployed.root / "reference"), folder_with_segs_from_prev_stage=str(previous)
    )
    for case in CASES:
        name = f"{case}.nii.gz"
        assert (folder / name).read_bytes() == (deployed.root / "reference" / name).read_bytes()
        alone, with_previous = (read_maps(f / "maps", "probabilities", case) for f in (single, folder))
        assert np.abs(with_previous - alone).max() > 1e-3


def temperature_of(file: Path) -> float:
    return json.loads(file.read_text())["temperature"]


def test_which_temperature(tmp_path, monkeypatch):
    """Merged folds have one for all; else, or if it is wished, each has its own; none are mixed."""
    model = three_folds(tmp_path)
    for name, value in model.environment().items():
        monkeypatch.setenv(name, value)
    own = [temperature_of(model.calibration(fold) / "temperature.json") for fold in range(3)]
    assert len({*own}) == 3
    assert [d.calibrator.value for d in find_temperatures(model.model_folder, [2, 0])] == [own[2], own[0]]
    assert [d.calibrator.value for d in find_temperatures(model.model_folder, [1])] == [own[1]]
    assert [d.calibrator.value for d in find_temperatures(model.model_folder, [1, 2], "3")] == [3, 3]
    assert cli.main(["crossval", "-d", "4", "-c", "3d_fullres", "-tr", "nnUNetTrainerCalib", "-f", "0", "1"]) == 0
    pooled = temperature_of(model.folder / "crossval_results_folds_0_1" / "calibration" / "temperature.json")
    assert pooled not in own
    assert [d.calibrator.value for d in find_temperatures(model.model_folder, [0, 1])] == [pooled] * 2
    assert [d.calibrator.value for d in find_temperatures(model.model_folder, [1])] == [pooled]
    assert [d.calibrator.value for d in find_temperatures(model.model_folder, [0, 1], "folds")] == own[:2]
    assert [d.calibrator.value for d in find_temperatures(model.model_folder, [0, 1, 2])] == own
    (model.calibration(2) / "temperature.json").unlink()
    with pytest.raises(ValueError, match=r"expected the temperature of fold 2 of .* nnunet_calib validate .* -f 2"):
        find_temperatures(model.model_folder, [0, 1, 2])

"""Images that are predicted have the channels of the model, or are refused in a sentence that names case and file."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from skimage import io

from nnunet_calib.nnunet.deployment.input_images import check_images
from nnunet_calib.results.layout import ModelFolder

# nnU-Net's imports, and the paths that it does not find set
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture
def model(tmp_path) -> ModelFolder:
    """A model of T1 and T2 in .png files; `cascade` is one whose previous stage is `first`."""
    plans = {
        "dataset_name": "Dataset001_A",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "NaturalImage2DIO",
        "configurations": {"2d": {"architecture": {}}, "cascade": {"architecture": {}, "previous_stage": "first"}},
    }
    dataset = {"channel_names": {"1": "T2", "0": "T1"}, "labels": {"background": 0, "a": 1}, "file_ending": ".png"}
    for name, content in (("plans", plans), ("dataset", dataset)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return ModelFolder(tmp_path, "Dataset001_A", "nnUNetTrainer", "nnUNetPlans", "2d")


def images(model: ModelFolder, *names: str) -> Path:
    """Return a folder with empty files: what is complete by its names is not opened."""
    folder = model.path / "images"
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    return folder


COMPLETE = ("a_0000.png", "a_0001.png")
REFUSED = {
    "first": (
        (*COMPLETE, "b_0001.png"),
        "expected case b with 2 channels (T1, T2) as its model was trained, found no",
        "b_0000.png: add it",
    ),
    "gap": (("a_0000.png", "a_0002.png"), "expected case a with 2 channels (T1, T2)", "a_0001.png: add it"),
    "more": (
        (*COMPLETE, "b_0000.png", "b_0001.png", "b_0002.png"),
        "expected case b with 2 channels (T1, T2)",
        "b_0002.png: move it elsewhere",
    ),
    "no number": ((*COMPLETE, "scan.png"), "a number for each channel, found", "scan.png: rename it"),
    "none": (("a_0000.nii.gz",), "expected images that end with _0000.png, found none in", "with -i"),
    "unreadable": ((*COMPLETE, "b_0000.png"), "expected images of case b that nnU-Net can read", "restore it"),
    "name": ((*COMPLETE, "b\n_0000.png", "b\n_0001.png"), "expected names of cases that are", "'b\\n': rename"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(model, name):
    """Case and file are named, whichever of several cases it is."""
    files, start, end = REFUSED[name]
    with pytest.raises(ValueError, match=r"^expected") as refusal:
        check_images(model, images(model, *files))
    assert start in str(refusal.value)
    assert end in str(refusal.value)


def test_accepted(model):
    """Complete cases, other files, and what nnU-Net leaves out."""
    folder = images(model, *COMPLETE, "b.c_0000.png", "b.c_0001.png", "notes.txt", "aX0000.png")
    (folder / "more_0000.png").mkdir()
    check_images(model, folder)


@pytest.mark.parametrize(("layers", "found"), [(2, None), (0, "a_0001.png: add it"), (3, "found 3 in")])
def test_several_channels_in_a_file(model, layers, found):
    """A file that holds channels is counted by what it holds: here colours, of which a model of three has one file."""
    folder = images(model)
    channels = {"0": "red", "1": "green", "2": "blue"} if layers == 2 else {"0": "T1", "1": "T2"}
    content = json.loads((model.path / "dataset.json").read_text()) | {"channel_names": channels}
    (model.path / "dataset.json").write_text(json.dumps(content))
    image = np.zeros((8, 8, 3) if layers else (8, 8), np.uint8)
    io.imsave(folder / "a_0000.png", image, check_contrast=False)
    if found is None:
        check_images(model, folder)
        return
    with pytest.raises(ValueError, match=found):
        check_images(model, folder)


def test_pipe(model):
    """Refused rather than left out, as nnU-Net leaves it out, or waited for."""
    folder = images(model, *COMPLETE)
    os.mkfifo(folder / "b_0000.png")
    with pytest.raises(ValueError, match=r"expected a regular file, found a pipe or a device at .*b_0000\.png"):
        check_images(model, folder)


def test_previous_stage(model, tmp_path):
    """A cascade needs the segmentation of each case; another model takes none."""
    folder, stage = images(model, *COMPLETE, "b_0000.png", "b_0001.png"), tmp_path / "stage"
    stage.mkdir()
    (stage / "a.png").touch()
    with pytest.raises(ValueError, match=r"a previous stage, which this configuration does not have, got .*: leave it"):
        check_images(model, folder, stage)
    cascade = ModelFolder(model.path, model.dataset, model.trainer, model.plans, "cascade")
    with pytest.raises(ValueError, match="expected the segmentations of first, the previous stage of this cascade"):
        check_images(cascade, folder)
    with pytest.raises(ValueError, match=r"for each case, found no .*b\.png: predict it first"):
        check_images(cascade, folder, stage)
    (stage / "b.png").touch()
    check_images(cascade, folder, stage)


def test_without_channel_names(model):
    """Older files say modality; neither is refused."""
    content = json.loads((model.path / "dataset.json").read_text())
    content["modality"] = content.pop("channel_names")
    (model.path / "dataset.json").write_text(json.dumps(content))
    folder = images(model, *COMPLETE)
    check_images(model, folder)
    del content["modality"]
    (model.path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="expected channel_names in"):
        check_images(model, folder)

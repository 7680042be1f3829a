"""`nnunet_calib report`: which results, whose Dice, whose images, and what it says where there are none."""

import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_calib import cli
from nnunet_calib.nnunet.raw_images import raw_images
from nnunet_calib.results.compared_models import dice_of_cases
from nnunet_calib.results.layout import find_results
from tests.worlds.compared_folds import write_dice
from tests.worlds.measured_folds import CROSSVAL, DATASET

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # nnU-Net's imports

REPORT = ["report", *CROSSVAL[1:]]
DESCRIPTION = {
    "channel_names": {"0": "synthetic"},
    "labels": {"background": 0, "bright": 1, "dark": 2},
    "numTraining": 6,
    "file_ending": ".nii.gz",
}
PLANS = {
    "dataset_name": DATASET,
    "plans_name": "nnUNetPlans",
    "image_reader_writer": "SimpleITKIO",
    "configurations": {},
    "transpose_forward": [0, 1, 2],
    "transpose_backward": [0, 1, 2],
}


@pytest.fixture
def raw(model, tmp_path, monkeypatch):
    """Images of all cases, and what nnU-Net leaves in a model's folder."""
    for folder in (tmp_path / "raw" / DATASET / "imagesTr", tmp_path / "raw" / DATASET / "labelsTr"):
        folder.mkdir(parents=True)
        for case in range(6):
            image = sitk.GetImageFromArray(np.full((9, 9, 6), case, np.float32))
            suffix = "_0000" if folder.name == "imagesTr" else ""
            sitk.WriteImage(image, folder / f"case.{case}{suffix}.nii.gz")
    (model.folder / "dataset.json").write_text(json.dumps(DESCRIPTION))
    (model.folder / "plans.json").write_text(json.dumps(PLANS))
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    return tmp_path / "raw" / DATASET


def test_fold(model, raw, capsys):
    """Of one fold: beside its summary, with nnU-Net's Dice, images, and the commands that repeat it."""
    write_dice(model, 1, {"case.2": (0.5, 0.7), "case.3": (0.25, float("nan"))})
    assert cli.main([*REPORT, "-f", "1"]) == 0
    path = model.calibration(1) / "report.html"
    assert capsys.readouterr().out == f"{path}\n"
    page = path.read_text(encoding="utf-8")
    assert ">0.600<" in page
    assert ">0.250<" in page
    assert ">case.2<" in page
    assert ">case.4<" not in page
    assert "the image with the" in page
    assert "nnunet_calib validate -d 4 -c 3d_fullres -tr nnUNetTrainerCalib -p nnUNetPlans -f 1" in page


def test_merged(model, capsys, tmp_path):
    """Of merged folds: all cases with their fold, also without nnU-Net's raw data, its plans and its Dice."""
    assert cli.main([*CROSSVAL, "-f", "2", "0", "1"]) == 0
    capsys.readouterr()
    assert cli.main([*REPORT, "-f", "1", "0", "2", "-o", str(tmp_path / "mail.html")]) == 0
    page = (tmp_path / "mail.html").read_text(encoding="utf-8")
    assert all(f">case.{i}<" in page for i in range(6))
    assert ">fold</button>" in page
    assert ">Dice</button>" not in page
    assert "no image was found" in page
    assert "nnunet_calib crossval -d 4" in page


def test_nothing_there(model, capsys):
    """The sentence says what makes the results, and which there are."""
    assert cli.main(REPORT) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "found none: make it with nnunet_calib crossval -f 0 1 2 3 4, or name with -f what there is" in error
    assert "(fold_0/validation, fold_1/validation, fold_2/validation)" in error
    shutil.rmtree(model.calibration(1))
    with pytest.raises(ValueError, match=r"make it with nnunet_calib validate -f 1, .*\(fold_0/validation, fold_2"):
        find_results(model.model_folder, ["1"])
    with pytest.raises(ValueError, match="the numbers of several, got 0 all: fold all is never merged"):
        find_results(model.model_folder, ["0", "all"])


def test_images(raw, model, monkeypatch):
    """By nnU-Net's reader, as (channels, *spatial); None for unknown cases, damaged files, and lost folders."""
    image = raw_images(model.folder)
    np.testing.assert_array_equal(image("case.3"), np.full((1, 9, 9, 6), 3))
    assert image("case.9") is None
    (raw / "imagesTr" / "case.4_0000.nii.gz").write_bytes(b"nothing")
    assert image("case.4") is None
    (raw / "imagesTr" / "case.2_0000.nii.gz").unlink()
    assert image("case.2") is None
    (model.folder / "plans.json").unlink()
    assert raw_images(model.folder)("case.3") is None
    monkeypatch.delenv("nnUNet_raw")
    assert raw_images(model.folder)("case.3") is None


@pytest.mark.parametrize("named", ["absolute", "relative", "variable"])
def test_images_elsewhere(raw, model, monkeypatch, named):
    """Where the entries of dataset.json say that nnU-Net reads them, without imagesTr."""
    (raw / "imagesTr").rename(raw.parent / "elsewhere")
    monkeypatch.setenv("IMAGES", str(raw.parent / "elsewhere"))
    folder = {"absolute": str(raw.parent / "elsewhere"), "relative": "../elsewhere", "variable": "$IMAGES"}[named]
    entries = {
        f"subject {i}": {"images": [f"{folder}/case.{i}_0000.nii.gz"], "label": f"labelsTr/case.{i}.nii.gz"}
        for i in range(6)
    }
    (model.folder / "dataset.json").write_text(json.dumps(DESCRIPTION | {"dataset": entries}))
    np.testing.assert_array_equal(raw_images(model.folder)("subject 3"), np.full((1, 9, 9, 6), 3))
    assert raw_images(model.folder)("case.3") is None
    if named != "relative":
        monkeypatch.delenv("nnUNet_raw")
        np.testing.assert_array_equal(raw_images(model.folder)("subject 3"), np.full((1, 9, 9, 6), 3))
    (model.folder / "dataset.json").write_text(json.dumps(DESCRIPTION | {"dataset": [entries]}))
    assert raw_images(model.folder)("subject 3") is None


def test_dice(model, raw):
    """Of the folds that have nnU-Net's summary; a class that is nowhere does not count."""
    write_dice(model, 0, {"case.0": (0.5, 0.7), "case.1": (float("nan"), float("nan"))})
    dice = dice_of_cases(model.model_folder, ["0", "1"])
    assert dice["case.0"] == pytest.approx(0.6)
    assert np.isnan(dice["case.1"])
    assert set(dice) == {"case.0", "case.1"}

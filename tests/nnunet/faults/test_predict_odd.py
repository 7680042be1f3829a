"""Images that the network makes NaN of, while others are predicted; maps on bad disks."""

import shutil

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_calib import cli
from tests.nnunet.faults.disks import full_disk, read_only_disk
from tests.worlds.command_line import sentence
from tests.worlds.predicting import MARKS, files

pytestmark = MARKS


def test_nan_image(deployed, capsys):
    """No map of the case is written, nor as integers, where NaN has no place; without it, the others are finished."""
    file = deployed.images / "case.1_0000.nii.gz"
    volume = sitk.ReadImage(file)
    pixels = sitk.GetArrayFromImage(volume)
    pixels[:], pixels[:4] = 0, np.finfo(np.float32).max  # NaN in a .nii.gz is read as 0, but their mean overflows
    broken = sitk.GetImageFromArray(pixels)
    broken.CopyInformation(volume)
    sitk.WriteImage(broken, file)
    assert cli.main(deployed.command("--dtype", "uint8")) == 2
    text = sentence(capsys.readouterr().err.splitlines()[-1])
    assert "case case.1: expected probabilities in [0, 1], got values from nan to nan" in text
    assert text.endswith("rerun with --continue_prediction, which predicts what is missing")
    maps = deployed.root / "predicted" / "maps"
    assert not [*maps.rglob("*case.1*")]
    file.unlink()
    deployed.predict("--dtype", "uint8", "--continue_prediction")
    assert len([*maps.rglob("case.2.nii.gz")]) == 3


@pytest.mark.parametrize("disk", [full_disk, read_only_disk])
def test_disks(deployed, capsys, disk):
    """The maps cannot be written: one sentence; with room, the command goes on to what it would have been at once."""
    expected = deployed.predict(output="elsewhere")
    maps = deployed.root / "predicted" / "maps"
    with disk(maps) as without_mount:
        if without_mount is not None:
            pytest.skip("no disk can be mounted here")
        assert cli.main(deployed.command()) == 2
        text = sentence(capsys.readouterr().err.splitlines()[-1])
        assert f"{maps}/maps.json, could not (" in text
        assert not [path for path in maps.rglob("*") if path.name != ".filled"]
    shutil.rmtree(maps)
    deployed.predict("--continue_prediction")
    assert files(maps) == files(expected / "maps")

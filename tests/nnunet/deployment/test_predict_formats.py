"""`predict` on natural images and on 3D TIFF, with a network that was trained on other files."""

import json
import shutil

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from skimage import io

from nnunet_calib import apply_temperature, cli
from tests.worlds.predicting import MARKS, change_json

pytestmark = MARKS


def retype(deployed, ending: str, reader: str) -> None:
    """Images of another type, and a model that reads them."""
    volumes = {
        p.name.removesuffix(".nii.gz"): sitk.GetArrayFromImage(sitk.ReadImage(str(p)))
        for p in deployed.images.iterdir()
    }
    shutil.rmtree(deployed.images)
    deployed.images.mkdir()
    for name, volume in volumes.items():
        if reader == "Tiff3DIO":
            tifffile.imwrite(deployed.images / f"{name}{ending}", volume)
            spacing = deployed.images / f"{name.removesuffix('_0000')}.json"
            spacing.write_text(json.dumps({"spacing": [1.3, 1.0, 3.0]}))
            continue
        plane = volume[:, :, 5]
        plane = np.interp(plane, (volume.min(), volume.max()), (0, 255)).astype(np.uint8)
        io.imsave(deployed.images / f"{name}{ending}", plane, check_contrast=False)
    change_json(deployed.folder / "dataset.json", file_ending=ending)
    plans = json.loads((deployed.folder / "plans.json").read_text()) | {"image_reader_writer": reader}
    if reader == "NaturalImage2DIO":
        plans |= {"transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2]}
    (deployed.folder / "plans.json").write_text(json.dumps(plans))


@pytest.mark.parametrize("deployed", ["2d"], indirect=True)
@pytest.mark.parametrize(("ending", "dtype"), [(".png", "uint8"), (".png", "uint16"), (".tif", "float32")])
def test_natural_images(deployed, ending, dtype):
    """Maps with the size of the images, within half a step of nnU-Net's probabilities with the temperature."""
    retype(deployed, ending, "NaturalImage2DIO")
    folder = deployed.predict("--dtype", dtype, "--maps", "probabilities", "entropy")
    reference, probabilities = deployed.reference()
    step = {"uint8": 1 / 255, "uint16": 1 / 65535, "float32": 0}[dtype]
    for name, p in probabilities.items():
        segmentation = io.imread(folder / f"{name}{ending}")
        np.testing.assert_array_equal(segmentation, io.imread(reference / f"{name}{ending}"))
        of_classes = [folder / "maps" / "probabilities" / label for label in ("background", "bright", "dark")]
        maps = np.stack([io.imread(path / f"{name}{ending}") for path in of_classes])
        assert maps.dtype == dtype
        assert maps.shape[1:] == io.imread(deployed.images / f"{name}_0000{ending}").shape
        expected = apply_temperature(p, 1.8)[:, 0]
        np.testing.assert_allclose(maps * (step or 1), expected, atol=0.501 * step + 1e-6)
        if not step:
            np.testing.assert_array_equal(maps.argmax(0), segmentation)
        assert io.imread(folder / "maps" / "entropy" / f"{name}{ending}").max() > 0


def test_3d_tiff(deployed):
    """float32, with the file that gives nnU-Net the spacing."""
    retype(deployed, ".tif", "Tiff3DIO")
    folder = deployed.predict("--layout", "4d")
    for name, p in deployed.reference()[1].items():
        maps = tifffile.imread(folder / "maps" / "probabilities" / f"{name}.tif")
        inside = (slice(None), slice(4, 24))
        np.testing.assert_allclose(maps[inside], apply_temperature(p, 1.8)[inside], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(maps.argmax(0), tifffile.imread(folder / f"{name}.tif"))
        spacing = json.loads((folder / "maps" / "probabilities" / f"{name}.json").read_text())
        assert spacing == {"spacing": [1.3, 1.0, 3.0]}


@pytest.mark.parametrize("deployed", ["2d"], indirect=True)
def test_float_png(deployed, capsys):
    """Refused in one sentence before anything is predicted."""
    retype(deployed, ".png", "NaturalImage2DIO")
    assert cli.main(deployed.command("--dtype", "float32")) == 2
    text = capsys.readouterr().err.splitlines()[-1]
    assert "expected --dtype uint8 or uint16 for images that end with .png, got float32" in text
    assert not (deployed.root / "predicted").exists()

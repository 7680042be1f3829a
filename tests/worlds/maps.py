"""Reads maps back, and makes segmentations whose geometry no default can be mistaken for."""

import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_calib import cli

# axes swapped and flipped, and tilted against all of them
_TILT = 0.3
OBLIQUE = np.array([[0, 0, -1], [1, 0, 0], [0, 1, 0]]) @ np.array(
    [[np.cos(_TILT), -np.sin(_TILT), 0], [np.sin(_TILT), np.cos(_TILT), 0], [0, 0, 1]]
)
ORIGIN = (-30.5, 12.25, 7.0)


def make_oblique(path: Path) -> None:
    """Give an image another origin and direction."""
    image = sitk.ReadImage(str(path))
    image.SetOrigin(ORIGIN[: image.GetDimension()])
    tilt = OBLIQUE if image.GetDimension() == 3 else OBLIQUE[1:, :2] @ np.eye(2)
    image.SetDirection(tilt.ravel().tolist())
    sitk.WriteImage(image, str(path))


def assert_same_geometry(path: Path, expected: Path, dimensions: int | None = None) -> None:
    """Size, spacing, origin and direction; those of the first axes where an image has more."""
    image, like = (sitk.ReadImage(str(p)) for p in (path, expected))
    n, m = like.GetDimension(), image.GetDimension()
    assert m == (dimensions or n)
    assert image.GetSize()[:n] == like.GetSize()
    np.testing.assert_allclose(image.GetSpacing()[:n], like.GetSpacing(), rtol=1e-6)
    np.testing.assert_allclose(image.GetOrigin()[:n], like.GetOrigin(), rtol=1e-6, atol=1e-6)
    direction = np.reshape(image.GetDirection(), (m, m))[:n, :n]
    np.testing.assert_allclose(direction.ravel(), like.GetDirection(), atol=1e-6)


def read(path: Path) -> np.ndarray:
    """An image's array as SimpleITK reads it, (z, y, x)."""
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def read_maps(folder: Path, kind: str, case: str, ending: str = ".nii.gz") -> np.ndarray:
    """The maps of a case in the order of the channels, with the values that maps.json says they have."""
    about = json.loads((folder / "maps.json").read_text())
    single = folder / kind / f"{case}{ending}"
    paths = [single] if single.is_file() else [folder / kind / name / single.name for name in about["folders"]]
    arrays = np.stack([read(path) for path in paths])
    assert arrays.dtype == about["dtype"]
    return arrays if about["dtype"] == "float32" else arrays * np.float64(about["maps"][kind]["step"])


def export(folder: Path, *more: str) -> Path:
    """Export the predictions of `write_world`, which must succeed; the folder of the maps."""
    assert cli.main(["export", "-i", str(folder / "pred"), "-np", "1", *more]) == 0
    return folder / "pred" / "maps"

"""Label files of several layers: the label map that they repeat, or one sentence that says how many there are."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from skimage import io

from nnunet_calib.nnunet.measured_case import measure_case
from nnunet_calib.results.heads import Heads
from tests.worlds.odd_cases import refusal
from tests.worlds.predicted_folder import arguments, run, write_world

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # nnU-Net's imports

SAID = "expected one label map, found {} layers in {}: save one layer, in which each voxel has one number; "


def one_hot(labels: np.ndarray) -> np.ndarray:
    """(2, *spatial) layers, as for structures that overlap."""
    return np.stack([labels == 1, labels == 2]).astype(np.uint8)


def of_four_axes(path: Path, layers: np.ndarray) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(layers, isVector=False), path)


def as_vectors(path: Path, layers: np.ndarray) -> None:
    """As 3D Slicer writes segments that overlap."""
    sitk.WriteImage(sitk.GetImageFromArray(np.moveaxis(layers, 0, -1), isVector=True), path)


def as_colours(path: Path, layers: np.ndarray) -> None:
    io.imsave(path, np.moveaxis(layers[:, 0], 0, -1), check_contrast=False)


def red_and_green(labels: np.ndarray) -> np.ndarray:
    return np.concatenate([one_hot(labels), np.zeros_like(labels[None])])


def grey(labels: np.ndarray, *alpha: int) -> np.ndarray:
    return np.stack([labels] * 3 + [np.full_like(labels, value) for value in alpha])


def uneven(labels: np.ndarray) -> np.ndarray:
    """Opaque but for a pixel."""
    layers = grey(labels, 255)
    layers[3, 0, 0, 0] = 254
    return layers


LAYERED = {
    "fourth axis": (".nii.gz", of_four_axes, one_hot, 2),
    "vectors": (".nrrd", as_vectors, one_hot, 2),
    "five vectors": (".mha", as_vectors, lambda y: np.stack([y] * 5), 5),
    "red and green": (".png", as_colours, red_and_green, 3),
    "transparent": (".png", as_colours, lambda y: grey(y, 0), 4),
    "uneven": (".png", as_colours, uneven, 4),
    "colours, opaque": (".png", as_colours, lambda y: np.concatenate([red_and_green(y), grey(y, 255)[3:]]), 4),
}


@pytest.mark.parametrize("command", ["evaluate", "fit"])
@pytest.mark.parametrize("kind", LAYERED)
def test_layers_that_differ(tmp_path, capsys, kind, command):
    """The first alone would be measured as the whole truth."""
    ending, write, layers, number = LAYERED[kind]
    made = write_world(tmp_path, ending=ending, seeds=range(2))["case.1"]
    file = tmp_path / "labels" / f"case.1{ending}"
    write(file, layers(made.labels))
    more = ["--no-figures"] * (command == "evaluate")
    text = refusal(tmp_path, capsys, arguments(tmp_path, command, *more))
    assert "case case.1 (" in text
    assert SAID.format(number, file) in text


@pytest.mark.parametrize(
    ("ending", "write", "layers"),
    [
        (".png", as_colours, grey),
        (".png", as_colours, lambda labels: grey(labels, 255)),
        (".nii.gz", of_four_axes, lambda labels: np.stack([labels] * 2)),
    ],
)
def test_layers_that_are_the_same(tmp_path, ending, write, layers):
    """A grey picture saved in colours, opaque or without an alpha channel: the same numbers as in one layer."""
    cases = write_world(tmp_path / "a", ending=ending)
    write_world(tmp_path / "b", ending=ending)
    for name, made in cases.items():
        write(tmp_path / "a" / "labels" / f"{name}{ending}", layers(made.labels))
    a, b = (run(tmp_path / name)["metrics"]["uncalibrated"]["image"] for name in "ab")
    assert a == b


def test_where_labels_are_read(tmp_path):
    """The one function with which a training, `validate`, `evaluate` and `fit` read labels, inside a crop too."""
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    labels = np.zeros((4, 5, 6), np.uint8)
    labels[1:3] = 2
    p = np.full((3, 2, 5, 6), 1 / 3, np.float32)
    heads = Heads(("0", "1", "2"), ("background", "a", "b"), None, None)
    for write, name in ((of_four_axes, "a.nii.gz"), (as_vectors, "a.nrrd")):
        write(tmp_path / name, one_hot(labels))
        with pytest.raises(ValueError, match=SAID.format(2, tmp_path / name)):
            measure_case(
                p,
                tmp_path / name,
                SimpleITKIO(),
                heads,
                case="a",
                model={},
                spacing=(1, 1, 1),
                crop=(slice(1, 3), slice(None), slice(None)),
            )

"""Slices of cases: which head, what is right and wrong in it, and the image behind it."""

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from nnunet_calib.figures.case_figures import draw_case
from nnunet_calib.figures.case_pictures import CasePicture, colour_bar, picture_bytes
from nnunet_calib.measuring.picture_slice import RepresentativeSlice

TRUE = np.array([[0, 1, 1, 2], [0, 0, 2, 2], [3, 1, 1, 0]])
PREDICTED = np.array([[1, 1, 0, 2], [0, 0, 2, 2], [1, 1, 1, 0]])


def slice_of(labels=TRUE, predicted=PREDICTED, classes=3, sure=0.9, spacing=(1, 1)):
    """A slice at z = 2 of a volume, from row 1 and column 3 on, every second column."""
    p = np.full((classes, *labels.shape), (1 - sure) / (classes - 1))
    for c in range(classes):
        p[c][predicted == c] = sure
    where = np.array([[2, 3, 1], [1, 1 + labels.shape[0], 1], [3, 3 + 2 * labels.shape[1], 2]])
    return RepresentativeSlice(
        where,
        np.asarray(spacing, float),
        labels.astype(np.uint16),
        np.rint(255 * p).astype(np.uint8),
        np.zeros((0, *labels.shape), np.float16),
    )


def test_outcome():
    """By hand: class 1 has the most voxels; the ignored one (3) is neither right nor wrong."""
    picture = CasePicture.of(slice_of(), 1.0, regions=None, ignore_label=3)
    assert picture.head == 1
    right, found, missed = picture.outcome
    assert [tuple(at) for at in np.argwhere(right)] == [(0, 1), (2, 1), (2, 2)]
    assert [tuple(at) for at in np.argwhere(found)] == [(0, 0)]
    assert [tuple(at) for at in np.argwhere(missed)] == [(0, 2)]


def test_probabilities():
    """Before: those of the slice. After: softmax(log p / T), by hand for T = 2."""
    picture = CasePicture.of(slice_of(), 2.0, regions=None, ignore_label=None)
    assert picture.before[0, 1] == pytest.approx(0.9, abs=2e-3)
    odds = np.sqrt(0.9 / 0.05)
    assert picture.after[0, 1] == pytest.approx(odds / (odds + 2), abs=3e-3)


def test_regions():
    """Regions overlap: the first one, of labels 1 and 2, is the largest; each has its own threshold of 1/2."""
    labels = np.array([[1, 2, 2, 0]])
    p = np.array([[[0.9, 0.2, 0.8, 0.7]], [[0.1, 0.6, 0.9, 0.1]]])
    shown = RepresentativeSlice(
        np.array([[0, 1, 1], [0, 4, 1]]),
        np.ones(2),
        labels.astype(np.uint16),
        np.rint(255 * p).astype(np.uint8),
        np.zeros((0, 1, 4), np.float16),
    )
    picture = CasePicture.of(shown, 3.0, regions=[[1, 2], [2]], ignore_label=None)
    assert picture.head == 0
    np.testing.assert_array_equal(picture.outcome[:, 0], [[1, 0, 1, 0], [0, 0, 0, 1], [0, 1, 0, 0]])
    expected = 1 / (1 + (0.1 / 0.9) ** (1 / 3))
    assert picture.after[0, 0] == pytest.approx(expected, abs=3e-3)


def test_image():
    """The first channel at the slice's own place, stretched between its percentiles."""
    image = np.random.default_rng(0).random((2, 4, 6, 12)).astype(np.float32)
    picture = CasePicture.of(slice_of(), 1.0, regions=None, ignore_label=None, image=image)
    cut = image[0, 2, 1:4, 3:11:2]
    low, high = np.percentile(cut, (1, 99))
    np.testing.assert_allclose(picture.background, ((cut - low) / (high - low)).clip(0, 1), rtol=1e-5)


@pytest.mark.parametrize("shape", [(1, 4, 6, 5), (1, 2, 6, 12), (1, 6, 12)])
def test_foreign_image(shape):
    """An image of another size is of another case."""
    with pytest.raises(ValueError, match="expected an image on the grid of the label map, of at least"):
        CasePicture.of(slice_of(), 1.0, regions=None, ignore_label=None, image=np.zeros(shape))


def test_without_image():
    """The label map stands in for it, from black to white; a slice of one label is black."""
    picture = CasePicture.of(slice_of(), 1.0, regions=None, ignore_label=3)
    np.testing.assert_allclose(picture.background, TRUE / 3, rtol=1e-6)
    nothing = slice_of(np.zeros((3, 4), int), np.zeros((3, 4), int))
    assert not CasePicture.of(nothing, 1.0, regions=None, ignore_label=None).background.any()


@pytest.mark.parametrize("size", [20, 400])
def test_bytes(size):
    """Readable as what it says it is, enlarged by whole pixels, with outlines; large ones are compressed harder."""
    rng = np.random.default_rng(0)
    labels, predicted = (rng.random((2, size, size)) < 0.5).astype(int)
    shown = slice_of(labels, predicted, classes=2, spacing=(2, 1))
    picture = CasePicture.of(shown, 1.0, regions=None, ignore_label=None)
    content, kind, (width, height) = picture_bytes(picture)
    image = Image.open(io.BytesIO(content))
    assert f"image/{image.format.lower()}" == kind == ("image/png" if size == 20 else "image/webp")
    assert image.size == (width, height)
    times = 9 if size == 20 else 1
    assert (height, width) == (2 * times * size, 3 * times * size + 8)
    pixels = {tuple(p) for p in np.asarray(image.convert("RGB")).reshape(-1, 3)}
    if size == 20:
        assert {(86, 180, 233), (213, 94, 0), (240, 228, 66)} <= pixels


def test_outline_is_seen():
    """Two pixels thick, since one is lost where a page shows the picture smaller than it is."""
    size = 60
    labels = np.zeros((size, size), int)
    labels[20:40, 20:40] = 1
    shown = slice_of(labels, labels, classes=2)
    picture = CasePicture.of(shown, 1.0, regions=None, ignore_label=None)
    content, *_ = picture_bytes(picture)
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    outline = (pixels[:, : 3 * size] == (86, 180, 233)).all(-1)  # of the first tile, enlarged three times
    assert outline.sum() == 60**2 - 56**2
    assert outline[60:62, 60:120].all()
    assert not outline[62:118, 62:118].any()


def test_colour_bar():
    """The colours of the maps, from 0 to 1."""
    bar = np.asarray(Image.open(io.BytesIO(colour_bar())))
    picture = CasePicture.of(slice_of(sure=1.0), 1.0, regions=None, ignore_label=None)
    assert (picture.before.min(), picture.before.max()) == (0, 1)
    figure = Figure()
    drawn = draw_case(figure.subplots(1, 3), picture)
    np.testing.assert_array_equal(bar[0, [0, -1]], drawn.to_rgba([0.0, 1.0], bytes=True)[:, :3])

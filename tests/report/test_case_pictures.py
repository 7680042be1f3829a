"""Slices of cases: which head, what is right and wrong in it, and the image behind it."""

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from nnunet_calib.report.case_pictures import CasePicture, draw_case, picture_bytes, worst_cases_figure
from nnunet_calib.report.results import ReportedCase, case_error, worst_cases
from nnunet_calib.slices import RepresentativeSlice
from tests.report.test_figures import cases

TRUE = np.array([[0, 1, 1, 2], [0, 0, 2, 2], [3, 1, 1, 0]])
PREDICTED = np.array([[1, 1, 0, 2], [0, 0, 2, 2], [1, 1, 1, 0]])


def slice_of(labels=TRUE, predicted=PREDICTED, classes=3, sure=0.9, spacing=(1, 1)):
    """A slice at z = 2 of a volume, from row 1 and column 3 on, every second column."""
    p = np.full((classes, *labels.shape), (1 - sure) / (classes - 1))
    for c in range(classes):
        p[c][predicted == c] = sure
    where = np.array([[2, 3, 1], [1, 1 + labels.shape[0], 1], [3, 3 + 2 * labels.shape[1], 2]])
    return RepresentativeSlice(
        where, np.asarray(spacing, float), labels.astype(np.uint16), np.rint(255 * p).astype(np.uint8),
        np.zeros((0, *labels.shape), np.float16),
    )  # fmt: skip


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
        np.array([[0, 1, 1], [0, 4, 1]]), np.ones(2), labels.astype(np.uint16), np.rint(255 * p).astype(np.uint8),
        np.zeros((0, 1, 4), np.float16),
    )  # fmt: skip
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


def test_drawn():
    """Three panels: image, before, after, on the same grid, with the pixels' aspect."""
    figure = Figure()
    axes = figure.subplots(1, 3)
    picture = CasePicture.of(slice_of(spacing=(3, 1)), 2.0, regions=None, ignore_label=None)
    assert draw_case(axes, picture) is axes[2].images[0]
    for ax, pixels in zip(axes, (picture.background, picture.before, picture.after), strict=True):
        np.testing.assert_array_equal(ax.images[0].get_array(), pixels)
        assert ax.images[0].get_clim() == (0, 1)
        assert ax.get_aspect() == 3
        assert len(ax.collections) == 3  # outlines of true positives, false positives and false negatives
    figure.canvas.draw()


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


def reported(name, ace, shown=None):
    """A case with one foreground class."""
    row = {
        "case": name,
        **{
            stage: {"image": {"per_class": {"0": {"ace": 9.0}, "1": {"ace": ace}, "2": {"ace": None}}, "nll": 0.1}}
            for stage in ("uncalibrated", "calibrated")
        },
    }
    (statistics,) = cases(1)
    return ReportedCase(row, statistics, statistics, 2.0, shown)


def test_worst():
    """By falling ACE of the foreground; background and absent classes do not count, no value comes last."""
    made = [reported("a", 0.1), reported("b", None), reported("c", 0.3), reported("d", float("nan"))]
    assert [case.name for case in worst_cases(made)] == ["c", "a", "b", "d"]
    assert case_error(made[0].row, "calibrated", "nll") == 0.1
    assert np.isnan(case_error(made[1].row, "calibrated", "ace"))


@pytest.mark.parametrize("number", [0, 1, 3])
def test_worst_figure(tmp_path, number):
    """A row for each of the worst cases that have a slice, with its name, its temperature and its errors."""
    made = [reported(f"case{i}", i / 10, slice_of()) for i in range(number)] + [reported("no slice", 0.9)]
    asked = []
    figure = worst_cases_figure(
        made, ["background", "bright", "dark"], regions=None, ignore_label=None, image_of=asked.append, number=2
    )
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    expected = [f"case{i}" for i in range(number)][::-1][:2]
    assert asked == expected
    assert titles[::3] == expected
    assert titles[1::3] == [f"p(bright), T = 1, ACE {int(name[-1]) / 10:.3f}" for name in expected]
    assert titles[2::3] == [f"p(bright), T = 2, ACE {int(name[-1]) / 10:.3f}" for name in expected]
    figure.savefig(tmp_path / "figure.png")

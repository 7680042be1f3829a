"""The figure of a training shows the logged values, also where some are missing or classes are many."""

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from nnunet_calib.figures.progress import (
    MOST_PANELS,
    draw_logit_bands,
    draw_logits,
    draw_progress,
    draw_pseudo_ace,
    logits_figure,
)

NAN = float("nan")


def lines(mean, per_class, names):
    """What is drawn."""
    ax = Figure().subplots()
    draw_pseudo_ace(ax, mean, per_class, names)
    return ax.lines


def test_values():
    """A line for each class, and a thicker one for the mean."""
    a, b, mean = lines([0.2, 0.3], [[0.1, 0.3], [0.2, 0.4]], ["a", "b"])
    for line, values in ((a, [0.1, 0.2]), (b, [0.3, 0.4]), (mean, [0.2, 0.3])):
        np.testing.assert_array_equal(line.get_ydata(), values)
    assert [line.get_label() for line in (a, b, mean)] == ["a", "b", "mean"]
    assert mean.get_linewidth() > a.get_linewidth()


@pytest.mark.parametrize(
    ("values", "dots"),
    [([0.1, NAN, 0.2, NAN, NAN, 0.3, 0.4], [0, 2]), ([0.1], [0]), ([0.1, 0.2], []), ([NAN, 0.2], [1])],
)
def test_lonely_epochs(values, dots):
    """A value between two missing ones, which a line does not show, is a dot."""
    *_, mean = lines(values, [[v] for v in values], ["a"])
    assert [*mean.get_markevery()] == dots


@pytest.mark.parametrize("classes", [6, 18, 19, 117])
def test_many_classes(classes):
    """Each has a look of its own; more than can be told apart are one grey entry of the legend."""
    *found, _ = lines([0.1], [[0.1] * classes], [f"class {i}" for i in range(classes)])
    looks = {(to_hex(line.get_color()), line.get_linestyle()) for line in found}
    named = [line.get_label() for line in found if not line.get_label().startswith("_")]
    if classes <= 18:
        assert len(looks) == len(named) == classes
    else:
        assert (len(looks), named) == (1, [f"each of {classes} classes"])


def test_files(tmp_path):
    """As bitmap and as vectors, and nothing beside them; the same bytes again."""
    contents = []
    for _ in range(2):
        draw_progress(tmp_path, [0.2, NAN], [[0.1, 0.3], [NAN, NAN]], ["a", "b"])
        contents.append({path.name: path.read_bytes() for path in tmp_path.iterdir()})
    assert contents[0] == contents[1]
    assert sorted(contents[0]) == ["progress_calibration.png", "progress_calibration.svg"]


def test_logit_bands():
    """The median as a line, and the bands around it, of the voxels outside and inside a class."""
    quantiles = np.arange(30.0).reshape(3, 2, 5)
    quantiles[1] = NAN
    ax = Figure().subplots()
    draw_logit_bands(ax, quantiles, "a title", ("outside", "inside"))
    for line, of in zip(ax.lines, (0, 1), strict=False):
        np.testing.assert_array_equal(line.get_ydata(), quantiles[:, of, 2])
        assert [*line.get_markevery()] == [0, 2]  # the epoch between them was not measured
    assert [line.get_label() for line in ax.lines[:2]] == ["outside", "inside"]
    assert len(ax.collections) == 4


@pytest.mark.parametrize("classes", [1, 2, 3, 14])
def test_logits_figure(tmp_path, classes):
    """A panel for each class, up to seven, and one for the margin; an epoch that was not measured is left out."""
    names = [f"class {i}" for i in range(classes)]
    quantiles = np.sort(np.random.default_rng(0).standard_normal((4, classes + 1, 2, 5)) * 30)
    quantiles[2] = NAN
    figure = logits_figure(quantiles.tolist(), names)
    shown = min(classes, MOST_PANELS)
    assert [ax.get_title() for ax in figure.axes] == [*names[:shown], "margin of the true class"]
    np.testing.assert_array_equal(figure.axes[-1].lines[1].get_ydata(), quantiles[:, -1, 1, 2])
    assert (f"7 of {classes} classes" in figure.get_suptitle()) == (classes > 7)
    if classes == 2:
        draw_logits(tmp_path, quantiles.tolist(), names)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["progress_logits.png", "progress_logits.svg"]

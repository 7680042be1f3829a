"""Figures show the numbers of the statistics, whatever cases they get, and ask nothing of pyplot."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from nnunet_calib import CaseStatistics
from nnunet_calib.integration.folds import case_file, write_fold
from nnunet_calib.integration.labels import Heads
from nnunet_calib.metrics import ReliabilityCurve, reliability_curve
from nnunet_calib.report.figures import (
    dataset_reliability_figure,
    draw_dataset_reliability,
    draw_fold,
    draw_reliability,
    reliability_figure,
)
from tests.measuring.conftest import make_case

NAMES = ["background", "bright", "dark", "top label"]
FIGURES = (reliability_figure, dataset_reliability_figure)


@pytest.fixture
def ax():
    """A panel that pyplot knows nothing of."""
    return Figure().subplots()


def curve_of(counts, frequency):
    """A curve of one head by hand; its probabilities are the middles of the bins."""
    counts = np.array([counts])
    confidence = np.where(counts > 0, (np.arange(counts.size) + 0.5) / counts.size, np.nan)
    return ReliabilityCurve(counts, confidence, np.array([frequency]))


def cases(number, mode="labels", without=None):
    """Statistics of some cases with three heads; `without` is a label that background replaces."""
    made = [make_case(mode, (9, 9, 6), seed=seed) for seed in range(number)]
    for case in made:
        case.labels[case.labels == without] = 0
    return [case.measure(case=f"case{i}", model={"weights_sha256": "", "fold": 0}) for i, case in enumerate(made)]


@pytest.mark.parametrize("row", [0, 2, -1])
def test_reliability(ax, row):
    """Bars stand at the observed frequency, gaps reach to the mean probability, the strip shows the share of voxels."""
    curve = reliability_curve(CaseStatistics.merge(cases(2)))
    draw_reliability(ax, curve, row, "a title")
    filled = curve.counts[row] > 0
    edges = np.linspace(0, 1, 21)[:-1][filled]
    observed, gap = ax.containers
    np.testing.assert_array_equal([bar.get_height() for bar in observed], curve.frequency[row][filled])
    np.testing.assert_allclose([bar.get_y() + bar.get_height() for bar in gap], curve.confidence[row][filled])
    (strip,) = ax.child_axes
    (share,) = strip.containers
    expected = curve.counts[row][filled] / curve.counts[row].sum()
    np.testing.assert_allclose([bar.get_height() for bar in share], expected)
    for bars in (observed, gap, share):
        np.testing.assert_allclose([bar.get_x() for bar in bars], edges)
        np.testing.assert_allclose([bar.get_width() for bar in bars], 1 / 20)
    assert ax.get_title() == "a title"


def test_empty_bins_have_no_bar(ax):
    """No voxel, no bar: a bar of height 0 would claim that nothing was observed there."""
    draw_reliability(ax, curve_of([3, 0, 0, 1], [0, np.nan, np.nan, 1]), 0, "")
    assert [(bar.get_x(), bar.get_height()) for bar in ax.containers[0]] == [(0, 0), (0.75, 1)]


def test_no_voxel_at_all(ax):
    """An empty diagram, without a warning."""
    draw_reliability(ax, curve_of([0, 0], [np.nan, np.nan]), 0, "")
    assert not len(ax.containers[0])


def test_joint_histogram(ax):
    """Two cases counted by hand; rows are the observed frequency, from below, and columns the probability."""
    curves = [
        curve_of([3, 0, 0, 1], [0, np.nan, np.nan, 1]),  # cells (0, 0) and (3, 3): 1 belongs to the last one
        curve_of([4, 2, 0, 9], [0.5, 0.2, np.nan, 0.8]),  # cells (2, 0), where a bin begins, (0, 1) and (3, 3)
    ]
    image = draw_dataset_reliability(ax, curves, 0, "a title")
    expected = np.zeros((4, 4))
    for cell, share in {(0, 0): 0.5, (3, 3): 1, (2, 0): 0.5, (0, 1): 0.5}.items():
        expected[cell] = share
    shown = image.get_array()
    np.testing.assert_array_equal(shown.filled(0), expected)
    np.testing.assert_array_equal(shown.mask, expected == 0)  # empty cells stay white
    assert image.origin == "lower"
    assert (*image.get_extent(),) == (0, 1, 0, 1)
    assert image.axes is ax
    assert ax.get_title() == "a title"


def test_joint_histogram_of_no_case(ax):
    """A class that no case has: all white."""
    assert draw_dataset_reliability(ax, [], 0, "").get_array().mask.all()


@pytest.mark.parametrize("draw", FIGURES)
@pytest.mark.parametrize("mode", ["labels", "regions"])
@pytest.mark.parametrize("number", [1, 3])
def test_figures(tmp_path, draw, mode, number):
    """A panel for each head and the top label, before and after; titles tell which, and the temperature."""
    before = cases(number, mode)
    figure = draw(before, [case.with_temperature(1.5) for case in before], 1.5, NAMES)
    titles = [ax.get_title().split("\n")[0] for ax in figure.axes if ax.get_title()]
    for name, title in zip([*NAMES, *NAMES], titles, strict=True):
        assert title.startswith(f"{name}, T ")
    assert ["T = 1," in f"{t}," for t in titles] == [True] * 4 + [False] * 4
    assert all("T ≈ 1.50" in t for t in titles[4:])
    figure.savefig(tmp_path / "figure.png")  # a layout that does not fit warns, and warnings are errors


@pytest.mark.parametrize("draw", FIGURES)
def test_absent_class(tmp_path, draw):
    """A class that no case has is drawn without a warning, and its cases are counted as none."""
    before = cases(2, without=2)
    figure = draw(before, before, 1.0, NAMES)
    figure.savefig(tmp_path / "figure.png")
    if draw is dataset_reliability_figure:
        counted = [ax.get_title().split(", ")[-1] for ax in figure.axes[:4]]
        assert counted == ["2 cases", "2 cases", "0 cases", "2 cases"]


@pytest.mark.parametrize("number", [1, 2])
def test_draw_fold(tmp_path, number):
    """Both pictures of a fold, complete and readable, and no temporary file; also of one case, without its own T."""
    made = cases(number)
    for case in made:
        path = case_file(tmp_path, case.cases[0])
        path.parent.mkdir(exist_ok=True)
        case.save(path)
    heads = Heads(("0", "1", "2"), (*NAMES[:3],), None, None)
    write_fold(tmp_path, [case.cases[0] for case in made], heads, made[0].model)
    draw_fold(tmp_path)
    pictures = ["dataset_reliability_histogram.png", "reliability.png"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cases", *pictures, "summary.json", "temperature.json"]
    for name in pictures:
        pixels = imread(tmp_path / name)[..., :3]
        assert min(pixels.shape[:2]) > 400
        # something is drawn in each quarter
        for half in np.array_split(pixels, 2):
            assert all((quarter < 0.5).any() for quarter in np.array_split(half, 2, axis=1))


LATE = """
import sys
import numpy as np
from nnunet_calib import CaseStatistics
from nnunet_calib.report.figures import dataset_reliability_figure, reliability_figure
assert not [name for name in sys.modules if name.split(".")[0] == "matplotlib"], "imported early"
case = CaseStatistics.from_probabilities(np.full((2, 4, 4), 0.5), np.eye(4, dtype=int))
for draw in (reliability_figure, dataset_reliability_figure):
    draw([case], [case], 1.0, ["a", "b", "top label"]).canvas.draw()
assert "matplotlib" in sys.modules
assert "matplotlib.pyplot" not in sys.modules, "pyplot was used"
"""


def test_matplotlib_is_imported_late():
    """Importing the module costs no matplotlib, and drawing no pyplot, whose state belongs to the user."""
    done = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

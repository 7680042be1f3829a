"""Diagrams show the numbers of the bins, whatever bins they get."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from nnunet_calib import CaseStatistics
from nnunet_calib.figures.diagrams import (
    draw_confidence,
    draw_dataset_reliability,
    draw_nll,
    draw_reliability,
    draw_reliability_boxes,
    draw_risk_coverage,
)
from nnunet_calib.metrics.errors import ReliabilityCurve, reliability_curve
from nnunet_calib.metrics.ranking import risk_coverage
from tests.figures.test_fold_figures import cases


@pytest.fixture
def ax():
    """A panel that pyplot knows nothing of."""
    return Figure().subplots()


def curve_of(counts, frequency):
    """A curve of one head by hand; its probabilities are the middles of the bins."""
    counts = np.array([counts])
    confidence = np.where(counts > 0, (np.arange(counts.size) + 0.5) / counts.size, np.nan)
    return ReliabilityCurve(counts, confidence, np.array([frequency]))


@pytest.mark.parametrize("row", [0, 2, -1])
def test_reliability(ax, row):
    """Bars stand at the observed frequency, gaps reach to the mean probability, the strip shows the voxels."""
    curve = reliability_curve(CaseStatistics.merge(cases(2)))
    draw_reliability(ax, curve, row, "a title")
    filled = curve.counts[row] > 0
    edges = np.linspace(0, 1, 21)[:-1][filled]
    observed, gap = ax.containers
    np.testing.assert_array_equal([bar.get_height() for bar in observed], curve.frequency[row][filled])
    np.testing.assert_allclose([bar.get_y() + bar.get_height() for bar in gap], curve.confidence[row][filled])
    (strip,) = ax.child_axes
    (number,) = strip.containers
    np.testing.assert_array_equal([bar.get_height() for bar in number], curve.counts[row][filled])
    assert strip.get_ylim()[1] >= curve.counts[row].max()
    for bars in (observed, gap, number):
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


def test_interval(ax):
    """Whiskers from limit to limit in the middle of their bins; none where a limit is no number."""
    curve = curve_of([3, 0, 5, 1], [0.2, np.nan, 0.5, 1])
    low, high = np.array([[0.1, np.nan, 0.4, np.nan]]), np.array([[0.3, np.nan, 0.7, np.nan]])
    draw_reliability(ax, curve, 0, "", (low, high))
    (whiskers,) = ax.collections
    drawn = [segment for segment in whiskers.get_segments() if np.isfinite(segment).all() and len(segment)]
    np.testing.assert_allclose(drawn, [[[0.125, 0.1], [0.125, 0.3]], [[0.625, 0.4], [0.625, 0.7]]])


def test_boxes(ax):
    """Median and quartiles of the cases that have voxels in a bin, each case counted once."""
    frequencies = [0.1, 0.2, 0.3, 0.4, 0.9]
    curves = [curve_of([10**i, 0], [f, np.nan]) for i, f in enumerate(frequencies)]
    draw_reliability_boxes(ax, curves, 0, "a title")
    (box,) = ax.patches
    corners = box.get_path().vertices
    assert (corners[:, 1].min(), corners[:, 1].max()) == pytest.approx((0.2, 0.4))
    assert corners[:, 0].mean() == pytest.approx(0.25, abs=0.1)
    lines = [line.get_ydata() for line in ax.lines]
    assert any(len(y) == 2 and np.allclose(y, 0.3) for y in lines)  # the median
    assert any(len(y) == 1 and np.allclose(y, 0.9) for y in lines)  # beyond 1.5 boxes
    assert ax.get_title() == "a title"


def test_boxes_of_no_case(ax):
    """A class that no case has: the diagonal alone."""
    draw_reliability_boxes(ax, [], 0, "")
    assert not ax.patches


def test_confidence(ax):
    """Shares of the voxels, of each set of bins by itself."""
    draw_confidence(ax, curve_of([3, 1], [0, 1]), curve_of([1, 1], [0, 1]), 0, "a title")
    before, after = ax.patches
    np.testing.assert_allclose(before.get_data().values, [0.75, 0.25])
    np.testing.assert_allclose(after.get_data().values, [0.5, 0.5])
    assert ax.get_title() == "a title"


@pytest.mark.parametrize("error", [0.1, np.inf])
def test_nll(ax, error):
    """The curve, the optimum, and two standard errors on either side unless nothing is known of it."""
    draw_nll(ax, [0.5, 1, 2, 4], [4, 3, 2, 3], 2.0, error)
    np.testing.assert_allclose(ax.lines[0].get_xydata(), [[0.5, 4], [1, 3], [2, 2], [4, 3]])
    bands = ax.patches
    assert len(bands) == np.isfinite(error)
    if len(bands):
        x = bands[0].get_extents().transformed(ax.transData.inverted())
        assert (x.x0, x.x1) == pytest.approx((1.8, 2.2))
    assert ax.get_legend().get_texts()[1].get_text() == ("T = 2.000 ± 0.200" if np.isfinite(error) else "T = 2.000")
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0.5", "1", "2"]


def test_risk_coverage(ax):
    """The curves end at the share of wrong voxels of all, and the axis begins where confidences differ."""
    case = CaseStatistics.merge(cases(2))
    curves = [risk_coverage(one.histograms.scope("image")) for one in (case, case.with_temperature(3))]
    draw_risk_coverage(ax, *curves, "a title", "after")
    for line, curve in zip(ax.lines, curves, strict=True):
        np.testing.assert_array_equal(line.get_xdata()[1:], curve.coverage)
        np.testing.assert_array_equal(line.get_ydata()[1:], curve.risk)
        h = case.histograms.scope("image")
        assert line.get_xydata()[-1] == pytest.approx([1, 1 - h.positives[-1].sum() / h.voxels])
    assert ax.get_xlim() == (min(curve.coverage[0] for curve in curves), 1)
    assert [line.get_label() for line in ax.lines] == ["T = 1", "after"]


def test_risk_coverage_without_voxels(ax):
    """A scope without a voxel has an empty panel."""
    empty = risk_coverage(
        CaseStatistics.from_probabilities(np.full((2, 1, 2), 0.5), np.zeros((1, 2), int)).histograms.scope("foreground")
    )
    draw_risk_coverage(ax, empty, empty, "")
    assert ax.get_xlim() == (0, 1)

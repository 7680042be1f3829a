"""Equal-mass ECE and KS, which are defined on sorted voxels, from histograms: within the bounds that are stated."""

from __future__ import annotations

import numpy as np
import pytest

from nnunet_calib import calibration_errors
from nnunet_calib.measuring.fine_histogram import FINE_BINS
from nnunet_calib.measuring.scopes import SCOPES
from nnunet_calib.synthetic import synthetic_case
from tests.worlds.measured_cases import Case, slow_scope

W = 1 / FINE_BINS


def sorted_voxels(p, y):
    """In the order of p."""
    order = np.argsort(p, kind="stable")
    return p[order].astype(np.float64), y[order].astype(np.float64)


def slow_equal_mass(p, y, num_bins):
    """ECE over bins of N / M sorted voxels; where M does not divide N, a voxel at an end belongs to both in part."""
    p, y = sorted_voxels(p, y)
    ends = np.interp(np.arange(num_bins + 1) * len(p) / num_bins, np.arange(len(p) + 1), np.append(0, (y - p).cumsum()))
    return np.abs(np.diff(ends)).sum() / len(p)


def slow_ks(p, y):
    """The largest cumulative residual, of equal probabilities together."""
    p, y = sorted_voxels(p, y)
    last = np.append(p[1:] > p[:-1], True)
    return np.abs((y - p).cumsum()[last]).max() / len(p)


def fine(p, y):
    """Share, frequency and last rank of the voxels of each fine bin that holds any."""
    bins = np.minimum(np.floor(p.astype(np.float64) * FINE_BINS), FINE_BINS - 1)
    held = [(bins == j) for j in np.unique(bins)]
    counts = np.array([h.sum() for h in held])
    return counts / len(p), np.array([y[h].mean() for h in held]), counts.cumsum()


def equal_mass_bound(p, y, num_bins):
    """Stated in `calibration_errors`: over the fine bins in which a bin ends."""
    share, o, last = fine(p, y)
    ends = np.unique(np.searchsorted(last, np.arange(1, num_bins) * len(p) / num_bins))
    return (share * (2 * o * (1 - o) + W / 2))[ends].sum()


def ks_bound(p, y):
    """Stated in `calibration_errors`."""
    share, o, _ = fine(p, y)
    return (share * (o * (1 - o) + W / 4)).max()


@pytest.mark.parametrize("num_bins", [5, 20])
@pytest.mark.parametrize("scope", SCOPES)
def test_small_cases(case, scope, num_bins):
    """Every head and scope of every label mode."""
    errors = calibration_errors(case.measure(), num_bins, scope)
    where = tuple(np.array(list(slow_scope(case, scope))).T)
    for c, (p, y) in enumerate(zip(case.probabilities, case.targets(), strict=True)):
        p, y = p[where], y[where]
        assert abs(errors["adaptive_ece"][c] - slow_equal_mass(p, y, num_bins)) <= equal_mass_bound(p, y, num_bins)
        assert -1e-6 <= slow_ks(p, y) - errors["ks"][c] <= ks_bound(p, y)


@pytest.mark.parametrize("sharpness", [0.5, 1, 3, 20])
def test_large_case(sharpness):
    """Also where nearly all voxels share the first fine bin and most bins end in it."""
    made = synthetic_case(0)
    p = made.probabilities.astype(np.float64) ** sharpness
    p /= p.sum(0)
    errors = calibration_errors(Case(p, made.labels).measure(), 20)
    top, right = p.max(0).ravel(), (p.argmax(0) == made.labels).ravel()
    for ours, exact, q, y in [
        (errors["adaptive_ece"][1], errors["ks"][1], p[1].ravel(), (made.labels == 1).ravel()),
        (errors["top_label_adaptive_ece"], errors["top_label_ks"], top, right),
    ]:
        assert abs(ours - slow_equal_mass(q, y, 20)) <= min(equal_mass_bound(q, y, 20), 0.004)
        assert -1e-9 <= slow_ks(q, y) - exact <= ks_bound(q, y)


def region(p, y):
    """One row of voxels and one region."""
    return Case(np.array([p]), np.array(y), regions=((1,),)).measure()


def test_equal_mass_by_hand():
    """Two bins of two voxels: residuals -.1 and .8, .1 and -.9; one of four: they cancel but for .1."""
    statistics = region([0.1, 0.2, 0.9, 0.9 + W], [0, 1, 1, 0])
    assert calibration_errors(statistics, 2)["adaptive_ece"] == pytest.approx([(0.7 + 0.8 + W) / 4])
    assert calibration_errors(statistics, 1)["adaptive_ece"] == pytest.approx([(0.1 + W) / 4])
    assert calibration_errors(statistics, 4)["adaptive_ece"] == pytest.approx([(0.1 + 0.8 + 0.1 + 0.9 + W) / 4])


def test_tied_voxels_are_divided_in_proportion():
    """Four voxels of p = 1/2 of which one is positive: every bin of two expects half of it, whatever their order."""
    for labels in ([1, 0, 0, 0], [0, 0, 1, 0]):
        assert calibration_errors(region([0.5] * 4, labels), 2)["adaptive_ece"] == pytest.approx([0.25])


def test_fewer_voxels_than_bins():
    """Each voxel is alone then: the mean of |y - p|."""
    assert calibration_errors(region([0.3, 0.8], [1, 1]), 20)["adaptive_ece"] == pytest.approx([(0.7 + 0.2) / 2])
    assert calibration_errors(region([0.3], [1]), 20)["adaptive_ece"] == pytest.approx([0.7])


def test_ks_by_hand():
    """Residuals -.1, .8, .1, -.9 add up to -.1, .7, .8, -.1: the largest is .8 of four voxels."""
    statistics = region([0.1, 0.2, 0.9, 0.9 + W], [0, 1, 1, 0])
    assert calibration_errors(statistics)["ks"] == pytest.approx([0.8 / 4])
    assert calibration_errors(region([0.25] * 4, [1, 0, 0, 0]))["ks"] == pytest.approx([0])


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_certain(value):
    """Certainly right is no error, certainly wrong the largest."""
    for label in (0, 1):
        errors = calibration_errors(Case(np.full((1, 2, 2), value), np.full((2, 2), label), ((1,),)).measure())
        assert errors["top_label_ks"] == errors["top_label_adaptive_ece"] == abs(value - label)

"""Calibration errors: against MONAI, against loops over voxels, and by hand."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import pytest
import torch

from nnunet_calib import calibration_errors
from nnunet_calib.measuring.scopes import SCOPES
from nnunet_calib.metrics.errors import reliability_curve
from tests.worlds.measured_cases import IGNORE_LABEL, MODES, Case, make_case, slow_errors

pytestmark = pytest.mark.pairs

MONAI_NAMES = {"ece": "expected", "ace": "average", "mce": "maximum"}


def region(p, y) -> Case:
    """One row of voxels and one region, which needs no complement."""
    return Case(np.array([p]), np.array(y), regions=((1,),))


@pytest.mark.parametrize("num_bins", [10, 15, 20])
@pytest.mark.parametrize("heads", [2, 3, 5])
@pytest.mark.parametrize("shape", [(50, 60), (14, 15, 16)], ids=["2D", "3D"])
@pytest.mark.parametrize("mode", ["labels", "regions"])
def test_agrees_with_monai(mode, shape, heads, num_bins):
    """MONAI's right=True makes its bins [a, b), whatever its documentation says: it goes straight to bucketize."""
    CalibrationErrorMetric = pytest.importorskip("monai.metrics").CalibrationErrorMetric
    case = make_case(mode, shape, heads, seed=heads * num_bins)
    p, y = (torch.as_tensor(x)[None] for x in (case.probabilities, case.targets().astype(np.float32)))
    ours = calibration_errors(case.measure(), num_bins)
    for name, reduction in MONAI_NAMES.items():
        metric = CalibrationErrorMetric(num_bins, calibration_reduction=reduction, metric_reduction="none", right=True)
        np.testing.assert_allclose(ours[name], metric(p, y)[0].numpy(), rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("shape", [(9, 11), (7, 6, 5)], ids=["2D", "3D"])
@pytest.mark.parametrize("mode", MODES)
def test_agrees_with_loops(mode, shape, scope):
    """The binned errors and the scores of every scope, over the voxels that count."""
    case = make_case(mode, shape)
    for num_bins in (4, 20):
        expected, ours = slow_errors(case, num_bins, scope), calibration_errors(case.measure(), num_bins, scope)
        for name, values in expected.items():
            assert np.shape(ours[name]) == np.shape(values)
            np.testing.assert_allclose(ours[name], values, rtol=0, atol=1e-6, err_msg=f"{name}, {num_bins} bins")


def test_by_hand():
    """Two bins: mean .2 and frequency 1/2 (gap .3, two voxels); mean .8 and frequency 1 (gap .2, three voxels)."""
    errors = calibration_errors(region([0.1, 0.3, 0.7, 0.8, 0.9], [0, 1, 1, 1, 1]).measure(), 2)
    assert errors["ece"] == pytest.approx([(2 * 0.3 + 3 * 0.2) / 5])
    assert errors["ace"] == pytest.approx([(0.3 + 0.2) / 2])
    assert errors["mce"] == pytest.approx([0.3])


def test_top_label_by_hand():
    """Confidences .6 (wrong) and .5 (right) share a bin, .9 (right) has its own."""
    p = np.array([[0.6, 0.3, 0.9], [0.1, 0.5, 0.06], [0.3, 0.2, 0.04]])
    errors = calibration_errors(Case(p, np.array([2, 1, 0])).measure(), 4)
    assert errors["top_label_ece"] == pytest.approx((2 * 0.05 + 0.1) / 3)
    assert errors["top_label_ace"] == pytest.approx((0.05 + 0.1) / 2)
    assert errors["top_label_mce"] == pytest.approx(0.1)


def test_top_label_of_regions_by_hand():
    """Each region decides for itself: confidences .9 and .7 right, .6 and .8 wrong, two to a bin of width 1/4."""
    case = Case(np.array([[0.9, 0.4], [0.3, 0.8]]), np.array([1, 1]), regions=((1,), (2,)))
    errors = calibration_errors(case.measure(), 4)
    assert errors["top_label_mce"] == pytest.approx(0.35)  # .9 and .8: mean .85, half of them right
    assert errors["top_label_ece"] == pytest.approx((2 * 0.35 + 2 * 0.15) / 4)  # .7 and .6: mean .65, half right
    assert errors["top_label_ece"].shape == ()


def test_scores_by_hand():
    """NLL and Brier score of two voxels, for labels and for regions."""
    p = np.array([[0.5, 0.1], [0.25, 0.7], [0.25, 0.2]])
    errors = calibration_errors(Case(p, np.array([0, 2])).measure())
    assert errors["nll"] == pytest.approx((np.log(2) + np.log(5)) / 2)
    assert errors["brier"] == pytest.approx((0.25 + 2 * 0.0625 + 0.01 + 0.49 + 0.64) / 2)
    errors = calibration_errors(Case(p[:2], np.array([0, 2]), regions=((1, 2), (2,))).measure())
    assert errors["nll"] == pytest.approx(-np.log([0.5, 0.75, 0.1, 0.7]).sum() / 4)  # targets 0 0, 1 1
    assert errors["brier"] == pytest.approx((0.25 + 0.0625 + 0.81 + 0.09) / 4)


@pytest.mark.parametrize(("label", "error"), [(1, 0.0), (0, 1.0)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_certain(dtype, label, error):
    """Probabilities 0 and 1 lie in the end bins; certainly wrong is an error of 1 and a large but finite NLL."""
    p = np.zeros((2, 3, 2), dtype)
    p[1] = 1
    statistics = Case(p, np.full((3, 2), label)).measure()
    counts = reliability_curve(statistics).counts
    assert counts[0].tolist() == [6, *[0] * 19]
    assert counts[1].tolist() == counts[2].tolist() == [*[0] * 19, 6]
    errors = calibration_errors(statistics)
    for name in MONAI_NAMES:
        assert errors[name][label] == errors[f"top_label_{name}"] == error
    assert errors["brier"] == 2 * error
    assert errors["nll"] == pytest.approx(error * 87.3125)  # p is clamped to 1.2e-38


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_edges_belong_to_the_bin_above(dtype):
    """The edges m / 16 are exact in every type; the number just below lies in the bin below, and 1 in the last."""
    edges = np.arange(17, dtype=dtype) / 16
    below = np.nextafter(edges[1:], 0)
    assert edges.dtype == below.dtype == dtype
    counts = [reliability_curve(region(p, [1] * len(p)).measure(), 16).counts[0].tolist() for p in (edges, below)]
    assert counts == [[*[1] * 15, 2], [1] * 16]


@pytest.mark.parametrize("num_bins", [10, 15, 20])
def test_top_label_of_regions_beside_edges(num_bins):
    """1 - p of a float32 p lies beside an edge; rounded to float32 it would lie on it, in the bin above or below."""
    edges = (np.arange(1, num_bins) / num_bins).astype(np.float32)
    p = np.concatenate([np.nextafter(edges, np.float32(0)), edges, np.nextafter(edges, np.float32(1))])
    confidences = [max(Fraction(float(x)), 1 - Fraction(float(x))) for x in p]
    expected = np.bincount([floor(c * num_bins) for c in confidences], minlength=num_bins)
    counts = reliability_curve(region(p, [1] * len(p)).measure(), num_bins).counts
    assert counts[1].tolist() == expected.tolist()


def test_empty_bins():
    """They are NaN in the curve and take no part in the errors: the mean over ten bins is that over the filled one."""
    statistics = region([0.52, 0.58], [1, 1]).measure()
    curve = reliability_curve(statistics, 10)
    assert np.isfinite(curve.confidence[0]).tolist() == [m == 5 for m in range(10)]
    assert np.isfinite(curve.frequency[0]).tolist() == [m == 5 for m in range(10)]
    errors = calibration_errors(statistics, 10)
    assert errors["ece"] == pytest.approx([0.45])
    assert errors["ace"] == pytest.approx([0.45])


def test_absent_class():
    """NaN for a class without a voxel in the image; a class absent from one scope alone keeps its errors there."""
    p = np.array([[0.7, 0.2, 0.1], [0.2, 0.7, 0.5], [0.1, 0.1, 0.4]])
    statistics = Case(p, np.array([0, 1, 1])).measure()
    for scope in SCOPES:
        for name in MONAI_NAMES:
            assert np.isnan(calibration_errors(statistics, 20, scope)[name]).tolist() == [False, False, True]
    assert calibration_errors(statistics, 20, "foreground")["mce"][0] == pytest.approx(0.2)  # no voxel of it there
    present = statistics + Case(p, np.array([0, 1, 2])).measure()
    assert np.isfinite(calibration_errors(present)["ece"]).all()


def test_one_voxel():
    """The gap of a single voxel is its error, whatever the average; it has no boundary."""
    statistics = Case(np.array([0.3, 0.7]).reshape(2, 1, 1, 1), np.ones((1, 1, 1), int)).measure()
    for scope in ("image", "foreground"):
        errors = calibration_errors(statistics, 20, scope)
        for name in MONAI_NAMES:
            np.testing.assert_allclose(errors[name], [np.nan, 0.3])
            assert errors[f"top_label_{name}"] == pytest.approx(0.3)
    assert all(np.isnan(values).all() for values in calibration_errors(statistics, 20, "boundary").values())


@pytest.mark.parametrize("regions", [None, ((1,), (2,))], ids=["labels", "regions"])
def test_everything_ignored(regions):
    """No voxel counts: NaN everywhere, without a warning."""
    labels = np.full((4, 5), IGNORE_LABEL)
    statistics = Case(np.full((2, 4, 5), 0.5), labels, regions, IGNORE_LABEL).measure()
    assert statistics.histograms.voxels.sum() == len(statistics.sample) == 0
    for scope in SCOPES:
        assert all(np.isnan(values).all() for values in calibration_errors(statistics, 20, scope).values())

"""More voxels in a bin than float32 can count: a sum of ones stops growing at 2^24."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from nnunet_calib import CaseStatistics, calibration_errors
from nnunet_calib.measuring.histograms import Histograms
from nnunet_calib.metrics.errors import reliability_curve
from tests.worlds.measured_cases import make_case

FLOAT32_COUNTS_TO = 2**24


def test_counts_beyond_float32():
    """Doubling a case's statistics 22 times changes errors by chance and AURC alone; one more voxel counts."""
    once = make_case(shape=(3, 4, 2)).measure()
    histograms = once.histograms
    for _ in range(22):
        histograms = histograms + histograms
    assert reliability_curve(replace(once, histograms=histograms), 1).counts[0, 0] == 24 * 2**22 > FLOAT32_COUNTS_TO
    for name, values in calibration_errors(once).items():
        if name.endswith("_by_chance") or name == "aurc":
            continue  # more voxels leave less to chance, and the mean over their number has more terms
        many = calibration_errors(replace(once, histograms=histograms))[name]
        np.testing.assert_allclose(many, values, rtol=1e-12, err_msg=name)
    one = Histograms.of(np.array([[0.5], [0.5], [0]], np.float32), np.array([1]), np.array([0], np.uint8))
    assert (histograms + one).scope("image").counts.sum(1).tolist() == [24 * 2**22 + 1] * 4


@pytest.mark.slow
def test_volume_beyond_float32():
    """17 million voxels in one bin against integer arithmetic; a float32 counter stops at 16,777,216 of them."""
    shape, unit = (272, 256, 256), 2**16  # probabilities are whole numbers of 1 / 65536
    n = np.prod(shape)
    k = np.arange(n, dtype=np.uint32).reshape(shape) % 53  # p of class 1 below 1 / 1200: one fine bin
    y = np.arange(n, dtype=np.uint32).reshape(shape) % 101 == 0
    y[:200] = False  # the boundary, and with it the distance transform, keeps to a part of the volume
    k.reshape(-1)[-11:] = 60_000  # another bin, which leaves an odd count that no float32 can hold
    p = np.empty((2, *shape), np.float32)
    np.divide(k, unit, out=p[1], casting="unsafe")
    np.subtract(1, p[1], out=p[0])
    statistics = CaseStatistics.from_probabilities(p, y, max_voxels=1000)

    high = k == 60_000
    counts = [int(n - high.sum()), int(high.sum())]
    positives = [int((y & ~high).sum()), int((y & high).sum())]
    sums = [int(k[~high].sum(dtype=np.int64)), int(k[high].sum(dtype=np.int64))]
    assert statistics.histograms.scope("image").counts[1, 0] == counts[0] > FLOAT32_COUNTS_TO
    gaps = [abs(Fraction(o) - Fraction(e, unit)) for o, e in zip(positives, sums, strict=True)]  # times the count
    curve, errors = reliability_curve(statistics), calibration_errors(statistics)
    assert curve.counts[1, [0, 18]].tolist() == curve.counts[0, [19, 1]].tolist() == counts
    assert errors["ece"] == pytest.approx([float(sum(gaps) / int(n))] * 2, rel=1e-12)
    expected = [gap / count for gap, count in zip(gaps, counts, strict=True)]
    assert errors["ace"] == pytest.approx([float(sum(expected) / 2)] * 2, rel=1e-12)
    assert errors["mce"] == pytest.approx([float(max(expected))] * 2, rel=1e-12)

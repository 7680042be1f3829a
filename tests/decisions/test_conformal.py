"""Split-conformal intervals: their ranks, and that they hold new cases as often as they say."""

import math

import numpy as np
import pytest

from nnunet_calib.decisions.conformal import conformal_interval, fewest_residuals


def test_ranks():
    """19 cases give their smallest and largest residual at 90 %, 39 the second ones; 18 give none."""
    residuals = np.random.default_rng(0).permutation(39) / 10
    assert fewest_residuals(0.9) == 19
    assert conformal_interval(np.arange(19.0), 0.9) == (0, 18)
    assert conformal_interval(residuals, 0.9) == (0.1, 3.7)
    assert math.isnan(conformal_interval(np.arange(18.0), 0.9).low)
    assert math.isnan(conformal_interval([], 0.9).high)


@pytest.mark.parametrize("n", [19, 50])
def test_coverage(n):
    """Over 4,000 splits of skewed residuals, the share of new cases inside is at least the level, and not far above."""
    rng = np.random.default_rng(n)
    inside = 0
    for _ in range(4000):
        *known, new = rng.standard_exponential(n + 1)
        low, high = conformal_interval(known, 0.9)
        inside += low <= new <= high
    share, error = inside / 4000, math.sqrt(0.9 * 0.1 / 4000)
    assert 0.9 - 3 * error < share < 0.9 + 2 / (n + 1) + 3 * error


def test_factors():
    """The limits as multiples of the expected volume."""
    assert conformal_interval(np.log(np.arange(1.0, 20)), 0.9).factors == pytest.approx((1, 19))

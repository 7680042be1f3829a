"""Paired differences: signs, p-values and corrections by hand, and intervals that hold the truth."""

import numpy as np
import pytest
from scipy import stats

from nnunet_calib.metrics.significance import holm, mean_interval, paired_difference, resampling_counts, signed_rank_p


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1, 2, 3, 4, 5, 6], 2 / 64),  # of 64 assignments of signs, only two are as one-sided
        ([-1, -2, -3, -4, -5, -6], 2 / 64),
        ([1, 2, 3, 4, 5], 2 / 32),  # five cases can give no less
        ([-1, 2, 3, 4, 5, 6], 4 / 64),  # and with the smallest rank negative: rank sums 0 and 1
        ([1, -2, 3, -4], 14 / 16),  # ranks 2 + 4 = 6 and 1 + 3 = 4; sums 0 to 4 occur in 7 of 16 assignments
        ([0.5], 1),
    ],
)
def test_signed_ranks_by_hand(differences, p):
    """Counted over all assignments of signs to the ranks; order, scale, zeros and missing values do not matter."""
    assert signed_rank_p(differences) == pytest.approx(p)
    assert signed_rank_p(np.array(differences[::-1]) / 7) == pytest.approx(p)
    assert signed_rank_p([0, np.nan, *differences, 0]) == pytest.approx(p)


def test_signed_ranks_of_many():
    """SciPy's own for the two samples, where it needs its approximation."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, (2, 200))
    expected = stats.wilcoxon(a + 0.2, b).pvalue
    assert 1e-4 < expected < 0.2
    assert signed_rank_p(a + 0.2 - b) == pytest.approx(expected)


def test_rounding_errors():
    """By hand: two differences of .01 share the ranks 1 and 2, although they differ in their last digits."""
    differences = [0.31 - 0.3, 0.11 - 0.12, 0.4 - 0.2, 0.9 - 0.6, 1e-17]
    assert abs(differences[0]) != abs(differences[1])
    # the sum of the negative ranks is 1.5; sums 0, 1.5, 1.5 and as many on the other side: 6 of 16 assignments
    assert signed_rank_p(differences) == pytest.approx(6 / 16)


def test_nothing_to_test():
    """Equal models differ with p = 1; without a case there is no p-value."""
    assert signed_rank_p([0.0, 0.0, 0.0]) == 1
    assert np.isnan(signed_rank_p([]))
    assert np.isnan(signed_rank_p([np.nan]))


@pytest.mark.parametrize(
    ("p", "corrected"),
    [
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),  # x 3, x 1, x 2: .04 rises to what the one before it has
        ([0.01, 0.02, 0.03, 0.04], [0.04, 0.06, 0.06, 0.06]),
        ([0.5, 0.6, 0.001], [1, 1, 0.003]),
        ([0.01, np.nan, 0.04], [0.02, np.nan, 0.04]),  # two tests
        ([0.02, 0.02], [0.04, 0.04]),
        ([0.03], [0.03]),
        ([np.nan], [np.nan]),
        ([], []),
    ],
)
def test_holm_by_hand(p, corrected):
    """The smallest of m is multiplied by m, the next by m - 1, and none falls below one before it or exceeds 1."""
    given = np.array(p)
    np.testing.assert_allclose(holm(given), corrected)
    np.testing.assert_array_equal(given, p)  # and left as they were


def test_difference():
    """Model - baseline over the pairs; its interval is that of the mean of the differences."""
    values, baseline = [0.5, 0.4, np.nan, 0.1, 0.9], [0.3, 0.1, 0.2, np.nan, 0.5]
    found = paired_difference(values, baseline, resampling_counts(5))
    assert found.pairs == 3
    assert found.mean == pytest.approx(0.3)
    assert (found.low, found.high) == pytest.approx((0.2, 0.4))  # the smallest and the largest: of three cases
    assert found.p == 0.25
    back = paired_difference(baseline, values, resampling_counts(5))
    assert (back.mean, back.low, back.high, back.p) == pytest.approx((-0.3, -found.high, -found.low, 0.25))
    whole = paired_difference(values[:2], baseline[:2], resampling_counts(2))
    assert (whole.low, whole.high) == mean_interval([values[i] - baseline[i] for i in range(2)])


def test_difference_without_pairs():
    """No value, and no warning."""
    found = paired_difference([0.5, np.nan], [np.nan, 0.5], resampling_counts(2))
    assert found.pairs == 0
    assert np.isnan(found[1:]).all()


def test_coverage():
    """Of 12 cases that differ widely from each other: 95 % of the intervals hold the true difference.

    What both models share of a case cancels: the interval of unpaired means would be ten times as wide.
    """
    counts, rng = resampling_counts(12, 1000), np.random.default_rng(0)
    found = []
    for _ in range(2000):
        baseline = rng.normal(0.5, 0.3, 12)
        found.append(paired_difference(baseline + rng.normal(-0.02, 0.04, 12), baseline, counts))
    assert 0.93 < np.mean([f.low <= -0.02 <= f.high for f in found]) < 0.96
    assert np.mean([f.high - f.low for f in found]) < 0.06


def test_p_is_uniform_without_a_difference():
    """5 % of the tests of equal models find something at 5 %."""
    rng = np.random.default_rng(0)
    p = [signed_rank_p(rng.normal(0, 1, 20)) for _ in range(2000)]
    assert 0.04 < np.mean(np.array(p) <= 0.05) < 0.06

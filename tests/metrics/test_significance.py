"""Bootstrap intervals: against SciPy's, on data whose mean is known, and where values are missing."""

import numpy as np
import pytest
from scipy import stats

from nnunet_calib.metrics.significance import (
    RESAMPLES,
    mean_interval,
    percentile_interval,
    ratio_intervals,
    resampled_means,
    resampling_counts,
    signed_rank_p,
    training_difference,
)


def test_scipy():
    """Quantiles of the resampled means at the levels that the widening gives, as SciPy's bootstrap finds them."""
    values = np.random.default_rng(0).gamma(2, 1, 15)
    tail = stats.norm.cdf(-np.sqrt(15 / 14) * stats.t.ppf(0.975, 14))
    theirs = stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=1 - 2 * tail,
        method="percentile",
        n_resamples=100_000,
        rng=np.random.default_rng(1),
    )
    assert mean_interval(values, resamples=100_000) == pytest.approx(theirs.confidence_interval, rel=0.01)


def test_two_cases():
    """By hand: each case is drawn in half of all draws, and the interval is that of the two values."""
    assert mean_interval([1.0, 3.0]) == (1, 3)
    counts = resampling_counts(2)
    assert counts.shape == (RESAMPLES, 2)
    assert (counts.sum(1) == 2).all()
    np.testing.assert_array_equal(resampled_means([1, 3], counts), (counts @ [1, 3]) / 2)
    assert counts.mean(0) == pytest.approx([1, 1], abs=0.03)


@pytest.mark.parametrize("values", [[], [0.5], [np.nan, 0.5, np.nan], [np.nan, np.nan]])
def test_too_few(values):
    """One case says nothing of others."""
    assert np.isnan(mean_interval(values)).all()


def test_absent_values():
    """Cases without a value are as if they were not there; resamples of such cases alone have none."""
    values = [0.1, np.nan, 0.4, 0.2, np.nan]
    assert mean_interval(values) == mean_interval([0.1, 0.4, 0.2])
    counts = np.array([[0, 5, 0, 0, 0], [1, 1, 2, 0, 1]])
    np.testing.assert_allclose(resampled_means(values, counts), [np.nan, 0.3])
    limits = percentile_interval(np.array([np.nan, 1, np.nan, 2]), 2)
    assert limits == (1, 2)


def test_no_case():
    """Nothing can be drawn."""
    with pytest.raises(ValueError, match="expected at least one case to resample, got 0"):
        resampling_counts(0)


@pytest.mark.parametrize(
    ("draw", "truth", "least"),
    [(lambda rng: rng.normal(0.1, 0.03, 10), 0.1, 0.94), (lambda rng: rng.gamma(2, 0.05, 10), 0.1, 0.92)],
    ids=["normal", "skewed"],
)
def test_coverage(draw, truth, least):
    """Of ten cases: close to 95 % of the intervals hold the true mean; plain percentiles hold 91 % and 89 %."""
    counts = resampling_counts(10, 1000)
    found = [percentile_interval(resampled_means(draw(np.random.default_rng(s)), counts), 10) for s in range(1000)]
    assert least < np.mean([low <= truth <= high for low, high in found]) < 0.97


def test_level():
    """A higher level gives a wider interval around the mean."""
    values = np.random.default_rng(3).normal(size=30)
    (a, b), (c, d) = mean_interval(values, level=0.8), mean_interval(values, level=0.99)
    assert c < a < values.mean() < b < d


def test_ratios():
    """Ratios of sums over the drawn cases: with equal denominators those are means, and have the same limits."""
    values = np.random.default_rng(0).random((12, 2, 3))
    low, high = ratio_intervals(5 * values, np.full_like(values, 5), resamples=2_000)
    assert low.shape == high.shape == (2, 3)
    for at in np.ndindex(2, 3):
        assert (low[at], high[at]) == pytest.approx(mean_interval(values[(slice(None), *at)], resamples=2_000))


def test_ratios_by_hand():
    """Two cases: the limits are those of either alone, and large cases pull the pooled ratio, not the limits."""
    low, high = ratio_intervals(np.array([1.0, 90.0]), np.array([10.0, 100.0]))
    assert (float(low), float(high)) == pytest.approx((0.1, 0.9))


@pytest.mark.parametrize("below", [[0.0, 0.0, 0.0], [4.0, 0.0, 0.0]])
def test_ratios_of_too_few(below):
    """A bin that fewer than two cases fill has no interval; no case at all has none either."""
    low, high = ratio_intervals(np.ones(3), np.array(below))
    assert np.isnan([low, high]).all()
    assert np.isnan(ratio_intervals(np.zeros((0, 2)), np.zeros((0, 2)))).all()


def test_differences_of_folds_by_hand():
    """Differences 1, 2, 6 of a cross-validation of five folds: mean 3, s^2 = 7, and (1/3 + 1/4) 7 below the root."""
    found = training_difference([1, 2, np.nan, 6], 1 / 4)
    error = np.sqrt(49 / 12)
    assert (found.folds, found.mean) == (3, 3)
    assert [found.low, found.high] == pytest.approx([3 - 4.3026527 * error, 3 + 4.3026527 * error])
    assert found.p == pytest.approx(2 * stats.t.sf(3 / error, 2))
    opposite = training_difference([-1, -2, -6], 1 / 4)
    assert (opposite.p, opposite.low) == pytest.approx((found.p, -found.high))
    wider = training_difference([1, 2, 6], 1 / 4, level=0.99)
    assert wider.low < found.low < found.high < wider.high


def test_without_overlap_it_is_the_plain_test():
    """Of trainings that share no case, SciPy's t-test of one sample."""
    values = np.random.default_rng(0).normal(0.5, 1, 7)
    theirs = stats.ttest_1samp(values, 0)
    found = training_difference(values, 0)
    assert found.p == pytest.approx(theirs.pvalue)
    assert (found.low, found.high) == pytest.approx(theirs.confidence_interval(0.95))


@pytest.mark.parametrize(("values", "p"), [([0.0, 0, 0], 1), ([0.25, 0.25, 0.25], 0)])
def test_equal_folds(values, p):
    """Without any spread the interval is a point."""
    found = training_difference(values, 0.25)
    assert (found.low, found.high, found.p) == (values[0], values[0], p)


@pytest.mark.parametrize("values", [[], [0.1], [0.1, 0.2], [0.1, np.nan, 0.2, np.nan]])
def test_too_few_folds(values):
    """No variance over trainings is taken from them."""
    found = training_difference(values, 0.25)
    assert np.isnan([found.low, found.high, found.p]).all()
    assert found.folds == np.count_nonzero(~np.isnan(values))


@pytest.mark.parametrize("folds", [3, 5])
def test_simulated_cross_validations(folds):
    """With the correlation that the test assumes, p is uniform, and 95 % of the intervals hold the difference.

    The plain t-test takes the folds as independent, and finds a difference where there is none far too often.
    """
    test_to_train = 1 / (folds - 1)
    correlation = test_to_train / (1 + test_to_train)
    rng = np.random.default_rng(0)
    common, own = rng.standard_normal((4000, 1)), rng.standard_normal((4000, folds))
    differences = 0.3 + 0.1 * (np.sqrt(correlation) * common + np.sqrt(1 - correlation) * own)
    found = [training_difference(d - 0.3, test_to_train) for d in differences]
    assert stats.kstest([f.p for f in found], "uniform").pvalue > 0.01
    inside = np.mean([f.low <= 0 <= f.high for f in found])
    assert inside == pytest.approx(0.95, abs=3 * np.sqrt(0.95 * 0.05 / 4000))
    plain = [training_difference(d - 0.3, 0).p < 0.05 for d in differences]
    assert np.mean(plain) > 0.1


def test_simulated_trainings():
    """Two equal methods, whose trainings scatter as their cases do: no more than 5 % are called different.

    The signed-rank test of the cases knows nothing of trainings, and calls a quarter of them different.
    """
    rng = np.random.default_rng(1)
    calls = []
    for _ in range(400):
        training, cases = rng.normal(0, 0.01, 5), rng.normal(0, 0.03, (5, 20))
        differences = training[:, None] + cases
        calls.append(
            (signed_rank_p(differences.ravel()) < 0.05, training_difference(differences.mean(1), 0.25).p < 0.05)
        )
    of_cases, of_trainings = np.mean(calls, axis=0)
    assert of_cases > 0.2
    assert of_trainings < 0.05

"""Bootstrap intervals of means over cases and of differences between models, and paired tests."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

RESAMPLES = 10_000
LEVEL = 0.95
LEAST_FOLDS = 3  # from which a variance over trainings is taken
_SEED = 20240306


def resampling_counts(cases: int, resamples: int = RESAMPLES) -> NDArray[np.float64]:
    """Draw how often each resample has each case, (resamples, cases); seeded, so that all values share resamples.

    Raises:
        ValueError: for less than one case.
    """
    if cases < 1:
        raise ValueError(f"expected at least one case to resample, got {cases}")
    draws = np.random.default_rng(_SEED).multinomial(cases, np.full(cases, 1 / cases), resamples)
    return draws.astype(np.float64)


def resampled_means(values: ArrayLike, counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of each resample, (resamples,).

    Args:
        values: (cases,); NaN for a case without a value (an absent class), which is left out.
        counts: (resamples, cases), from `resampling_counts`.

    Returns:
        The means; NaN for a resample that has only cases without a value.
    """
    v = np.asarray(values, dtype=np.float64)
    known = ~np.isnan(v)
    drawn = counts[:, known]
    total = drawn.sum(1)
    means = np.full(len(counts), np.nan)
    np.divide(drawn @ v[known], total, out=means, where=total > 0)
    return means


@cache
def _lower_tail(cases: int, level: float) -> float:
    """Return the probability of the lower quantile; SciPy's distributions take as long as the quantiles themselves."""
    return float(stats.norm.cdf(-np.sqrt(cases / (cases - 1)) * stats.t.ppf((1 + level) / 2, cases - 1)))


def percentile_interval(means: NDArray[np.float64], cases: int, level: float = LEVEL) -> tuple[float, float]:
    r"""Return the interval between two quantiles of resampled means, widened for few cases.

    For n cases plain percentile intervals are too short: by the ratio of the normal to Student's t, and by
    :math:`\sqrt{(n - 1)/n}`. So the quantiles are taken at

    .. math:: \Phi\Big(\mp\sqrt{\frac{n}{n - 1}} \, t_{(1 + \text{level})/2,\, n - 1}\Big)

    which is 1.6 % and 98.4 % instead of 2.5 % and 97.5 % for n = 20 and level = 0.95. No interval reaches beyond the
    smallest and the largest case.

    Args:
        means: (resamples,); NaN, of a resample without a value, is left out.
        cases: n, the number of cases with a value.
        level: probability that such an interval contains the true mean.

    Returns:
        The lower and the upper limit; NaN for fewer than two cases.

    References:
        Hesterberg, What teachers should know about the bootstrap, The American Statistician 69, 2015, section 5.3.
    """
    known = means[~np.isnan(means)]
    if cases < 2 or not known.size:
        return float("nan"), float("nan")
    low = _lower_tail(cases, level)
    lower, upper = np.quantile(known, (low, 1 - low))
    return float(lower), float(upper)


def pooled_interval(
    resampled: NDArray[np.float64], value: float, cases: int, *, lowest: float = 0.0, level: float = LEVEL
) -> tuple[float, float]:
    """Return the bootstrap interval of an error of pooled voxels, shifted by the bias of the resamples.

    Noise increases absolute values, and resamples have more of it than the cases themselves. In simulations with 10 and
    30 cases, plain percentiles contained the error of very many cases in 65 to 95 % of the experiments, shifted ones in
    88 to 97 %.

    Args:
        resampled: (resamples,) errors of pooled resamples; NaN is left out.
        value: error of the pooled cases themselves.
        cases: number of cases with a voxel.
        lowest: the smallest possible error.
        level: probability that such an interval contains the true error.

    Returns:
        The lower and the upper limit; NaN for fewer than two cases.
    """
    known = resampled[~np.isnan(resampled)]
    low, high = percentile_interval(known - (known.mean() - value) if known.size else known, cases, level)
    return low if low >= lowest or np.isnan(low) else lowest, high


def mean_interval(values: ArrayLike, *, level: float = LEVEL, resamples: int = RESAMPLES) -> tuple[float, float]:
    """Return the bootstrap interval of the mean over cases, which resamples cases, not voxels.

    Args:
        values: (cases,), one value per case; NaN is left out.
        level: probability that such an interval contains the true mean.
        resamples: number of resamples, drawn with a fixed seed.

    Returns:
        The lower and the upper limit, see `percentile_interval`; NaN for fewer than two values.
    """
    v = np.asarray(values, dtype=np.float64)
    v = v[~np.isnan(v)]
    if v.size < 2:
        return float("nan"), float("nan")
    return percentile_interval(resampled_means(v, resampling_counts(v.size, resamples)), v.size, level)


def ratio_intervals(
    numerators: NDArray[Any], denominators: NDArray[Any], *, level: float = LEVEL, resamples: int = 2_000
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return bootstrap intervals of ratios of sums over cases, such as the observed frequency in each bin.

    Args:
        numerators: (cases, ...), terms of the numerator.
        denominators: (cases, ...), terms of the denominator.
        level: probability that such an interval contains the true ratio.
        resamples: number of resamples, drawn with a fixed seed.

    Returns:
        The lower and the upper limits, (...); NaN where fewer than two cases have a denominator above 0.
    """
    above, below = (np.asarray(x, np.float64) for x in (numerators, denominators))
    shape = above.shape[1:]
    low, high = np.full(shape, np.nan), np.full(shape, np.nan)
    if not len(above):
        return low, high
    counts = resampling_counts(len(above), resamples)
    for at in np.ndindex(shape):  # one by one: resamples take memory
        total, weight = (counts @ x[(slice(None), *at)] for x in (above, below))
        ratios = np.divide(total, weight, out=np.full(resamples, np.nan), where=weight > 0)
        low[at], high[at] = percentile_interval(ratios, int(np.count_nonzero(below[(slice(None), *at)])), level)
    return low, high


class PairedDifference(NamedTuple):
    """The difference of a model from a baseline.

    Attributes:
        pairs: number of cases in which both have a value.
        mean: mean difference, model - baseline; NaN without a pair.
        low: lower limit of its bootstrap interval; NaN for fewer than two pairs.
        high: upper limit of the interval.
        p: p-value of `signed_rank_p`.
    """

    pairs: int
    mean: float
    low: float
    high: float
    p: float


def paired_difference(values: ArrayLike, baseline: ArrayLike, counts: NDArray[np.float64]) -> PairedDifference:
    """Return the difference of two models over the same cases, model - baseline.

    Args:
        values: (cases,) values of the model; NaN for a case without a value.
        baseline: (cases,) values of the baseline, in the same order.
        counts: (resamples, cases), from `resampling_counts`.

    Returns:
        The mean difference with its interval, see `percentile_interval`, and the p-value.
    """
    differences = np.asarray(values, dtype=np.float64) - np.asarray(baseline, dtype=np.float64)
    known = differences[~np.isnan(differences)]
    low, high = percentile_interval(resampled_means(differences, counts), known.size)
    mean = float(known.mean()) if known.size else float("nan")
    return PairedDifference(known.size, mean, low, high, signed_rank_p(known))


class TrainingDifference(NamedTuple):
    """Difference of two methods over repeated trainings, one of each method in every fold.

    Attributes:
        folds: the folds in which both have a value.
        mean: of the folds' differences, method - baseline; NaN without a fold.
        low: lower limit of its interval over trainings; NaN for fewer than `LEAST_FOLDS` folds.
        high: its upper limit, likewise.
        p: two-sided p-value that the methods do not differ, likewise.
    """

    folds: int
    mean: float
    low: float
    high: float
    p: float


def training_difference(differences: ArrayLike, test_to_train: float, *, level: float = LEVEL) -> TrainingDifference:
    r"""Return the corrected resampled t-test of two methods over the folds of a cross-validation.

    Each fold trains both methods anew, on other cases, and tests them on cases of its own. So the differences
    :math:`d_1, \ldots, d_k` of the k folds vary with the training and with the cases. They are not independent: any two
    folds share most of their training cases. If all pairs of folds have the same correlation :math:`\rho`, the mean
    has the variance

    .. math:: \operatorname{Var}(\bar d) = \frac{\sigma^2}{k} \big(1 + (k - 1) \rho\big)

    and the sample variance :math:`s^2` has the expectation :math:`\sigma^2 (1 - \rho)`, so that

    .. math:: \operatorname{Var}(\bar d) = \Big(\frac 1 k + \frac{\rho}{1 - \rho}\Big) \operatorname{E} s^2.

    A plain t-test leaves out the second summand. Nadeau and Bengio put :math:`\rho = n_\text{test} / (n_\text{test} +
    n_\text{train})`, which makes it :math:`n_\text{test} / n_\text{train}`: 1/4 in a cross-validation of five folds.
    For normal differences with this correlation

    .. math:: t = \bar d \Big/ \sqrt{\Big(\frac 1 k + \frac{n_\text{test}}{n_\text{train}}\Big) s^2}

    has Student's t distribution with k - 1 degrees of freedom when the methods do not differ. The correlation is a
    rule of thumb, and no unbiased estimate of this variance exists.

    Args:
        differences: (folds,), method - baseline, mean over the cases of a fold; NaN is left out.
        test_to_train: number of tested cases divided by the number of training cases, in a fold.
        level: the probability with which the interval holds the true difference.

    Returns:
        The mean with its interval and the p-value.

    References:
        Nadeau and Bengio, Inference for the generalization error, Machine Learning 52, 2003. Bengio and Grandvalet, No
        unbiased estimator of the variance of k-fold cross-validation, JMLR 5, 2004.
    """
    d = np.asarray(differences, dtype=np.float64)
    d = d[~np.isnan(d)]
    mean = float(d.mean()) if d.size else float("nan")
    if d.size < LEAST_FOLDS:
        return TrainingDifference(d.size, mean, *[float("nan")] * 3)
    error = float(np.sqrt((1 / d.size + test_to_train) * d.var(ddof=1)))
    width = float(stats.t.ppf((1 + level) / 2, d.size - 1)) * error
    t = abs(mean) / error if error else float("inf") if mean else 0.0
    return TrainingDifference(d.size, mean, mean - width, mean + width, float(2 * stats.t.sf(t, d.size - 1)))


def signed_rank_p(differences: ArrayLike) -> float:
    """Return the two-sided p-value of Wilcoxon's signed-rank test that differences are symmetric about zero.

    Differences of zero are left out, as Wilcoxon did, and values equal to 10 digits of the largest one are ties. The
    p-value is exact for up to 50 differences without ties; otherwise `scipy.stats.wilcoxon` chooses the method. The
    smallest p-value of n differences is 2^(1 - n).

    Args:
        differences: (cases,), one per pair; NaN is left out.

    Returns:
        The p-value; 1 if all differences are zero, NaN if there is none.

    References:
        Wilcoxon, Individual comparisons by ranking methods, Biometrics Bulletin 1, 1945.
    """
    d = np.asarray(differences, dtype=np.float64)
    d = d[~np.isnan(d)]
    if not d.size:
        return float("nan")
    if not d.any():
        return 1.0
    d = np.round(d / np.abs(d).max(), 10)  # so that rounding errors do not decide ranks
    return float(stats.wilcoxon(d[d != 0]).pvalue)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    r"""Correct p-values of m tests so that the probability of any false rejection is at most the nominal level.

    .. math:: \tilde p_{(k)} = \max_{j \le k} \min\big((m - j + 1) \, p_{(j)},\; 1\big)

    with the p-values in ascending order.

    Args:
        p_values: (tests,); NaN for a test that could not be made, which is not counted.

    Returns:
        The corrected p-values in the given order, NaN for NaN.

    References:
        Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6, 1979.
    """
    p = np.array(p_values, dtype=np.float64)
    order = np.argsort(p)[: np.count_nonzero(~np.isnan(p))]  # NaN sorts last
    p[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(order.size, 0, -1)), 1)
    return p

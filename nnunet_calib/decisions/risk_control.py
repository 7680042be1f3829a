r"""Conformal risk control: choose a threshold whose expected loss in a new case is at most what was asked for.

A case's loss at a threshold is a number in [0, 1] that can only rise, or only fall, with the threshold: the share of a
structure that the mask misses, or the share of the mask that is wrong. With n cases that are exchangeable with the new
one, the threshold is the boldest that keeps

.. math:: \frac{n}{n + 1} \bar L(t) + \frac{1}{n + 1} \le \alpha

where :math:`\bar L` is the mean loss of the n cases. The 1 / (n + 1) stands for the new case, whose loss may be 1.

References:
    Angelopoulos, Bates, Fisch, Lei and Schuster, Conformal risk control, ICLR 2024.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from nnunet_calib.measuring.fine_histogram import FINE_BINS
from nnunet_calib.measuring.histograms import Histograms

THRESHOLDS: NDArray[np.float64] = np.arange(FINE_BINS) / FINE_BINS  # the lower edges of the fine bins


def missed_shares(histograms: Histograms) -> NDArray[np.float64]:
    r"""Return which share of each structure lies below each threshold.

    .. math:: m_c(t) = 1 - \frac{|\{i : y_i = c, p_{ic} \ge t\}|}{|\{i : y_i = c\}|}

    Args:
        histograms: of the whole image, from `Histograms.scope`.

    Returns:
        (heads, thresholds), rising along the thresholds; NaN for a structure that the case has not.
    """
    found = _at_least(histograms.positives)
    return 1 - _ratio(found, found[:, :1])


def wrong_shares(histograms: Histograms) -> NDArray[np.float64]:
    r"""Return which share of the mask at each threshold, or at a higher one, is not of the structure.

    .. math:: w_c(t) = \max_{s \ge t} \left(1 - \frac{|\{i : y_i = c, p_{ic} \ge s\}|}{|\{i : p_{ic} \ge s\}|}\right)

    An empty mask has nothing wrong. The maximum makes a share that can rise and fall along the thresholds one that only
    falls, as risk control needs.

    Args:
        histograms: of the whole image, from `Histograms.scope`.

    Returns:
        (heads, thresholds), falling along the thresholds; 1 where a case without the structure has a mask.
    """
    wrong = np.nan_to_num(1 - _ratio(_at_least(histograms.positives), _at_least(histograms.counts)))
    return np.maximum.accumulate(wrong[:, ::-1], axis=1)[:, ::-1]


def relative_sizes(histograms: Histograms) -> NDArray[np.float64]:
    """Return how many times as large as the structure the mask at each threshold is.

    Args:
        histograms: of the whole image, from `Histograms.scope`.

    Returns:
        (heads, thresholds); NaN for a structure that the case has not.
    """
    return _ratio(_at_least(histograms.counts), _at_least(histograms.positives)[:, :1])


def _at_least(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many voxels of each head have at least each threshold; the last row of `counts` is the top label."""
    return counts[:-1, ::-1].cumsum(1)[:, ::-1]


def _ratio(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    whole = np.broadcast_to(whole, part.shape)
    ratio = np.full(part.shape, np.nan)
    np.divide(part, whole, out=ratio, where=whole > 0)
    return ratio


def controlled_index(total_losses: NDArray[np.float64], cases: int, alpha: float, *, rising: bool) -> int | None:
    """Return the position of the boldest threshold whose expected loss in a new case is at most `alpha`.

    Args:
        total_losses: (thresholds,), sums over the cases of losses in [0, 1], rising or falling with the threshold.
        cases: n, of how many cases the sums are.
        alpha: the expected loss that is asked for.
        rising: whether the losses rise with the threshold, so that the largest is the boldest; else the smallest is.

    Returns:
        The position, or None if no threshold keeps the promise, as with fewer than `fewest_cases(alpha)` cases.
    """
    # compared as n L + 1 <= alpha (n + 1), with room for the rounding of sums
    kept = np.flatnonzero(total_losses + 1 <= alpha * (cases + 1) + 1e-9 * (cases + 1))
    if not kept.size:
        return None
    return int(kept[-1] if rising else kept[0])


def fewest_cases(alpha: float) -> int:
    """Return with how many cases an expected loss of `alpha` can be promised at all."""
    return math.ceil(1 / alpha - 1 - 1e-9)

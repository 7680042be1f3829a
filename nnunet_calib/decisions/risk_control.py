r"""Conformal risk control: thresholds whose expected loss in a new case is at most a given level.

The loss of a case at a threshold lies in [0, 1] and only rises, or only falls, with the threshold: the share of a
structure that the mask misses, or the share of the mask that is wrong. Given n cases that are exchangeable with the new
one, the chosen threshold is the boldest with

.. math:: \frac{n}{n + 1} \bar L(t) + \frac{1}{n + 1} \le \alpha

where :math:`\bar L` is the mean loss of the n cases. The term 1 / (n + 1) stands for the new case, whose loss may be 1.

References:
    Angelopoulos, Bates, Fisch, Lei and Schuster, Conformal risk control, ICLR 2024.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_calib.measuring.fine_histogram import FINE_BINS
from nnunet_calib.measuring.histograms import Histograms

THRESHOLDS: NDArray[np.float64] = np.arange(FINE_BINS) / FINE_BINS  # the lower edges of the fine bins


def missed_shares(histograms: Histograms) -> NDArray[np.float64]:
    r"""Return the share of each structure that lies below each threshold.

    .. math:: m_c(t) = 1 - \frac{|\{i : y_i = c, p_{ic} \ge t\}|}{|\{i : y_i = c\}|}

    Args:
        histograms: histograms of the whole image, from `Histograms.scope`.

    Returns:
        (heads, thresholds), rising along the thresholds; NaN for a structure that the case lacks.
    """
    found = _at_least(histograms.positives)
    return 1 - ratio(found, found[:, :1])


def wrong_shares(histograms: Histograms) -> NDArray[np.float64]:
    r"""Return the largest share of the mask outside the structure, at each threshold or a higher one.

    .. math:: w_c(t) = \max_{s \ge t} \left(1 - \frac{|\{i : y_i = c, p_{ic} \ge s\}|}{|\{i : p_{ic} \ge s\}|}\right)

    An empty mask has a share of 0. The share itself can rise and fall along the thresholds; the maximum only falls, as
    risk control needs.

    Args:
        histograms: histograms of the whole image, from `Histograms.scope`.

    Returns:
        (heads, thresholds), falling along the thresholds; 1 where a case without the structure has a mask.
    """
    wrong = np.nan_to_num(1 - ratio(_at_least(histograms.positives), _at_least(histograms.counts)))
    return np.maximum.accumulate(wrong[:, ::-1], axis=1)[:, ::-1]


def relative_sizes(histograms: Histograms) -> NDArray[np.float64]:
    """Return the size of the mask at each threshold, relative to the structure.

    Args:
        histograms: histograms of the whole image, from `Histograms.scope`.

    Returns:
        (heads, thresholds); NaN for a structure that the case lacks.
    """
    return ratio(_at_least(histograms.counts), _at_least(histograms.positives)[:, :1])


def _at_least(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count the voxels of each head at or above each threshold, without the top label in the last row of `counts`."""
    return counts[:-1, ::-1].cumsum(1)[:, ::-1]


def ratio(part: NDArray[Any], whole: NDArray[Any]) -> NDArray[np.float64]:
    """Return part / whole, which is broadcast to the shape of the part; NaN where the whole is 0."""
    whole = np.broadcast_to(whole, part.shape)
    found = np.full(part.shape, np.nan)
    np.divide(part, whole, out=found, where=whole > 0)
    return found


def controlled_index(total_losses: NDArray[np.float64], cases: int, alpha: float, *, rising: bool) -> int | None:
    """Return the index of the boldest threshold whose expected loss in a new case is at most `alpha`.

    Args:
        total_losses: (thresholds,), sums over the cases of losses in [0, 1], rising or falling with the threshold.
        cases: number n of cases in the sums.
        alpha: largest allowed expected loss.
        rising: whether the losses rise with the threshold: then the largest allowed threshold is the boldest, else the
            smallest.

    Returns:
        The index, or None if no threshold keeps the promise, as with fewer than `fewest_cases(alpha)` cases.
    """
    # compared as n L + 1 <= alpha (n + 1), with room for the rounding of sums
    kept = np.flatnonzero(total_losses + 1 <= alpha * (cases + 1) + 1e-9 * (cases + 1))
    if not kept.size:
        return None
    return int(kept[-1] if rising else kept[0])


def fewest_cases(alpha: float) -> int:
    """Return the smallest number of cases that can promise an expected loss of `alpha`."""
    return math.ceil(1 / alpha - 1 - 1e-9)

"""How well one quantity of the cases orders them by another."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def mean_ranks(values: ArrayLike) -> NDArray[np.float64]:
    """Return the rank of each value, from 1; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(np.asarray(values, np.float64), return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[inverse], np.float64)


def spearman(one: ArrayLike, other: ArrayLike) -> float:
    """Return Spearman's rank correlation; NaN for fewer than two values, or if all values of one are equal."""
    a, b = mean_ranks(one), mean_ranks(other)
    a, b = a - a.mean() if a.size else a, b - b.mean() if b.size else b
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else float("nan")


def auroc(scores: ArrayLike, positive: ArrayLike) -> float:
    """Return the area under the ROC curve: the chance that a positive scores higher than a negative.

    Args:
        scores: (n,); equal scores count one half.
        positive: (n,) bool.

    Returns:
        A share from 0 to 1; NaN without a positive or without a negative.
    """
    chosen = np.asarray(positive, bool)
    n, m = int(chosen.sum()), int((~chosen).sum())
    if not n * m:
        return float("nan")
    return float((mean_ranks(scores)[chosen].sum() - n * (n + 1) / 2) / (n * m))

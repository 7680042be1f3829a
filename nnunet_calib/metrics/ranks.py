"""How well one quantity of the cases orders them by another."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from nnunet_calib.metrics.ranking import auroc


def spearman(one: ArrayLike, other: ArrayLike) -> float:
    """Return Spearman's rank correlation; NaN for fewer than two values, or if all values of one are equal."""
    a, b = rankdata(one), rankdata(other)
    a, b = a - a.mean() if a.size else a, b - b.mean() if b.size else b
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > 0 else float("nan")


def auroc_of_scores(scores: ArrayLike, positive: ArrayLike) -> float:
    """Return the area under the ROC curve: the chance that a positive scores higher than a negative; ties count half.

    Args:
        scores: (n,).
        positive: (n,) bool.

    Returns:
        A share from 0 to 1; NaN without a positive or without a negative.
    """
    values, place = np.unique(np.asarray(scores, np.float64), return_inverse=True)
    chosen = np.asarray(positive, bool)
    positives, negatives = (np.bincount(place[which], minlength=len(values)) for which in (chosen, ~chosen))
    return auroc(positives.astype(np.float64), negatives.astype(np.float64))

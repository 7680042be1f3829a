"""Split-conformal intervals of the volume of a structure, from cases whose true volume is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class LogInterval(NamedTuple):
    """Limits of log(true volume / expected volume) in a new case; NaN where the cases are too few."""

    low: float
    high: float

    @property
    def factors(self) -> tuple[float, float]:
        """Limits of the true volume as multiples of the expected one."""
        return math.exp(self.low), math.exp(self.high)


def conformal_interval(residuals: Sequence[float], level: float) -> LogInterval:
    r"""Return limits that hold the residual of a new, exchangeable case with a probability of at least a level.

    With n residuals and :math:`\alpha = 1 - level`, the limits are the residual of rank
    :math:`\lceil (n + 1)(1 - \alpha / 2) \rceil` and that of the mirrored rank, so that either tail has at most
    :math:`\alpha / 2`.

    Args:
        residuals: one of each case, none of them NaN.
        level: between 0 and 1.

    Returns:
        The limits; NaN for fewer than `fewest_residuals(level)`.

    References:
        Lei, G'Sell, Rinaldo, Tibshirani and Wasserman, Distribution-free predictive inference for
        regression, JASA 2018.
    """
    ordered, n = np.sort(residuals), len(residuals)
    rank = math.ceil((n + 1) * (1 + level) / 2 - 1e-9)
    if rank > n:
        return LogInterval(float("nan"), float("nan"))
    return LogInterval(float(ordered[n - rank]), float(ordered[rank - 1]))


def fewest_residuals(level: float) -> int:
    """Return the smallest number of cases that give an interval of a level."""
    return math.ceil((1 + level) / (1 - level) - 1e-9)

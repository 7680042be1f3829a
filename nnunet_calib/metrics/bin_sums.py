r"""Equal-width bins of probabilities as sums that add up over cases, and the errors that they give.

With n_m voxels in a bin, e_m their mean probability and o_m the frequency of the class among them, a perfectly
calibrated model has gaps |o_m - e_m| too: the number of the class's voxels is a sum of n_m Bernoulli variables with the
mean n_m e_m. Its mean absolute deviation is what chance leaves of n_m |o_m - e_m|.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln

from nnunet_calib.measuring.case_statistics import CaseStatistics
from nnunet_calib.measuring.fine_histogram import FINE_BINS

_NORMAL_FROM = 1e4  # variance from which the half-normal mean is exact to 1e-5
_SMALLEST = 1e-6  # p of the matched binomial; a smaller one changes its deviation by less


@dataclass(frozen=True)
class BinSums:
    """Sums over the voxels in each bin, of the heads and of the top label (last row).

    Attributes:
        counts: (..., heads + 1, M) number of voxels.
        probability: (..., heads + 1, M) sum of the probability, or confidence.
        positives: (..., heads + 1, M) voxels of the class, or whose top label is right.
        variance: (..., heads + 1, M) variance of `positives` for a perfectly calibrated model with these probabilities,
            if voxels are independent: sum of p (1 - p), from fine bins, up to 0.1 % too large.
    """

    counts: NDArray[Any]
    probability: NDArray[np.float64]
    positives: NDArray[Any]
    variance: NDArray[np.float64]

    @classmethod
    def of(cls, statistics: CaseStatistics, num_bins: int, scope: str = "image") -> BinSums:
        """Return the sums of one case, or of several pooled.

        Raises:
            ValueError: for an unknown scope, or for a number of bins that does not divide 1200.
        """
        if num_bins < 1 or FINE_BINS % num_bins:
            raise ValueError(
                f"expected num_bins to divide {FINE_BINS}, got {num_bins}: use 10, 15, 20 or 25, for example"
            )
        h = statistics.histograms.scope(scope)
        variance = h.probability - h.probability**2 / np.maximum(h.counts, 1e-300)
        sums = (h.counts, h.probability, h.positives, variance)
        return cls(*(x.reshape(len(x), num_bins, -1).sum(2) for x in sums))

    def map(self, function: Callable[[NDArray[Any]], NDArray[Any]]) -> BinSums:
        """Return the sums with a function applied to each array."""
        return BinSums(*(function(getattr(self, f.name)) for f in fields(self)))

    @classmethod
    def stack(cls, parts: Sequence[BinSums]) -> BinSums:
        """Return the sums of parts along a new first axis."""
        return cls(*(np.stack([getattr(part, f.name) for part in parts]) for f in fields(cls)))

    def errors(self, min_count: float = 1) -> dict[str, NDArray[np.float64]]:
        """Return ECE, ACE and MCE of every row, and what chance leaves of ECE and ACE, see `calibration_errors`.

        Arrays are (..., heads + 1), NaN without a bin that counts.
        """
        by_chance = self._means(self.chance_deviations() / np.maximum(self.counts, 1e-300), min_count)
        return self.gap_errors(min_count) | {f"{name}_by_chance": by_chance[name] for name in ("ece", "ace")}

    def gap_errors(self, min_count: float = 1) -> dict[str, NDArray[np.float64]]:
        """Return ECE, ACE and MCE of every row, as `errors`."""
        with np.errstate(invalid="ignore", divide="ignore"):
            gap = np.abs(self.positives / self.counts - self.probability / self.counts)
        return self._means(np.where(self.counts > 0, gap, 0), min_count)

    def _means(self, gap: NDArray[np.float64], min_count: float) -> dict[str, NDArray[np.float64]]:
        counted = self.counts >= min_count
        bins = counted.sum(-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return {
                "ece": (gap * self.counts).sum(-1) / self.counts.sum(-1),
                "ace": (gap * counted).sum(-1) / bins,
                "mce": np.where(bins > 0, (gap * counted).max(-1), np.nan),
            }

    def chance_deviations(self) -> NDArray[np.float64]:
        r"""Return the mean absolute deviation of `positives` for a perfectly calibrated model, voxels independent.

        The sum k of Bernoulli variables (of failures, if these are rarer) is approximated by a binomial B(n, p) of the
        same mean and variance, whose mean absolute deviation De Moivre gave in closed form:

        .. math:: E|k - np| = 2 n p (1 - p) \binom{n - 1}{j} p^j (1 - p)^{n - 1 - j}, \quad j = \lfloor np \rfloor

        It is exact for equal probabilities, down to a single voxel, and tends to the half-normal mean
        :math:`\sqrt{2 V / \pi}` for a large variance V. In bins of width 1/10 or less its error is below 1 %. Neither
        n nor counts, which may be weights of a sample, need be whole numbers.
        """
        rarer = np.maximum(np.minimum(self.probability, self.counts - self.probability), 0)
        variance = np.clip(self.variance, 0, rarer)
        p = np.clip(1 - variance / np.maximum(rarer, 1e-300), _SMALLEST, 1 - _SMALLEST)
        n, j = rarer / p, np.floor(rarer)
        log_mass = j * np.log(p) + (n - 1 - j) * np.log1p(-p) - np.log(np.maximum(n, 1e-300))
        log_mass -= betaln(np.maximum(n - j, 1e-300), j + 1)
        deviation = 2 * variance * np.exp(np.minimum(log_mass, 0))
        return np.where(
            variance < _NORMAL_FROM, np.minimum(deviation, np.sqrt(variance)), np.sqrt(2 / np.pi * variance)
        )

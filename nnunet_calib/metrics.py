"""Calibration errors from statistics alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnunet_calib.histograms import FINE_BINS
from nnunet_calib.statistics import CaseStatistics

NUM_BINS = 20

DEFINITIONS = {
    "ece": "expected calibration error: sum over bins of n_m / N * |observed frequency - mean probability|",
    "ace": "average calibration error: mean of |observed frequency - mean probability| over the bins that hold a voxel",
    "mce": "maximum calibration error: the largest |observed frequency - mean probability| of a bin that holds a voxel",
    "nll": "negative log-likelihood per voxel in nats; regions: binary cross-entropy, mean over regions",
    "brier": "sum over classes of (probability - one-hot label)^2 per voxel; regions: mean over regions",
    "per_class": "marginal: the probability of one class against the presence of that class",
    "top_label": "the largest probability against whether its class is the true one; regions: max(p, 1 - p) of each "
    "region against whether p > 1/2 is right, regions pooled",
}


@dataclass(frozen=True)
class ReliabilityCurve:
    """Equal-width bins of the heads and of the top label (last row): what was promised and what was observed.

    Attributes:
        counts: (heads + 1, M) voxels in each bin.
        confidence: (heads + 1, M) mean probability, NaN in empty bins.
        frequency: (heads + 1, M) observed frequency, NaN in empty bins.
    """

    counts: NDArray
    confidence: NDArray[np.float64]
    frequency: NDArray[np.float64]


def reliability_curve(
    statistics: CaseStatistics, num_bins: int = NUM_BINS, scope: str = "image"
) -> ReliabilityCurve:
    """The bins from which ECE, ACE and MCE are computed.

    Args:
        statistics: of one case or of several, which are then pooled.
        num_bins: M, a divisor of 1200.
        scope: "image", "foreground" or "boundary".

    Raises:
        ValueError: for an unknown scope, or for a number of bins that does not divide 1200.
    """
    if num_bins < 1 or FINE_BINS % num_bins:
        raise ValueError(f"expected num_bins to divide {FINE_BINS}, got {num_bins}: use 10, 15, 20 or 25, for example")
    h = statistics.histograms.scope(scope)
    counts, probability, positives = (
        x.reshape(len(x), num_bins, -1).sum(2) for x in (h.counts, h.probability, h.positives)
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        return ReliabilityCurve(counts, probability / counts, positives / counts)


def calibration_errors(
    statistics: CaseStatistics, num_bins: int = NUM_BINS, scope: str = "image"
) -> dict[str, NDArray[np.float64]]:
    r"""ECE, ACE and MCE of every class and of the top label, and the proper scores.

    With n_m voxels in bin m, e_m their mean probability and o_m their observed frequency:

    .. math::
        \mathrm{ECE} = \sum_m \frac{n_m}{N} |o_m - e_m|, \quad
        \mathrm{ACE} = \frac{1}{|\{m : n_m > 0\}|} \sum_{n_m > 0} |o_m - e_m|, \quad
        \mathrm{MCE} = \max_{n_m > 0} |o_m - e_m|

    Args:
        statistics: of one case or of several, which are then pooled; for the usual mean over cases call it per case.
        num_bins: M equal-width bins [a, b), the last one closed; a divisor of 1200.
        scope: "image" (all voxels), "foreground" (of the ground truth) or "boundary" (a band around label borders).

    Returns:
        "ece", "ace", "mce": (C,) arrays in [0, 1], NaN for a class without a voxel in the whole image and where the
        scope is empty. "top_label_ece", "top_label_ace", "top_label_mce", "nll", "brier": 0-d arrays, NaN where the
        scope is empty.

    Raises:
        ValueError: for an unknown scope, or for a number of bins that does not divide 1200.

    References:
        Naeini et al., Obtaining well calibrated probabilities using Bayesian binning, AAAI 2015 (ECE, MCE); Neumann et
        al., Relaxed softmax, 2018 (ACE); Barfoot et al., MICCAI 2024, arXiv 2403.06759 (per class, per image).
    """
    curve = reliability_curve(statistics, num_bins, scope)
    filled = curve.counts > 0
    gap = np.where(filled, np.abs(curve.frequency - curve.confidence), 0)
    total, bins = curve.counts.sum(1), filled.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        errors = {
            "ece": (gap * curve.counts).sum(1) / total,
            "ace": gap.sum(1) / bins,
            "mce": np.where(bins > 0, gap.max(1), np.nan),
        }
        h = statistics.histograms.scope(scope)
        scores = {"nll": h.nll / h.voxels, "brier": h.brier / h.voxels}
    present = statistics.histograms.positives[:, :-1].sum((0, 2)) > 0
    return (
        {name: np.where(present, values[:-1], np.nan) for name, values in errors.items()}
        | {f"top_label_{name}": np.asarray(values[-1]) for name, values in errors.items()}
        | {name: np.asarray(value) for name, value in scores.items()}
    )

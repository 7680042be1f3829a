"""Calibration errors from statistics alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_calib.measuring.case_statistics import CaseStatistics
from nnunet_calib.measuring.histograms import Histograms
from nnunet_calib.metrics.bin_sums import BinSums
from nnunet_calib.metrics.catalogue import BRIER_TERMS, CalibrationErrors
from nnunet_calib.metrics.ranking import ranking_errors

NUM_BINS = 20


@dataclass(frozen=True)
class ReliabilityCurve:
    """Equal-width bins of the heads and of the top label (last row), with predicted and observed frequencies.

    Attributes:
        counts: (heads + 1, M) number of voxels.
        confidence: (heads + 1, M) mean probability, NaN in empty bins.
        frequency: (heads + 1, M) observed frequency, NaN in empty bins.
    """

    counts: NDArray[Any]
    confidence: NDArray[np.float64]
    frequency: NDArray[np.float64]


def reliability_curve(statistics: CaseStatistics, num_bins: int = NUM_BINS, scope: str = "image") -> ReliabilityCurve:
    """Return the bins from which ECE, ACE and MCE are computed.

    Args:
        statistics: statistics of one case, or of several, which are pooled.
        num_bins: M, a divisor of 1200.
        scope: "image", "foreground" or "boundary".

    Raises:
        ValueError: for an unknown scope, or for a number of bins that does not divide 1200.
    """
    return _curve(BinSums.of(statistics, num_bins, scope))


def _curve(sums: BinSums) -> ReliabilityCurve:
    with np.errstate(invalid="ignore", divide="ignore"):
        return ReliabilityCurve(sums.counts, sums.probability / sums.counts, sums.positives / sums.counts)


def calibration_errors(
    statistics: CaseStatistics, num_bins: int = NUM_BINS, scope: str = "image", *, min_count: float = 1
) -> CalibrationErrors:
    r"""Compute the calibration errors of every class and of the top label, and the proper scores.

    With n_m voxels in bin m, e_m their mean probability, o_m the observed frequency of the class among them, and o that
    in all N voxels:

    .. math::
        \mathrm{ECE} = \sum_m \frac{n_m}{N} |o_m - e_m|, \quad
        \mathrm{ACE} = \frac{1}{|\{m : n_m \ge n_0\}|} \sum_{n_m \ge n_0} |o_m - e_m|, \quad
        \mathrm{MCE} = \max_{n_m \ge n_0} |o_m - e_m|, \quad
        \mathrm{KS} = \max_t \frac{1}{N} \Big| \sum_{i : p_i < t} (y_i - p_i) \Big|

    .. math::
        \frac{1}{N} \sum_i (p_i - y_i)^2 = \underbrace{\sum_m \frac{n_m}{N} (o_m - e_m)^2}_\text{reliability}
        - \underbrace{\sum_m \frac{n_m}{N} (o_m - o)^2}_\text{resolution}
        + \underbrace{o (1 - o)}_\text{uncertainty} + \text{within bin}

    `ece_by_chance` and `ace_by_chance` are what chance alone leaves of ECE and ACE for a perfectly calibrated model of
    these probabilities: |o_m - e_m| is replaced by its expectation for n_m independent voxels. They are a lower bound,
    because the labels of neighbouring voxels depend on each other, so that o_m varies more.

    All but `nll`, `brier` and its terms come from histograms of 1200 bins of width w = 1/1200. ECE, ACE, MCE,
    reliability, resolution and uncertainty are exact. With n_j voxels and the frequency o_j in fine bin j, the error of
    `squared_error` is at most w^2/4 + 2w times its value (0.2 %); `ks` is at most max_j n_j/N (o_j (1 - o_j) + w/4) too
    small; and `adaptive_ece` differs from that of sorted voxels by at most the sum, over the fine bins in which one of
    the M bins ends, of n_j/N (2 o_j (1 - o_j) + w/2).

    Args:
        statistics: statistics of one case, or of several, which are pooled; for the usual mean over cases call it for
            each case.
        num_bins: M, a divisor of 1200: equal-width bins [a, b), the last one closed; for `adaptive_ece` bins of equal
            voxel count.
        scope: "image" (all voxels), "foreground" (of the ground truth) or "boundary" (a band around label borders).
        min_count: n_0, at least 1; ACE and MCE leave out bins of fewer voxels. After `with_temperature` a voxel of the
            sample counts with its weight.

    Returns:
        A dictionary whose `definition(name)` tells how a value was computed:
        "ece", "ace", "mce", "ece_by_chance", "ace_by_chance", "adaptive_ece", "ks", "squared_error", "reliability",
        "resolution", "uncertainty", "within_bin": (C,) arrays, NaN for a class without a voxel in the whole image, and
        where the scope is empty.
        The same with the prefix "top_label_": 0-d arrays, NaN where the scope is empty.
        "nll", "brier", and the terms of the latter, "brier_reliability" to "brier_within_bin", summed over all classes
        (mean over regions): 0-d arrays, NaN where the scope is empty.
        "aurc", "confidence_auroc", "entropy_auroc" of the top label, see `metrics.ranking`: 0-d arrays, NaN where the
        scope is empty, and the AUROCs also without a wrong or without a right voxel.
        ACE and MCE are also NaN if no bin holds `min_count` voxels.

    Raises:
        ValueError: for an unknown scope, a number of bins that does not divide 1200, or a `min_count` below 1.

    References:
        Naeini et al., Obtaining well calibrated probabilities using Bayesian binning, AAAI 2015 (ECE, MCE); Neumann et
        al., Relaxed softmax, 2018 (ACE); Barfoot et al., MICCAI 2024, arXiv 2403.06759 (per class, per image); Nixon et
        al., Measuring calibration in deep learning, arXiv 1904.01685 (equal-mass bins); Gupta et al., ICLR 2021, arXiv
        2006.12800 (KS); Murphy, J. Appl. Meteorol. 12, 1973, and Stephenson et al., Weather Forecast. 23, 2008 (the
        terms of the Brier score); Diaconis and Zabell, Statist. Sci. 6, 1991 (De Moivre's mean absolute deviation).
    """
    if not min_count >= 1:
        raise ValueError(f"expected min_count to be at least 1, got {min_count}")
    sums = BinSums.of(statistics, num_bins, scope)
    curve = _curve(sums)
    h = statistics.histograms.scope(scope)
    total = curve.counts.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        errors = (
            sums.errors(min_count)
            | {
                "adaptive_ece": _equal_mass_gaps(h, num_bins) / total,
                "ks": np.abs(np.cumsum(h.positives - h.probability, axis=1)).max(1) / total,
            }
            | _brier_terms(h, curve)
        )
        scores = {"nll": h.nll / h.voxels, "brier": h.brier / h.voxels}
    over_heads = np.mean if statistics.regions else np.sum
    terms = {name: over_heads(errors[name][:-1]) for name in BRIER_TERMS[:-1]}
    rest = scores["brier"] - (terms["reliability"] - terms["resolution"] + terms["uncertainty"])
    scores |= ranking_errors(h, regions=statistics.regions)
    scores |= {f"brier_{name}": value for name, value in (terms | {"within_bin": rest}).items()}
    present = statistics.histograms.positives[:, :-1].sum((0, 2)) > 0
    options = {"bins": num_bins, "min_count": min_count, "scope": scope, "pooled_cases": len(statistics.cases)}
    return CalibrationErrors(
        {name: np.where(present, values[:-1], np.nan) for name, values in errors.items()}
        | {f"top_label_{name}": np.asarray(values[-1]) for name, values in errors.items()}
        | {name: np.asarray(value) for name, value in scores.items()},
        options | ({"boundary_mm": statistics.boundary_mm} if scope == "boundary" else {}),
    )


def _equal_mass_gaps(h: Histograms, num_bins: int) -> NDArray[np.float64]:
    """Return for each row the sum over bins of equal voxel count of |sum of (y - p)|."""
    counts, residuals = (np.cumsum(x, axis=1, dtype=np.float64) for x in (h.counts, h.positives - h.probability))
    gaps = np.zeros(len(counts))
    for row, (n, r) in enumerate(zip(counts, residuals, strict=True)):
        ends = np.interp(np.linspace(0, n[-1], num_bins + 1), np.append(0, n), np.append(0, r))
        gaps[row] = np.abs(np.diff(ends)).sum()
    return gaps


def _brier_terms(h: Histograms, curve: ReliabilityCurve) -> dict[str, NDArray[np.float64]]:
    """Return the squared error of each row from the fine bins, and its decomposition over the bins of the curve."""
    total = h.counts.sum(1)
    mean = h.positives.sum(1) / total
    # sum of (e - y)^2 over the voxels of a fine bin, with its mean probability e in place of p
    squared = h.positives + np.where(h.counts > 0, h.probability * (h.probability - 2 * h.positives) / h.counts, 0)
    filled = curve.counts > 0
    gap = np.where(filled, curve.frequency - curve.confidence, 0)
    lift = np.where(filled, curve.frequency - mean[:, None], 0)
    terms = {
        "squared_error": squared.sum(1) / total,
        "reliability": (curve.counts * gap**2).sum(1) / total,
        "resolution": (curve.counts * lift**2).sum(1) / total,
        "uncertainty": mean * (1 - mean),
    }
    rest = terms["squared_error"] - (terms["reliability"] - terms["resolution"] + terms["uncertainty"])
    return terms | {"within_bin": rest}

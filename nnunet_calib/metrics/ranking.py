"""How well the confidence, or the entropy, of voxels tells the wrong ones from the right ones.

Calibration says whether probabilities are right on average; these metrics say whether the least confident voxels are
those that should be looked at. Both follow from the fine bins of the top label. Only the order of the voxels matters,
and the voxels of one fine bin count as tied.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import digamma

from nnunet_calib.measuring.histograms import Histograms

_Values = NDArray[np.float64]


class RiskCoverage(NamedTuple):
    """Risk-coverage curve at the ends of the filled fine bins, from the largest confidence to the smallest.

    Attributes:
        coverage: (n,) share of the voxels that are kept, up to 1.
        risk: (n,) share of wrong top labels among these.
    """

    coverage: _Values
    risk: _Values


def risk_coverage(h: Histograms) -> RiskCoverage:
    """Return the risk-coverage curve of the voxels of a scope; empty without a voxel.

    Args:
        h: sums of one scope, from `Histograms.scope`.

    References:
        El-Yaniv and Wiener, On the foundations of noise-free selective classification, JMLR 11, 2010.
    """
    counts, wrong = (x.cumsum() for x in _by_falling_confidence(h))
    return RiskCoverage(counts / max(counts[-1:].sum(), 1e-300), wrong / counts)


def ranking_errors(h: Histograms, *, regions: bool) -> dict[str, Any]:
    """Return "aurc", "confidence_auroc" and "entropy_auroc" of the voxels of a scope, NaN where undefined.

    Args:
        h: sums of one scope, from `Histograms.scope`.
        regions: whether the heads are regions, whose entropies have the order of their confidences.
    """
    counts, wrong = _by_falling_confidence(h)
    confidence = auroc(wrong, counts - wrong)
    entropy = confidence if regions else auroc(h.entropy[1], h.entropy[0])
    return {"aurc": aurc(counts, wrong), "confidence_auroc": confidence, "entropy_auroc": entropy}


def aurc(counts: _Values, wrong: _Values) -> float:
    r"""Return the area under the risk-coverage curve.

    .. math:: \frac{1}{N} \sum_{k=1}^{N} \frac{1}{k} \sum_{i=1}^{k} w_i

    with w_i = 1 if the i-th of the voxels, ordered by falling confidence, has a wrong label. The voxels of a bin are
    tied: the value is the mean over all their orders. With n of them, W of which are wrong, after n_0 others with W_0
    wrong ones, the bin adds

    .. math:: \sum_{j=1}^{n} \frac{W_0 + j W / n}{n_0 + j}
        = W + \Big(W_0 - \frac{W}{n} n_0\Big) \big(\psi(n_0 + n + 1) - \psi(n_0 + 1)\big)

    which also extends it to weights of a sample.

    Args:
        counts: (bins,) voxels of each filled bin, by falling confidence.
        wrong: (bins,) those of a wrong label.

    Returns:
        A number in [0, 1], 0 without a wrong voxel; NaN without a voxel.

    References:
        Geifman, Uziel and El-Yaniv, Bias-reduced uncertainty estimation for deep neural classifiers, ICLR 2019.
    """
    if not counts.size:
        return float("nan")
    ends = counts.cumsum()
    before, wrong_before = ends - counts, wrong.cumsum() - wrong
    steps = digamma(ends + 1) - digamma(before + 1)
    return float((wrong + (wrong_before - wrong / counts * before) * steps).sum() / ends[-1])


def auroc(wrong: _Values, right: _Values) -> float:
    """Return the probability that a wrong voxel is less certain than a right one; ties count half.

    Args:
        wrong: (bins,) voxels of a wrong label in each bin, from the most certain bin to the least certain one.
        right: (bins,) voxels of a right label.

    Returns:
        A number in [0, 1]: 1/2 for an uninformative order; NaN without a wrong or without a right voxel.

    References:
        Hendrycks and Gimpel, A baseline for detecting misclassified and out-of-distribution examples, ICLR 2017.
    """
    pairs = wrong.sum() * right.sum()
    if not pairs > 0:
        return float("nan")
    return float((wrong * (right.cumsum() - right / 2)).sum() / pairs)


def _by_falling_confidence(h: Histograms) -> tuple[_Values, _Values]:
    """Return the voxels and the wrong voxels of each filled bin of the top label, the largest confidence first."""
    counts, right = (row[-1, ::-1].astype(np.float64) for row in (h.counts, h.positives))
    filled = counts > 0
    return counts[filled], np.maximum(counts - right, 0)[filled]

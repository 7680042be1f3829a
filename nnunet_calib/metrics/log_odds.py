"""Histograms of the log-odds of each class, from the voxel sample of a case.

Saved probabilities tell the logits of a softmax only up to a constant for each voxel. The log-odds of a class,
log(p / (1 - p)), are free of that constant: the logit of a sigmoid that gives the class this p. For regions they are
the network's own logits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from nnunet_calib.measuring.voxel_sample import VoxelSample

EDGES = np.linspace(-20, 20, 81)  # values beyond lie in the first or last bin


def log_odds(logits: NDArray[np.floating], *, regions: bool) -> NDArray[np.float64]:
    """Return the log-odds (heads, n) of the log-probabilities (n, heads) of a sample, or of the logits of regions."""
    z = logits.T.astype(np.float64)
    if regions or not z.size:
        return z
    with np.errstate(divide="ignore"):
        others = np.log1p(-np.minimum(np.exp(z), 1))
        # close to 1, log p has hardly a digit of 1 - p: it is summed over the other classes
        top, voxels = z.argmax(0), np.arange(z.shape[1])
        without = z.copy()
        without[top, voxels] = -np.inf
        others[top, voxels] = logsumexp(without, axis=0)
    return np.asarray(z - others)


def log_odds_counts(sample: VoxelSample) -> NDArray[np.float64]:
    """Return the number of voxels (heads, 2, bins) outside and inside each class or region by its log-odds.

    Each voxel of the sample counts with its weight; counts of cases add up.
    """
    regions = sample.labels.ndim == 2
    odds = log_odds(sample.logits, regions=regions)
    heads, bins = len(odds), len(EDGES) - 1
    inside = sample.labels.T if regions else sample.labels == np.arange(heads)[:, None]
    place = np.clip(np.floor((odds - EDGES[0]) / (EDGES[1] - EDGES[0])), 0, bins - 1).astype(np.int64)
    cells = (np.arange(heads)[:, None] * 2 + inside) * bins + place
    weights = np.broadcast_to(sample.weights, cells.shape).astype(np.float64)
    counts = np.bincount(cells.ravel(), weights.ravel(), heads * 2 * bins)
    return np.asarray(counts.reshape(heads, 2, bins), np.float64)

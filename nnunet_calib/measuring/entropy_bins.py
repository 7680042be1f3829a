"""Bins for the entropy of the classes' probabilities, by which voxels are ordered.

The first bin holds every voxel about which the model is confident, that is nearly all voxels of a scan: no logarithm is
needed to count these. The other bins have equal width, up to the entropy of equal probabilities.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

ENTROPY_BINS = 1200
CONFIDENT = 1 / 1200  # the largest 1 - p of the voxels that are counted without a logarithm


def first_edge(classes: int) -> float:
    """Return the upper end of the first bin in nats: the largest entropy at a confidence of 1 - 1/1200."""
    of_two = -CONFIDENT * math.log(CONFIDENT) - (1 - CONFIDENT) * math.log1p(-CONFIDENT)
    return of_two + CONFIDENT * math.log(max(classes - 1, 1))


def entropy_bin(p: NDArray[Any]) -> NDArray[np.int64]:
    """Return the bin (n,) of the entropy of probabilities (C, n); 0 log 0 is 0."""
    entropy = -(p * np.log(np.maximum(p, np.finfo(p.dtype).tiny))).sum(0)
    low, high = first_edge(len(p)), math.log(len(p))
    if high <= low:
        return np.zeros(len(entropy), np.int64)
    place = 1 + (entropy - low) / (high - low) * (ENTROPY_BINS - 1)
    bins: NDArray[np.int64] = np.clip(place, 0, ENTROPY_BINS - 1).astype(np.int64)
    return bins

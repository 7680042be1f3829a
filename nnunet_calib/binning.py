"""The one rule that says which bin a probability falls into.

Every histogram of this package, in the losses and in the measurements, uses `bin_index`, so that a loss and the error
it lowers never disagree about a voxel.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch

Array = TypeVar("Array", np.ndarray, torch.Tensor)


def bin_index(probabilities: Array, num_bins: int) -> Array:
    r"""Index of the equal-width bin on [0, 1] that holds each probability.

    Bin m is the half-open interval [m / M, (m + 1) / M); the last one is closed, so that p = 1 lies in bin M - 1:

    .. math:: m = \min(\lfloor p M \rfloor, M - 1)

    The product is taken in the precision of the input. In float64 it is exact for every float32 probability and
    every M up to 2^29, and then a bin of M is precisely the union of k bins of k M. In float32, the one value just
    below an edge may be counted above it.

    Args:
        probabilities: any shape, values in [0, 1]. Others get some bin: no index is ever out of range.
        num_bins: M, at least 1.

    Returns:
        int64 indices in [0, M - 1], of the same shape and on the same device. An empty input gives an empty output.
    """
    if isinstance(probabilities, torch.Tensor):
        return (probabilities.detach() * num_bins).long().clamp_(0, num_bins - 1)
    return np.clip((probabilities * num_bins).astype(np.int64), 0, num_bins - 1)

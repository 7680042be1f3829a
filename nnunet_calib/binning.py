"""The one rule that decides which bin a probability falls into.

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

    The product is computed in float64, where it is exact for every float32 probability and every M up to 2^29, so that
    a bin of M is precisely the union of k bins of k M. (MPS has float32 only: there a value just below an edge may be
    counted above it.) Pass values that float32 does not hold exactly, such as 1 - p, in float64.

    Args:
        probabilities: any shape, values in [0, 1]. Values outside are clipped into the first or last bin.
        num_bins: M, at least 1.

    Returns:
        int64 indices in [0, M - 1], of the same shape and on the same device. An empty input gives an empty output.
    """
    if isinstance(probabilities, torch.Tensor):
        p = probabilities.detach()
        p = p if p.device.type == "mps" else p.double()
        return (p * num_bins).long().clamp_(0, num_bins - 1)
    return np.clip((probabilities.astype(np.float64, copy=False) * num_bins).astype(np.int64), 0, num_bins - 1)

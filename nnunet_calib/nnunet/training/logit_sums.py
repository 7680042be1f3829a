"""Histograms of the network's logits over the validation patches of an epoch, and their quantiles.

The logits are counted as the network gives them. A softmax ignores a constant that all classes share, but losses that
act on logits, such as NACL, do not, and it is these values that they hold down. The margin by which the true class
leads is free of that constant.

Counts of the devices add up, and quantiles follow from the sums. Bins of equal width in asinh(z) are 0.05 wide around
0, 0.5 wide at 10, and reach to 548: fine enough for logits that are held near 0, wide enough for those that are not.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LOGIT_BINS = 280
_REACH = 7.0  # of asinh(z)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class LogitSums:
    """Counts of voxels by logit, on their device; adding never waits for the device.

    Attributes:
        counts: (heads + 1, 2, bins) voxels outside and inside each class or region, by its logit. In the last row by
            the margin, of voxels outside and inside the foreground: for labels the logit of the true class minus the
            largest other one; for regions, each by itself, the logit inside and its negative outside.
    """

    def __init__(self, num_heads: int, regions: bool, device: torch.device, dtype: torch.dtype) -> None:
        self.regions = regions
        self.counts = torch.zeros(num_heads + 1, 2, LOGIT_BINS, dtype=dtype, device=device)
        self._rows = torch.arange(num_heads, device=device)[:, None]

    def add(self, logits: Tensor, inside: Tensor, weight: Tensor) -> None:
        """Add voxels.

        Args:
            logits: (B, heads, n), float32.
            inside: (B, heads, n) bool, whether a voxel belongs to each class or region.
            weight: (B, 1, n) of the type of the counts, 0 for voxels that do not count.
        """
        if self.regions:
            margin, of = torch.where(inside, logits, -logits), inside
        else:
            true = torch.where(inside, logits, 0).sum(1, keepdim=True)
            margin = true - torch.where(inside, -torch.inf, logits).amax(1, keepdim=True)
            of = ~inside[:, :1]
        for values, row, side in ((logits, self._rows, inside), (margin, len(self._rows), of)):
            # whole numbers, which float32 holds exactly: fewer passes over the voxels than with integers
            cells = logit_bin(values).add_(row * (2 * LOGIT_BINS)).add_(side, alpha=LOGIT_BINS).long()
            self.counts.view(-1).scatter_add_(0, cells.flatten(), weight.expand(cells.shape).flatten())


def logit_bin(logits: Tensor) -> Tensor:
    """Return the bin of each logit, a whole number in float32; those beyond the reach lie in the first or last one."""
    place = torch.asinh(logits.float()).add_(_REACH).mul_(LOGIT_BINS / (2 * _REACH))
    return place.nan_to_num_(0.0).clamp_(0, LOGIT_BINS - 1).floor_()


def logit_quantiles(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the quantiles (..., 5) of logits counted in bins (..., bins), linear within a bin; NaN without a voxel."""
    edges = np.linspace(-_REACH, _REACH, LOGIT_BINS + 1)
    sums = np.cumsum(counts, axis=-1)
    found = np.full((*counts.shape[:-1], len(QUANTILES)), np.nan)
    for place in np.ndindex(counts.shape[:-1]):
        if (total := sums[place][-1]) > 0:
            wanted = np.array(QUANTILES) * total
            m = np.searchsorted(sums[place], wanted)  # the first bin up to which there are so many voxels
            share = (wanted - (sums[place] - counts[place])[m]) / counts[place][m]
            found[place] = np.sinh(edges[m] + share * (edges[1] - edges[0]))
    return found

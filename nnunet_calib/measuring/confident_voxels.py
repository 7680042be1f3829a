"""Fast sums over the voxels about which a softmax model is confident and right: nearly all voxels of a scan.

If the true class has p > 1 - 1 / 1200 and the others sum to less than 1 / 1200, it lies in the last fine bin and the
others in the first. Then no bin needs to be looked up: the histograms follow from plain sums over the voxels. A power
series in p_y - 1 gives -log p_y faster than a logarithm.

Only voxels of the most frequent scope and true class, usually background far from any boundary, are summed. They are
not copied: the sums run over all voxels, with zeros in place of the others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_MARGIN = 0.999  # of the width of a bin: rounding must not move a voxel across an edge


class ConfidentVoxels:
    """Sums over confident and right voxels, by part (see `histograms`) and class.

    Attributes:
        voxels: (parts, C) int64 number of voxels by their true class.
        true: (parts, C) sums of p_y by true class y.
        other: (parts, C) sums of p_c over the voxels of all classes but c.
        nll: (parts,) sums of -log p_y.
        brier: (parts,) sums of sum_c (p_c - y_c)^2.
    """

    def __init__(self, classes: int, *, parts: int, num_bins: int) -> None:
        """Start without voxels.

        Args:
            classes: C.
            parts: number of parts.
            num_bins: p_y lies in the last of so many bins, and all other probabilities in the first.
        """
        self.voxels = np.zeros((parts, classes), np.int64)
        self.true, self.other = np.zeros((parts, classes)), np.zeros((parts, classes))
        self.nll, self.brier = np.zeros(parts), np.zeros(parts)
        self._all_but = 1 - torch.eye(classes)
        self._limit = _MARGIN / num_bins
        self._buffer = torch.empty(0, dtype=torch.float64)

    def add(self, p: NDArray[Any], y: NDArray[Any], part: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Add the confident ones among some voxels.

        Args:
            p: (C, n) probabilities in [0, 1].
            y: (n,) labels in [0, C).
            part: (n,) values in [0, parts).

        Returns:
            Rising indices of the voxels that were not added: all unconfident ones, and some confident ones.
        """
        parts = len(self.voxels)
        group = part if not y.any() else y.astype(np.uint16) * parts + part
        most = 0 if 2 * np.count_nonzero(group) < len(y) else int(np.bincount(group).argmax())
        c, b = divmod(most, parts)
        # PyTorch cannot share the memory of read-only arrays and of negative strides
        source = torch.from_numpy(p if p.flags.writeable and min(p.strides) >= 0 else p.copy())
        source = source if source.dtype == torch.float32 else source.double()
        weights = self._all_but[c].to(source.dtype)
        # both comparisons are false for NaN
        sure = (weights @ source).numpy() < self._limit
        sure &= source[c].numpy() > 1 - self._limit
        sure &= group == most
        others = np.flatnonzero(~sure)
        if 2 * len(others) > len(y):  # binning all of them is faster then
            return np.arange(len(y))
        if len(self._buffer) < source.numel():
            self._buffer = torch.empty(source.numel(), dtype=torch.float64)
        d = self._buffer[: source.numel()].view(source.shape).copy_(source)
        true = d[c].sub_(1)
        d.index_fill_(1, torch.from_numpy(others), 0)
        total, number, squares = d.sum(1).numpy(), len(true) - len(others), true.square()
        self.voxels[b, c] += number
        self.true[b, c] += number + total[c]
        # -log(1 + x) = -x + x^2 / 2 - x^3 / 3 + x^4 / 4, with a relative error below 4e-13
        square, cube, fourth = (a.dot(x).item() for a, x in ((true, true), (squares, true), (squares, squares)))
        self.nll[b] += -total[c] + square / 2 - cube / 3 + fourth / 4
        self.brier[b] += d.view(-1).dot(d.view(-1)).item()
        total[c] = 0
        self.other[b] += total
        return others


def columns(p: NDArray[Any], indices: NDArray[np.int64]) -> NDArray[Any]:
    """Return some voxels of p (C, n) as (C, k) in row-major order, which p[:, indices] is not; np.take is slower."""
    return np.stack([row[indices] for row in p])

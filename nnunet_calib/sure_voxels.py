"""Sums over the voxels that a softmax model is sure and right about: nearly all voxels of a scan.

Where the true class has p > 1 - 1 / 1200 and the others sum to less than 1 / 1200, it lies in the last fine bin and
they in the first, so that no bin needs to be looked up and plain sums over the voxels are all that the histograms take.
Such a voxel's -log p_y is taken from the powers of p_y - 1, which is faster than a logarithm.

Voxels of one scope and one true class are worked off together, since then d is p with 1 subtracted from one row, and
the sums go into one place. Voxels of background far from any boundary, usually most, are taken where they are, with
zeros in the place of the others; the rest are sorted by scope and class, and copied.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_PIECE = 1 << 19  # probabilities worked off at a time: a float64 buffer that stays in the cache
_FEWEST = 512  # voxels of a scope and class below which binning them one by one is as fast
_MARGIN = 0.999  # keeps clear of the edges of the bins, whatever is rounded


@dataclass(frozen=True)
class SureSums:
    """Sums over the sure voxels, by part (see `histograms`) and class.

    Attributes:
        voxels: (parts, C) int64 sure voxels by their true class.
        true: (parts, C) sums of p_y by true class y.
        other: (parts, C) sums of p_c over the sure voxels of all classes but c.
        nll: (parts,) sums of -log p_y.
        brier: (parts,) sums of sum_c (p_c - y_c)^2.
    """

    voxels: NDArray[np.int64]
    true: NDArray[np.float64]
    other: NDArray[np.float64]
    nll: NDArray[np.float64]
    brier: NDArray[np.float64]


def sum_sure_voxels(
    p: NDArray, y: NDArray, part: NDArray[np.uint8], *, parts: int, num_bins: int
) -> tuple[SureSums, NDArray[np.int64]]:
    """Sums over the sure voxels, and which voxels are none of them.

    Args:
        p: (C, n) probabilities.
        y: (n,) labels in [0, C).
        part: (n,) values in [0, parts).
        parts: how many parts there are.
        num_bins: a voxel is sure if p_y is in the last bin and all other probabilities are in the first.

    Returns:
        The sums, and the indices of all other voxels; some sure voxels may be left among them.
    """
    classes, left = len(p), [np.empty(0, np.int64)]
    sums = SureSums(
        np.zeros((parts, classes), np.int64), np.zeros((parts, classes)), np.zeros((parts, classes)),
        nll=np.zeros(parts), brier=np.zeros(parts),
    )  # fmt: skip
    limit = _MARGIN / num_bins
    # PyTorch shares the memory of neither
    p = p if p.flags.writeable and min(p.strides) >= 0 else p.copy()
    source = torch.from_numpy(p)
    in_place = (y == 0) & (part == 0)
    if 2 * np.count_nonzero(in_place) > len(y):
        unsure = _add(sums, source, 0, 0, limit, torch.from_numpy(in_place))
        left.append(unsure[in_place[unsure]])
        moved = np.flatnonzero(~in_place)
    else:
        moved = np.arange(len(y))
    group = part[moved].astype(np.int32) * classes + y[moved]
    moved = moved[np.argsort(group, kind="stable")]
    source = torch.from_numpy(columns(p, moved))
    ends = np.cumsum(np.bincount(group, minlength=parts * classes)).tolist()
    for g, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        where = moved[start:end]
        if len(where) >= _FEWEST:
            where = where[_add(sums, source[:, start:end], *divmod(g, classes), limit)]
        left.append(where)
    return sums, np.concatenate(left)


def columns(p: NDArray, indices: NDArray[np.int64]) -> NDArray:
    """(C, k) some voxels of p (C, n), in rows; p[:, indices] would lie in columns, np.take is slower."""
    return np.stack([row[indices] for row in p])


def _add(sums: SureSums, p: Tensor, b: int, c: int, limit: float, counts: Tensor | None = None) -> NDArray[np.int64]:
    """Add the sure ones of voxels in part b of true class c, where `counts` is true; returns which are not added."""
    length, left = max(_PIECE // len(p), 1), [np.empty(0, np.int64)]
    buffer = torch.empty(len(p) * min(length, p.shape[1]), dtype=torch.float64)
    in_single = p if p.dtype == torch.float32 else None  # a product with it takes half the time
    weights = torch.ones(len(p), dtype=torch.float64 if in_single is None else torch.float32)
    weights[c] = 0
    for start in range(0, p.shape[1], length):
        piece = p[:, start : start + length]
        d = buffer[: piece.numel()].view(piece.shape).copy_(piece)
        true = d[c].sub_(1)
        # neither holds where there is a NaN
        sure = (weights @ (d if in_single is None else piece) < limit).logical_and_(true.abs() < limit)
        if counts is not None:
            sure.logical_and_(counts[start : start + length])
        others = sure.logical_not_().nonzero()[:, 0]
        d.index_fill_(1, others, 0)
        total, number, squares = d.sum(1).numpy(), piece.shape[1] - len(others), true.square()
        sums.voxels[b, c] += number
        sums.true[b, c] += number + total[c]
        # -log(1 + x) = -x + x^2 / 2 - x^3 / 3 + x^4 / 4, short of 4e-13 of it
        sums.nll[b] += -total[c] + float(squares.sum() / 2 - squares.dot(true) / 3 + squares.dot(squares) / 4)
        sums.brier[b] += float(d.view(-1).dot(d.view(-1)))
        total[c] = 0
        sums.other[b] += total
        left.append(others.add_(start).numpy())
    return np.concatenate(left)

"""Parts of a batch on a CPU that are worked off in turn, so that what is computed of them stays in the cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from nnunet_calib.losses.cpu.bin_sums import CHUNK
from nnunet_calib.losses.targets import as_int32, label_error, positions

PIECE = 2**20  # probabilities in a piece: 4 MiB
# Well above the rounding of a softmax, so that no p of a sure voxel is on the other side of its bin's edge.
MARGIN = 1e-4
MOSTLY = 0.4  # share of unsure voxels above which a piece is binned as it lies
BLOCK = 64  # probabilities added in their own precision, before float64 takes over


def own_entries(y: Tensor, shape: torch.Size, where: slice = slice(None)) -> Tensor:
    """Where the entries of the voxels' own classes y (b, n), int32, lie in a flattened tensor (b, C, N), in int32.

    The tensor has fewer than 2^31 entries.
    `torch.index_select` with these is several times as fast as `torch.gather` along the classes.
    """
    images, classes, voxels = shape
    image = torch.arange(0, images * classes * voxels, classes * voxels, dtype=torch.int32)
    voxel = torch.arange(*where.indices(voxels), dtype=torch.int32)
    return (y * voxels).add_(voxel).add_(image[:, None]).view(-1)


@dataclass
class Piece:
    """A part of the n voxels of one image, or all voxels of b images."""

    images: slice
    where: slice
    y: Tensor  # (b, n) int32 labels; 0 for ignored voxels
    row: Tensor  # (b, n) int32 labels; C for ignored voxels
    ignored: Tensor | None  # (b, n), None where no voxel is

    def of(self, x: Tensor) -> Tensor:
        """Its part of a tensor (B, C, N)."""
        return x[self.images, :, self.where]

    def own(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return a flat view of the images of x, and the flat indices of the voxels' own classes."""
        images = x[self.images]
        return images.view(-1), own_entries(self.y, images.shape, self.where)


def pieces(shape: torch.Size, labels: Tensor, ignore_label: int | None) -> Iterator[Piece]:
    """Yield pieces of the voxels of labels (B, N), for logits of shape (B, C, N).

    Raises:
        ValueError: for a label without a class.
    """
    images, classes, voxels = shape
    together = min(max(CHUNK // (classes * voxels), 1), images)
    length = -(-voxels // -(-classes * voxels // PIECE))
    for image, start in product(range(0, images, together), range(0, voxels, length)):
        of, where = slice(image, image + together), slice(start, start + length)
        row, ignored = as_int32(labels[of, where]), None
        y = row
        if ignore_label is not None and (mask := row == ignore_label).any():
            y, row, ignored = row.masked_fill(mask, 0), row.masked_fill(mask, classes), mask
        low, high = y.aminmax()
        if low < 0 or high >= classes:
            raise label_error(labels, classes, ignore_label)
        yield Piece(of, where, y, row, ignored)


def few(unsure: Tensor) -> Tensor | None:
    """Where a mask (b, n) is true, or None where a piece is to be binned as it lies."""
    if len(unsure) > 1 or unsure.count_nonzero() >= MOSTLY * unsure.numel():
        return None
    return positions(unsure)


def sum_of(p: Tensor) -> Tensor:
    """Return the sum over the last axis, in float64."""
    whole = p.shape[-1] // BLOCK * BLOCK
    blocks = p[..., :whole].view(*p.shape[:-1], BLOCK, whole // BLOCK).sum(-2)
    return blocks.sum(-1, dtype=torch.float64) + p[..., whole:].sum(-1, dtype=torch.float64)

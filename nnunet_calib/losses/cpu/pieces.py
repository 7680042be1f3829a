"""Parts of a batch on a CPU that are processed in turn, so that intermediate results stay in the cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnunet_calib.losses.cpu.bin_sums import CHUNK
from nnunet_calib.losses.targets import as_int32, label_error

PIECE = 2**20  # probabilities in a piece: 4 MiB
# Well above the rounding of a softmax, so that no p of a confident voxel is on the other side of its bin's edge.
MARGIN = 1e-4
MOSTLY = 0.4  # share of unsure voxels above which a piece is binned as a whole
BLOCK = 64  # probabilities added in their own precision, before float64 takes over


def own_entries(y: Tensor, shape: torch.Size, where: slice = slice(None)) -> Tensor:
    """Return the positions in a flattened tensor (b, C, N) of the entries of the voxels' classes y (b, n), in int32.

    The tensor has fewer than 2^31 entries. `torch.index_select` with these is several times as fast as `torch.gather`
    along the classes.
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
    y: Tensor  # (b, n) labels in signed integers; 0 for ignored voxels
    ignored: Tensor | None  # (b, n), None where no voxel is

    def of(self, x: Tensor) -> Tensor:
        """Return the piece of a tensor (B, C, N)."""
        return x[self.images, :, self.where]

    def rows(self, classes: int) -> Tensor:
        """Return the labels (b, n) in int32, with C for ignored voxels."""
        y = as_int32(self.y)
        return y if self.ignored is None else y.masked_fill(self.ignored, classes)

    def own(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return a flat view of the images of x, and the positions in it of the entries of the voxels' classes."""
        images = x[self.images]
        return images.view(-1), own_entries(as_int32(self.y), images.shape, self.where)


def spans(images: int, classes: int, voxels: int) -> Iterator[tuple[slice, slice]]:
    """Yield the images and voxels of the pieces."""
    together = min(max(min(CHUNK, PIECE) // (classes * voxels), 1), images)
    length = -(-voxels // -(-classes * voxels // PIECE))
    for image, start in product(range(0, images, together), range(0, voxels, length)):
        yield slice(image, image + together), slice(start, start + length)


def pieces(shape: torch.Size, labels: Tensor, ignore_label: int | None) -> Iterator[Piece]:
    """Yield the pieces of labels (B, N), for logits of a shape (B, C, N).

    Raises:
        ValueError: for a label that has no class.
    """
    classes = shape[1]
    for of, where in spans(*shape):
        y, ignored = labels[of, where], None
        if y.dtype not in (torch.int8, torch.int16, torch.int32, torch.int64):
            y = as_int32(y)
        if ignore_label is not None and (mask := y == ignore_label).any():
            y, ignored = y.masked_fill(mask, 0), mask
        low, high = y.aminmax()
        if low < 0 or high >= classes:
            raise label_error(labels, classes, ignore_label)
        yield Piece(of, where, y, ignored)


def sparse_indices(unsure: NDArray[np.bool_]) -> Tensor | None:
    """Return where a flattened mask is true, or None if the piece is to be binned as a whole.

    The mask is NumPy's, which compares, counts and finds several times as fast as PyTorch.
    """
    if np.count_nonzero(unsure) >= MOSTLY * unsure.size:
        return None
    return torch.from_numpy(unsure.ravel().nonzero()[0])


def sum_of(p: Tensor) -> Tensor:
    """Return the sum over the last axis, in float64."""
    whole = p.shape[-1] // BLOCK * BLOCK
    blocks = p[..., :whole].view(*p.shape[:-1], BLOCK, whole // BLOCK).sum(-2)
    return blocks.sum(-1, dtype=torch.float64) + p[..., whole:].sum(-1, dtype=torch.float64)

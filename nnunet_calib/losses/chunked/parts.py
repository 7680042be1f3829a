"""Parts of a batch that are processed in turn, on any device, so that intermediate results take little memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from nnunet_calib.losses.targets import at_least_float32, label_error, widest

# Logits in a part: on a CPU few enough for the cache, elsewhere enough to keep a GPU busy.
ON_CPU = 2**18
ELSEWHERE = 2**21
BLOCK = 64  # numbers added, or factors multiplied, in their own precision


def part_size(device: torch.device) -> int:
    """Return the number of logits to process at a time."""
    return ON_CPU if device.type == "cpu" else ELSEWHERE


@dataclass(frozen=True)
class Labels:
    """A training target (B, 1 or C [+ 1], N), read in parts.

    Attributes:
        target: labels, or with `regions` binary maps.
        heads: C.
        regions: whether the target holds maps.
        ignore_label: label of ignored voxels; with maps, an extra channel marks them unless this is None.
    """

    target: Tensor
    heads: int
    regions: bool
    ignore_label: int | None

    def valid(self, images: slice, where: slice) -> Tensor | None:
        """Return the mask (b, 1, n) of the voxels that count, None if there is no ignore label."""
        if self.ignore_label is None:
            return None
        if self.regions:
            return self.target[images, self.heads :, where] == 0
        return self.target[images, :, where] != self.ignore_label

    def classes(self, images: slice, where: slice, valid: Tensor | None) -> Tensor:
        """Return the labels (b, 1, n) in int64, 0 in ignored voxels."""
        labels = self.target[images, :, where]
        return (labels if valid is None else torch.where(valid, labels, 0)).long()

    def maps(self, images: slice, where: slice, valid: Tensor | None) -> Tensor:
        """Return the regions (b, C, n), False in ignored voxels."""
        maps = self.target[images, : self.heads, where] != 0
        return maps if valid is None else maps & valid

    def check(self, images: slice, where: slice) -> None:
        """Raise ValueError for a label that has no class; on a CUDA device it trips a device-side assertion instead."""
        if self.regions:
            return
        classes = self.classes(images, where, self.valid(images, where))
        if classes.device.type != "cpu":
            classes.new_zeros(self.heads).index_select(0, classes.reshape(-1))
            return
        low, high = classes.aminmax()
        if low < 0 or high >= self.heads:
            raise self.error()

    def error(self) -> ValueError:
        """Return the error to raise for a label that has no class."""
        labels = self.target
        if self.ignore_label is not None:
            labels = torch.where(labels != self.ignore_label, labels, 0)
        return label_error(labels, self.heads, self.ignore_label)


def parts(logits: Tensor) -> Iterator[tuple[slice, slice]]:
    """Yield images and voxels of logits (B, C, N): a part of one image, or several small images."""
    images, heads, voxels = logits.shape
    size = part_size(logits.device)
    together = min(max(size // (heads * voxels), 1), images)
    length = max(-(-voxels // -(-heads * voxels // size)), 1)
    for image, start in product(range(0, images, together), range(0, voxels, length)):
        yield slice(image, image + together), slice(start, min(start + length, voxels))


def part_of(logits: Tensor, images: slice, where: slice, valid: Tensor | None) -> Tensor:
    """Return a part (b, C, n) in at least float32, 0 in ignored voxels, whose NaN must not reach any gradient."""
    part = at_least_float32(logits[images, :, where])
    return part if valid is None else torch.where(valid, part, 0)


def in_blocks(x: Tensor, product: bool = False) -> Tensor:
    """Return the sum over the last axis, or of the logarithms of factors in [1/2, 1], in the widest type."""
    whole, wide = x.shape[-1] // BLOCK * BLOCK, widest(x.device)
    blocks, rest = x[..., :whole].view(*x.shape[:-1], whole // BLOCK, BLOCK), x[..., whole:]
    if product:
        blocks, rest = blocks.prod(-1).log_(), rest.prod(-1).log_()
        return blocks.sum(-1, dtype=wide) + rest.to(wide)
    return blocks.sum(-1).sum(-1, dtype=wide) + rest.sum(-1, dtype=wide)

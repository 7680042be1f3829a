"""NACL and label smoothing, on any device, from soft labels that never exist as a whole.

The soft labels of a slab of the volume, for some of the heads, are computed from neighbour counts of one byte each.
Other losses are computed from the returned logits; their gradient passes through, and the term's own is added in place.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nnunet_calib.losses.chunked.parts import Labels, part_size
from nnunet_calib.losses.padded_rows import PaddedRow, distance_weights
from nnunet_calib.losses.targets import at_least_float32, widest


@dataclass(frozen=True)
class Neighbourhood:
    """The neighbours of a voxel and their weights.

    Attributes:
        sizes: odd, one per axis.
        sigma: of the weights of `spatially_varying_labels`, in voxels; None for equal weights.
    """

    sizes: tuple[int, ...]
    sigma: float | None

    def weighted_counts(self, maps: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the weight of the neighbours in binary maps (k, *spatial), the voxel itself included."""
        row = PaddedRow(maps.to(torch.uint8 if math.prod(self.sizes) < 256 else torch.int16), self.sizes)
        counts = row.combine(row.labels, by_distance=self.sigma is not None)
        weights = distance_weights(self.sizes, self.sigma)
        parts = (row.inside(x).view(maps.shape).to(dtype).mul_(weights[d][0]) for d, x in counts.items())
        return reduce(Tensor.add_, parts)


def soft_labels(own: Tensor, valid: Tensor | None, neighbourhood: Neighbourhood, dtype: torch.dtype) -> Tensor:
    """Return soft labels (b, g, *spatial) of binary maps, False in ignored voxels, and the mask (b, 1, *spatial)."""
    if math.prod(neighbourhood.sizes) == 1:
        return own.to(dtype)
    soft = neighbourhood.weighted_counts(own.flatten(0, 1), dtype).view(own.shape)
    if valid is None:
        weights = distance_weights(neighbourhood.sizes, neighbourhood.sigma).values()
        return soft.div_(sum(weight * number for weight, number in weights))
    total = neighbourhood.weighted_counts(valid[:, 0], dtype)[:, None]
    # zero only in ignored voxels whose neighbours are all ignored; their value is not used
    return soft.div_(total.clamp_min_(torch.finfo(dtype).tiny))


@dataclass(frozen=True)
class Slab:
    """A range of images, heads and rows of the first axis, and the rows with their neighbours."""

    images: slice
    heads: slice
    rows: slice
    around: slice

    def inner(self, x: Tensor) -> Tensor:
        """Return the slab's own rows of a tensor that includes the neighbours."""
        return x[:, :, self.rows.start - self.around.start : self.rows.stop - self.around.start]


def slabs(logits: Tensor, halo: int) -> Iterator[Slab]:
    """Yield the slabs of logits (B, C, *spatial), each about as large as a part."""
    images, heads, depth = logits.shape[:3]
    size, plane = part_size(logits.device), math.prod(logits.shape[3:])
    together = min(max(size // (heads * depth * plane), 1), images)
    rows = min(max(size // (heads * plane), 4 * halo, 1), depth)
    group = min(max(size // ((rows + 2 * halo) * plane), 1), heads)
    for image, start, head in product(range(0, images, together), range(0, depth, rows), range(0, heads, group)):
        stop = min(start + rows, depth)
        around = slice(max(start - halo, 0), min(stop + halo, depth))
        of_images, of_heads = slice(image, min(image + together, images)), slice(head, min(head + group, heads))
        yield Slab(of_images, of_heads, slice(start, stop), around)


@dataclass(frozen=True)
class SoftTarget:
    """A training target (B, 1 or C [+ 1], *spatial) and the neighbourhood that softens it."""

    labels: Labels
    neighbourhood: Neighbourhood

    def of(self, slab: Slab, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return hard labels (b, g, rows, ...) as a mask, soft ones, and the mask of the voxels that count."""
        labels, (heads, around) = self.labels, (slab.heads, slab.around)
        valid = labels.valid(slab.images, around)
        if labels.regions:
            own = labels.target[slab.images, heads, around] != 0
        else:
            classes = torch.arange(heads.start, heads.stop, device=labels.target.device)
            own = labels.target[slab.images, :, around] == classes.view(-1, *[1] * (labels.target.ndim - 2))
        if valid is not None:
            own &= valid
        soft = soft_labels(own, valid, self.neighbourhood, dtype)
        own, soft = slab.inner(own), slab.inner(soft)
        return own, soft, None if valid is None else slab.inner(valid)


class _Term(torch.autograd.Function):
    """The unchanged logits, and the sum over voxels of a term of the logits and their soft labels."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, soft: SoftTarget, kind: str) -> tuple[Tensor, Tensor]:
        """Return the logits (B, C, *spatial) and the sum. kind: "l1", "l2" or "smoothing"."""
        total = torch.zeros((), dtype=widest(logits.device), device=logits.device)
        for slab in slabs(logits, soft.neighbourhood.sizes[0] // 2):
            if slab.heads.start == 0:
                soft.labels.check(slab.images, slab.rows)
            z, other, valid = _look(logits, soft, slab, kind)
            values = z * other if kind == "smoothing" else (z - other).abs_() if kind == "l1" else (z - other).square_()
            if valid is not None:
                values = torch.where(valid, values, 0)
            total += values.flatten(0, -2).sum(1).sum(dtype=total.dtype)
        ctx.save_for_backward(logits, target)
        ctx.soft, ctx.kind = soft, kind
        ctx.set_materialize_grads(False)
        return logits.view_as(logits), total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, d_total: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the incoming gradient, with the term's own added in place."""
        logits, _ = ctx.saved_tensors
        if d_total is None:
            return gradient, None, None, None
        result = torch.zeros_like(logits) if gradient is None else gradient.contiguous()
        for slab in slabs(logits, ctx.soft.neighbourhood.sizes[0] // 2):
            z, other, valid = _look(logits, ctx.soft, slab, ctx.kind)
            scale = d_total.to(z.dtype)
            if ctx.kind == "smoothing":
                d_z = other * scale
            else:
                d_z = (z - other).sign_().mul_(scale) if ctx.kind == "l1" else (z - other).mul_(2 * scale)
            if valid is not None:
                d_z = torch.where(valid, d_z, 0)
            result[slab.images, slab.heads, slab.rows] += d_z
        return result, None, None, None


def _look(logits: Tensor, soft: SoftTarget, slab: Slab, kind: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return logits (b, g, rows, ...), 0 in ignored voxels; their soft labels or factors; and the mask."""
    z = at_least_float32(logits[slab.images, slab.heads, slab.rows])
    own, labels, valid = soft.of(slab, z.dtype)
    if kind == "smoothing":
        labels = own.to(z.dtype).sub_(labels)
    elif soft.labels.regions:
        labels = labels * 2 - 1
    return (z if valid is None else torch.where(valid, z, 0)), labels, valid


def term_of_soft_labels(
    logits: Tensor, target: Tensor, neighbourhood: Neighbourhood, kind: str, *, regions: bool, ignore_label: int | None
) -> tuple[Tensor, Tensor]:
    """Return the logits, to compute other losses from, and the mean of a term of them and their soft labels.

    Args:
        logits: (B, C, *spatial).
        target: nnU-Net's.
        neighbourhood: softens the labels.
        kind: "l1" or "l2" for the distance from the soft labels (from 2 tau - 1 for regions), a mean over voxels and
            heads; "smoothing" for the term added to the cross-entropy, a mean over voxels and, for regions, heads.
        regions: whether heads are regions.
        ignore_label: label of voxels to leave out.
    """
    labels = Labels(target, logits.shape[1], regions, ignore_label)
    z, total = _Term.apply(logits, target, SoftTarget(labels, neighbourhood), kind)
    valid = labels.valid(slice(None), slice(None))
    voxels = torch.full_like(total, target[:, 0].numel()) if valid is None else valid.sum().to(total.dtype)
    heads = 1 if kind == "smoothing" and not regions else logits.shape[1]
    return z, (total / (voxels * heads).clamp_min(1)).to(at_least_float32(logits).dtype)

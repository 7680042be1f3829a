"""The distance of logits from labels that are one-hot except at borders, on a CPU."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nnunet_calib.losses.cpu.autocast import without_autocast
from nnunet_calib.losses.cpu.borders import Borders
from nnunet_calib.losses.cpu.pieces import own_entries
from nnunet_calib.losses.targets import as_int32, positions

PIECE = 2**18  # logits processed at a time: with their distances, 2 MiB
IMAGES = 2**19  # voxels, of one image or of several, whose own logits are processed together


def _pieces(z: Tensor) -> Iterator[tuple[int, slice]]:
    """Yield images and voxels, a part of an image at a time."""
    images, classes, voxels = z.shape
    parts = -(-classes * voxels // PIECE)
    length = -(-voxels // parts)
    for image in range(images):
        for start in range(0, voxels, length):
            yield image, slice(start, min(start + length, voxels))


class DistanceToBorders(torch.autograd.Function):
    """The unchanged logits, and the sum of |z - tau| or (z - tau)^2, where tau is one-hot except at borders.

    tau never exists as a whole: the distance from 0 is corrected where a voxel's own class has 1, and at borders. For a
    region (C = 1) it is the distance from 2 tau - 1, and only corrected at borders. Other losses are computed from the
    returned logits: their gradient passes through, and the sum's is added in place.
    """

    @staticmethod
    @without_autocast
    def forward(ctx: Any, z: Tensor, borders: Borders, squared: bool) -> tuple[Tensor, Tensor]:
        """Return the logits and the sum over the voxels of (B, C, N) that count, in float64."""
        total = 0.0
        for image, where in _pieces(z):
            distance = _from_hard_labels(z, borders, image, where)
            total += float(distance.square().sum() if squared else distance.abs().sum())
        at, change, more = _at_borders(z, borders, squared)
        if z.shape[1] > 1:
            at_own, of_own, more_of_own = _at_own(z, borders, squared)
            at, change, more = torch.cat([at_own, at]), torch.cat([of_own, change]), more + more_of_own
        ctx.save_for_backward(z, at, change)
        ctx.options = borders, squared
        ctx.set_materialize_grads(False)
        return z.view_as(z), torch.tensor(total + more if math.isfinite(total) else total, dtype=torch.float64)

    @staticmethod
    @without_autocast
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, d_total: Tensor | None) -> tuple[Tensor | None, None, None]:
        """Return the incoming gradient with this term's added in place: that of hard labels, then the corrections."""
        (z, at, change), (borders, squared) = ctx.saved_tensors, ctx.options
        if d_total is None:
            return gradient, None, None
        scale = float(d_total)
        result = torch.empty_like(z) if gradient is None else gradient.contiguous()
        for image, where in _pieces(z):
            distance, d_part = _from_hard_labels(z, borders, image, where), result[image, :, where]
            derivative = 2 * distance if squared else distance.sign()
            if gradient is None:
                torch.mul(derivative, scale, out=d_part)
            else:
                d_part.add_(derivative, alpha=scale)
        result.view(-1).scatter_add_(0, at, change.mul(scale))
        return result, None, None


def _from_hard_labels(z: Tensor, borders: Borders, image: int, where: slice) -> Tensor:
    """Return the distances of a piece (C, n) of z: from 0, or for a region from 1 inside and -1 outside."""
    distance = z[image, :, where]
    if len(distance) == 1:
        distance = torch.rsub(borders.labels[image, None, where], 1, alpha=2).to(z.dtype).add_(distance)
    return distance if borders.valid is None else distance.masked_fill(~borders.valid[image, where], 0)


def _at_borders(z: Tensor, borders: Borders, squared: bool) -> tuple[Tensor, Tensor, float]:
    """Return entries of z at borders; what soft labels there add to the derivative, and altogether to the sum."""
    x, soft, hard = z.view(-1).index_select(0, borders.at), borders.soft, torch.zeros(())
    if z.shape[1] == 1:
        soft, hard = (
            v.mul(2).sub_(1) for v in (soft, borders.labels.reshape(-1).index_select(0, borders.at).to(z.dtype))
        )
    if squared:
        more, change = soft.square() - hard.square() - 2 * (soft - hard) * x, -2 * (soft - hard)
    else:  # |x - soft| - |x - hard|, likewise finite where x is not: then |x - hard| is all that counts
        low, high = torch.minimum(soft, hard), torch.maximum(soft, hard)
        more = (2 * torch.minimum(torch.maximum(x, low), high) - soft - hard).mul_((hard - soft).sign_())
        change = (x - soft).sign_().sub_((x - hard).sign_())
    return borders.at, change, float(more.sum(dtype=torch.float64))


def _at_own(z: Tensor, borders: Borders, squared: bool) -> tuple[Tensor, Tensor, float]:
    """Return entries of z of voxels' own classes away from borders, and what their 1 adds to derivative and sum."""
    at, change, more, voxels = [], [], 0.0, z.shape[2]
    together = max(IMAGES // voxels, 1)
    for first in range(0, len(z), together):
        of = slice(first, first + together)
        at_own = own_entries(as_int32(borders.labels[of]), z[of].shape)
        own = z[of].view(-1).index_select(0, at_own)
        # voxels where tau has no 1
        without = [where + image * voxels for image, where in enumerate(borders.where[of])]
        if borders.valid is not None:
            without.append(positions(~borders.valid[of]))
        others = torch.cat(without)
        if squared:
            more += float((1 - 2 * own).index_fill_(0, others, 0).sum())
            d_own = own.fill_(-2).index_fill_(0, others, 0)
        else:
            # |x - 1| - |x| = 1 - 2 clamp(x), and beyond [0, 1] the derivative is that of |x|
            inside = own.index_fill_(0, others, -1).clamp(0, 1)
            more += len(own) - len(others) - 2 * float(inside.sum())
            # a trained network has hardly any in between, which the nearest one tells sooner than a look at each
            some = own.numel() and float((own - 0.5).abs_().amin()) <= 0.5
            near = positions(own == inside) if some else at_own[:0]
            at_own, inside = (x.index_select(0, near) for x in (at_own, inside))
            d_own = (inside - 1).sign_().sub_(inside.sign())
        at.append(at_own.long() + first * z.shape[1] * voxels)
        change.append(d_own)
    return torch.cat(at), torch.cat(change), more


def distance_to_borders(logits: Tensor, borders: Borders, *, squared: bool) -> tuple[Tensor, Tensor]:
    """Return the logits, to compute other losses from, and their mean distance from the labels.

    The logits are at least float32.
    """
    z, total = DistanceToBorders.apply(logits.flatten(2).contiguous(), borders, squared)
    return z.view(logits.shape), (total / max(borders.count * logits.shape[1], 1)).to(logits.dtype)

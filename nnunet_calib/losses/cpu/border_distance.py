"""The distance of logits from labels that are one-hot but for the voxels at borders, on a CPU."""

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

PIECE = 2**18  # logits worked on at a time: with their distances, 2 MiB
IMAGES = 2**19  # voxels, of one image or of several, whose own logits are looked at together


def _pieces(z: Tensor) -> Iterator[tuple[int, slice]]:
    """Images and voxels, a part of an image at a time."""
    images, classes, voxels = z.shape
    parts = -(-classes * voxels // PIECE)
    length = -(-voxels // parts)
    for image in range(images):
        for start in range(0, voxels, length):
            yield image, slice(start, min(start + length, voxels))


class DistanceToBorders(torch.autograd.Function):
    """Logits as they are, and the sum of |z - tau| or (z - tau)^2, where tau is one-hot but for the voxels at borders.

    tau never exists as a whole: the distance from 0 is corrected where a voxel's own class has 1, and at borders. What
    is computed from the logits returned brings a gradient of full size; the sum's is added to it in place.
    """

    @staticmethod
    @without_autocast
    def forward(ctx: Any, z: Tensor, borders: Borders, squared: bool) -> tuple[Tensor, Tensor]:
        """Return the logits (B, C, N) and the sum of distances over the voxels that count, in float64."""
        valid, voxels, total = borders.valid, z.shape[2], 0.0
        for image, where in _pieces(z):
            part = z[image, :, where]
            distance = part.square() if squared else part.abs()
            if valid is not None:
                distance.masked_fill_(~valid[image, where], 0)
            total += float(distance.sum())
        at, change, more = [], [], 0.0
        together = max(IMAGES // voxels, 1)
        for first in range(0, len(z), together):
            of = slice(first, first + together)
            at_own = own_entries(as_int32(borders.labels[of]), z[of].shape)
            own = z[of].view(-1).index_select(0, at_own)
            # what tau has no 1 for
            without = [where + image * voxels for image, where in enumerate(borders.where[of])]
            if valid is not None:
                without.append(positions(~valid[of]))
            others = torch.cat(without)
            if squared:
                more += float((1 - 2 * own).index_fill_(0, others, 0).sum())
                d_own = own.fill_(-2).index_fill_(0, others, 0)
            else:
                # |x - 1| - |x| = 1 - 2 clamp(x), and beyond the derivative is that of |x|
                inside = own.index_fill_(0, others, -1).clamp(0, 1)
                more += len(own) - len(others) - 2 * float(inside.sum())
                # a trained network has hardly any, which the nearest one tells sooner than a look at each
                some = own.numel() and float((own - 0.5).abs_().amin()) <= 0.5
                near = positions(own == inside) if some else at_own[:0]
                at_own, inside = (x.index_select(0, near) for x in (at_own, inside))
                d_own = (inside - 1).sign_().sub_(inside.sign())
            at.append(at_own.long() + first * z.shape[1] * voxels)
            change.append(d_own)
        x, soft = z.view(-1).index_select(0, borders.at), borders.soft
        if squared:
            to_soft, d_soft = soft.square() - 2 * soft * x, -2 * soft
        else:  # |x - s| - |x|, likewise finite where x is not: then |x| says it all
            to_soft, d_soft = soft - 2 * torch.minimum(x.clamp_min(0), soft), (x - soft).sign_().sub_(x.sign_())
        more += float(to_soft.sum(dtype=torch.float64))
        ctx.save_for_backward(z, torch.cat([*at, borders.at]), torch.cat([*change, d_soft]))
        ctx.options = valid, squared
        ctx.set_materialize_grads(False)
        return z.view_as(z), torch.tensor(total + more if math.isfinite(total) else total, dtype=torch.float64)

    @staticmethod
    @without_autocast
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, d_total: Tensor | None) -> tuple[Tensor | None, None, None]:
        """Return the gradient plus that of the distances: first of those from 0, then corrected where tau > 0."""
        (z, at, change), (valid, squared) = ctx.saved_tensors, ctx.options
        if d_total is None:
            return gradient, None, None
        scale = float(d_total)
        result = torch.empty_like(z) if gradient is None else gradient.contiguous()
        for image, where in _pieces(z):
            part, d_part = z[image, :, where], result[image, :, where]
            derivative = 2 * part if squared else part.sign()
            if valid is not None:
                derivative.masked_fill_(~valid[image, where], 0)
            if gradient is None:
                torch.mul(derivative, scale, out=d_part)
            else:
                d_part.add_(derivative, alpha=scale)
        result.view(-1).scatter_add_(0, at, change.mul(scale))
        return result, None, None


def distance_to_borders(logits: Tensor, borders: Borders, *, squared: bool) -> tuple[Tensor, Tensor]:
    """Return the logits, to go on with, and their mean distance from the labels.

    Compute other losses from the returned logits: their gradient then passes through, and no second one of full size
    is allocated. The logits are at least float32.
    """
    z, total = DistanceToBorders.apply(logits.flatten(2).contiguous(), borders, squared)
    return z.view(logits.shape), (total / max(borders.count * logits.shape[1], 1)).to(logits.dtype)

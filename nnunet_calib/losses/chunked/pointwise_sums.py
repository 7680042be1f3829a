"""Sums of terms that depend on one voxel each, a part of the voxels at a time, on any device.

The backward pass recomputes each part, so that besides the gradient memory is needed for one part only. Other losses
are computed from the returned logits, and the terms' gradient is added to theirs in place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nnunet_calib.losses.backends import Formula
from nnunet_calib.losses.chunked.parts import Labels, in_blocks, part_of, parts
from nnunet_calib.losses.targets import widest


class PointwiseSums(torch.autograd.Function):
    """The unchanged logits, and the sums by image and head of a formula's terms over the voxels that count."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, labels: Labels, formula: Formula) -> tuple[Tensor, Tensor]:
        """Return the logits (B, C, N) and the sums (K, B, C); the target (B, 1 or C [+ 1], N) is that of the labels."""
        images, heads, _ = logits.shape
        sums = torch.zeros((formula.number, images, heads), dtype=widest(logits.device), device=logits.device)
        for of, where in parts(logits):
            labels.check(of, where)
            z, y, valid = _look(logits, labels, of, where)
            for total, term in zip(sums, formula.terms(z, y, labels.regions), strict=True):
                total[of] += in_blocks(term if valid is None else torch.where(valid, term, 0))
        ctx.save_for_backward(logits, target)
        ctx.labels, ctx.formula = labels, formula
        ctx.set_materialize_grads(False)
        return logits.view_as(logits), sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, d_sums: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the incoming gradient, with the terms' own added in place."""
        logits, _ = ctx.saved_tensors
        if d_sums is None:
            return gradient, None, None, None
        result = torch.zeros_like(logits) if gradient is None else gradient.contiguous()
        for of, where in parts(logits):
            z, y, valid = _look(logits, ctx.labels, of, where)
            weights = (d[of, :, None].to(z.dtype) for d in d_sums)
            d_z = ctx.formula.slope(z, y, ctx.labels.regions, *weights)
            result[of, :, where] += d_z if valid is None else torch.where(valid, d_z, 0)
        return result, None, None, None


def _look(logits: Tensor, labels: Labels, images: slice, where: slice) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return logits (b, C, n), 0 in ignored voxels, maps of their labels, and the mask of the voxels that count."""
    valid = labels.valid(images, where)
    z = part_of(logits, images, where, valid)
    if labels.regions:
        y = labels.maps(images, where, valid)
    else:
        y = labels.classes(images, where, valid) == torch.arange(labels.heads, device=z.device)[:, None]
    return z, y.to(z.dtype), valid

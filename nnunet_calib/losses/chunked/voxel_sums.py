"""The sums for Dice, cross-entropy and mL1-ACE, a part of the voxels at a time, on any device.

`cpu.voxel_sums` explains what the sums are for. Here the work does not depend on the data: no voxels are picked out, so
that nothing waits for a GPU. No probabilities are kept, the backward pass computes them again. Besides the gradient,
only one part needs memory.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nnunet_calib.losses.chunked.bins import BinTables, Segments
from nnunet_calib.losses.chunked.parts import Labels, in_blocks, part_of, parts
from nnunet_calib.losses.targets import widest


class _Part(NamedTuple):
    """Probabilities and labels of a part, (b, C, n), or (b, 1, n) where all classes share them."""

    p: Tensor
    own: Tensor  # 1 where the voxel has the class or lies in the region
    valid: Tensor | None
    other: Tensor  # for regions 1 - p, without cancellation; for labels p
    nll: Tensor  # (), the sum of -log p_y or of the binary cross-entropy


def _look(logits: Tensor, labels: Labels, images: slice, where: slice, with_nll: bool) -> _Part:
    valid = labels.valid(images, where)
    z = part_of(logits, images, where, valid)
    nothing = z.new_zeros(())
    if labels.regions:
        own = labels.maps(images, where, valid).to(z.dtype)
        p, other = torch.sigmoid(z), torch.sigmoid(-z)
        if not with_nll:
            return _Part(p, own, valid, other, nothing)
        larger = torch.maximum(p, other)
        if valid is not None:
            larger = torch.where(valid, larger, 1)
        nll = in_blocks(z.clamp_min(0).sub_(z * own)) - in_blocks(larger, product=True)
        return _Part(p, own, valid, other, nll.sum())
    classes = labels.classes(images, where, valid)
    own = classes == torch.arange(labels.heads, device=z.device)[:, None]
    if valid is not None:
        own &= valid
    z = z - z.amax(1, keepdim=True)  # first, to keep the digits of 1 - p
    lse = z.exp().sum(1, keepdim=True).log_()
    nll = nothing
    if with_nll:
        try:
            nll = lse - z.gather(1, classes)
        except RuntimeError as error:
            if z.device.type != "cpu":
                raise
            raise labels.error() from error
        nll = in_blocks(nll if valid is None else torch.where(valid, nll, 0)).sum()
    p = z.sub_(lse).exp_()
    return _Part(p, own.to(p.dtype), valid, p, nll)


class ChunkedSums(torch.autograd.Function):
    """Sums over the voxels that count."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, num_bins: int, soft: bool, regions: bool, ignore_label: int | None
    ) -> tuple[Tensor, ...]:
        """Return the fields of `backends.VoxelSums`, given logits (B, C, N) and a target (B, 1 or C [+ 1], N)."""
        images, heads, _ = logits.shape
        labels = Labels(target, heads, regions, ignore_label)
        zero = torch.zeros((), dtype=widest(logits.device), device=logits.device)
        nll, voxels = zero.clone(), zero.clone()
        total, of_true, number = (zero.new_zeros((images, heads)) for _ in range(3))
        tables = _tables(logits, num_bins, soft)
        for of, where in parts(logits):
            part = _look(logits, labels, of, where, with_nll=True)
            p = part.p if part.valid is None else torch.where(part.valid, part.p, 0)
            nll += part.nll
            total[of] += in_blocks(p)
            of_true[of] += in_blocks(p * part.own)
            number[of] += part.own.sum(2)
            voxels += p.shape[0] * p.shape[2] if part.valid is None else part.valid.sum()
            if tables is not None:
                tables.add(of, p, part.own, part.valid)
        ctx.save_for_backward(logits, target)
        ctx.options = num_bins, soft, regions, ignore_label
        if tables is None:
            weight = probability = positive = total.new_zeros((images, heads, 0))
        else:
            weight, probability, positive = tables.bins()
            probability = probability + (total * 0)[..., None]  # NaN, which the integers cannot hold
        ctx.mark_non_differentiable(number, voxels, *(() if soft else (weight, positive)))
        return nll, total, of_true, number, voxels, weight, probability, positive

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        d_nll: Tensor,
        d_total: Tensor,
        d_of_true: Tensor,
        _number: Any,
        _voxels: Any,
        d_weight: Tensor,
        d_probability: Tensor,
        d_positive: Tensor,
    ) -> tuple[Tensor | None, ...]:
        """Return the gradient of the logits, given those of the sums."""
        logits, target = ctx.saved_tensors
        num_bins, soft, regions, ignore_label = ctx.options
        labels = Labels(target, logits.shape[1], regions, ignore_label)
        tables = _tables(logits, num_bins, soft)
        coefficients = tables.derivatives(d_weight, d_probability, d_positive) if tables is not None else []
        if coefficients:
            coefficients[0] = coefficients[0] + d_total[..., None]
        gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
        for of, where in parts(logits):
            part = _look(logits, labels, of, where, with_nll=False)
            p, own = part.p, part.own
            of_own, of_nll = d_of_true[of, :, None].to(p.dtype), d_nll.to(p.dtype)
            if tables is None:
                u = own * of_own + d_total[of, :, None].to(p.dtype)
            else:
                u = tables.look_up([c[of].to(p.dtype) for c in coefficients], p, own).addcmul_(own, of_own)
            if regions:
                d_z = u.mul_(p).mul_(part.other).add_((p - own).mul_(of_nll))
            else:
                d_z = u.sub_((u * p).sum(1, keepdim=True)).add_(of_nll).mul_(p).sub_(own.mul_(of_nll))
            gradient[of, :, where] = d_z if part.valid is None else torch.where(part.valid, d_z, 0)
        return gradient, None, None, None, None, None


def _tables(logits: Tensor, num_bins: int, soft: bool) -> BinTables | None:
    """Return empty tables for the bins, None without bins."""
    if not num_bins:
        return None
    images, heads, _ = logits.shape
    return BinTables(Segments(num_bins, soft), images, heads, logits)

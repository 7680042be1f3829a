"""The sums of `voxel_sums` where there are two classes: then everything follows from one number for each voxel.

Let y be a voxel's class, r the probability of the other one, s = 1 where y = 0 and -1 where y = 1. With the logits z,

    t = s (z_1 - z_0),    r = sigmoid(t),    p_y = 1 - r = sigmoid(-t),    -log p_y = log(1 + e^t),

    dr / dt = r (1 - r),    d(-log p_y) / dt = r,    dt / dz_1 = s = -dt / dz_0.

So no softmax is needed, nothing has to be picked out by class, and half as many numbers are added up, in about half the
time. t and s lie where the gradient will be. Ignored voxels have s = 0 and t = -inf, so that r = 0: they add to no sum
and have no gradient.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from math import gcd, inf, isfinite, nan
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nnunet_calib.losses.cpu.autocast import without_autocast
from nnunet_calib.losses.cpu.bin_sums import BinSums, Chunks
from nnunet_calib.losses.cpu.pieces import MARGIN, Piece, few, pieces, sum_of

FACTORS = 32  # probabilities of at least 1/2 in a product


def _fill(kept: Tensor, logits: Tensor, labels: Tensor, ignore_label: int | None) -> Iterator[tuple[Piece, bool]]:
    """Put t and s into the two rows of `kept`, a piece at a time; tell if no voxel that counts has a NaN for a softmax.

    Finite logits far apart have an infinite t, and the right r.
    """
    for piece in pieces(logits.shape, labels, ignore_label):
        (t, s), (z_0, z_1) = (piece.of(x).unbind(1) for x in (kept, logits))
        s.copy_(torch.rsub(piece.y, 1, alpha=2))
        torch.sub(z_1, z_0, out=t).mul_(s)
        if piece.ignored is not None:
            s.masked_fill_(piece.ignored, 0)
            t.masked_fill_(piece.ignored, 0)
        low, high = t.aminmax()
        if piece.ignored is not None:
            t.masked_fill_(piece.ignored, -inf)
        yield piece, isfinite(high - low) or not _has_nan(piece, logits)


def _has_nan(piece: Piece, logits: Tensor) -> bool:
    """Whether the softmax of a voxel that counts is NaN."""
    of_softmax = torch.softmax(piece.of(logits), 1).isnan().any(1)
    return bool((of_softmax if piece.ignored is None else of_softmax & ~piece.ignored).any())


def _both(t: Tensor) -> Tensor:
    """p_y and r (b, 2, n), the small ones with all their digits."""
    return torch.stack([-t, t], 1).sigmoid_()


def _by_sign(x: Tensor) -> Tensor:
    """Return the sums (b, 2) of the positive values and of the negated negative ones, in float64."""
    return torch.stack([sum_of(x.clamp_min(0)), -sum_of(x.clamp_max(0))], 1)


def _row(s: Tensor) -> Tensor:
    """Where bins have their row: 0 and 2 for the classes 0 and 1, 1 for ignored voxels."""
    return (1 - s).int()[:, None]


class TwoClassSums(torch.autograd.Function):
    """The sums over the voxels that count."""

    @staticmethod
    @without_autocast
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, num_bins: int, ignore_label: int | None
    ) -> tuple[Tensor, ...]:
        """Return the sums of `voxel_sums.SoftmaxSums`, for C = 2."""
        images = len(logits)
        nll = torch.zeros((), dtype=torch.float64)
        number, other = (nll.new_zeros((images, 2)) for _ in range(2))  # voxels of a class, and the sum of their r
        sums, chunks = BinSums(images, 6, num_bins, logits.dtype), Chunks(num_bins, logits.numel())
        ctx.p, ctx.kept = torch.empty(logits.shape, dtype=logits.dtype), []
        for piece, known in _fill(ctx.p, logits, labels, ignore_label):
            if not known:  # no bin holds it, and all sums are NaN
                ctx.kept = None
                for x in (nll, number, other, sums.tables):
                    x.fill_(nan)
                break
            b, (t, s), index = piece.images, piece.of(ctx.p).unbind(1), None
            r = torch.sigmoid(t)
            # log(1 + e^t) = max(t, 0) - log of the larger probability
            larger = torch.maximum(r, 1 - r).view(gcd(r.numel(), FACTORS), -1)
            nll += t.clamp_min(0).sum(dtype=torch.float64) - larger.prod(0).log_().sum(dtype=torch.float64)
            number[b] += _by_sign(s)
            other[b] += _by_sign(r * s)
            if num_bins:
                index = few(r > 1 / num_bins - MARGIN)
                if index is not None:
                    t, s = (x.index_select(1, index) for x in (t, s))
                sums.add(b, _both(t), chunks, _row(s))
            ctx.kept.append((b, piece.where, index))
        of_true = number - other
        weight = probability = positive = nll.new_zeros((images, 2, 0))
        if num_bins:
            n, total = (x.view(images, 2, 3, -1)[:, :, ::2] for x in sums.result())
            sure, sure_r = number - n[:, 0].sum(2), other - total[:, 1].sum(2)
            positive = n[:, 0].clone()
            positive[..., -1] += sure
            # r is the probability of the class that a voxel is not of
            weight, probability = positive + n[:, 1].flip(1), total[:, 0] + total[:, 1].flip(1)
            weight[..., 0] += sure.flip(1)
            probability[..., 0] += sure_r.flip(1)
            probability[..., -1] += sure - sure_r
        ctx.save_for_backward(logits, labels)
        ctx.options = num_bins, ignore_label
        ctx.mark_non_differentiable(number, weight, positive)
        return nll, of_true + other.flip(1), of_true, number, probability, weight, positive

    @staticmethod
    @without_autocast
    @once_differentiable
    def backward(
        ctx: Any, d_nll: Tensor, d_total: Tensor, d_of_true: Tensor, _: Tensor, d_bins: Tensor, *__: Tensor
    ) -> tuple[Tensor, None, None, None]:
        """Return the gradient of the logits, given the gradients of the sums."""
        logits, labels = ctx.saved_tensors
        num_bins, ignore_label = ctx.options
        if ctx.kept is None:
            return torch.full_like(logits, nan), None, None, None
        p, ctx.p = ctx.p, None
        if p is None:
            p = torch.empty(logits.shape, dtype=logits.dtype)
            deque(_fill(p, logits, labels, ignore_label), maxlen=0)
        # the derivatives u_y of p_y, and u_r of r, by y and bin; of sure voxels u_r - u_y is linear in s
        by_bin = torch.cat([d_bins, d_bins[..., -1:]], 2) + d_total[..., None] if num_bins else d_total[..., None]
        u_y, u_r = by_bin + d_of_true[..., None], by_bin.flip(1)
        of_sure = (u_r[..., 0] - u_y[..., -1])[..., None]
        middle, slope = of_sure.sum(1) / 2, of_sure.diff(dim=1)[:, 0] / -2
        tables = u_y.new_zeros((len(p), 2, 3, u_y.shape[2]))
        tables[:, 0, ::2], tables[:, 1, ::2] = u_y, u_r
        tables, middle, slope, d_nll = (d.to(p.dtype) for d in (tables.flatten(2), middle, slope, d_nll))
        chunks = Chunks(num_bins, p.numel())

        def differentiate(u: Tensor, p_y: Tensor, r: Tensor) -> Tensor:
            """Return the derivative of t, which overwrites u = u_r - u_y."""
            return u.mul_(p_y).add_(d_nll).mul_(r)

        def differentiate_unsure(b: slice, t: Tensor, s: Tensor) -> Tensor:
            """Return the same a chunk at a time, with u from the bins of p_y and r."""
            both, row, d_t = _both(t), _row(s), torch.empty_like(t)
            for where in chunks.of(both):
                part = both[..., where]
                u_y, u_r = chunks.look_up(tables[b], part, row[..., where]).unbind(1)
                d_t[:, where] = differentiate(u_r - u_y, *part.unbind(1))
            return d_t

        for b, where, index in ctx.kept:
            t, s = p[b, :, where].unbind(1)
            if num_bins and index is None:
                d_t = differentiate_unsure(b, t, s)
            else:
                r = torch.sigmoid(t)
                d_t = differentiate(torch.addcmul(middle[b], s, slope[b]), 1 - r, r)
                if index is not None:
                    d_t.index_copy_(1, index, differentiate_unsure(b, *(x.index_select(1, index) for x in (t, s))))
            s.mul_(d_t)
            torch.neg(s, out=t)
        return p, None, None, None

"""The sums of `voxel_sums` for two classes, or for regions: then everything follows from one number for each voxel.

Let y be a voxel's class, 0 or 1, r the probability of the other one, s = 1 where y = 0 and -1 where y = 1. With the
logits z,

    t = s (z_1 - z_0),    r = sigmoid(t),    p_y = 1 - r = sigmoid(-t),    -log p_y = log(1 + e^t),

    dr / dt = r (1 - r),    d(-log p_y) / dt = r,    dt / dz_1 = s = -dt / dz_0.

So no softmax is needed, nothing has to be picked out by class, and half as many numbers are added up, in about half the
time. A head of a region is an image of two classes, the outside with logit 0 and the inside with that of the head: only
z_1 exists, and only the probability of class 1 is binned.

One number, s r, is kept for each voxel, where the gradient of z_1 will be. Ignored voxels have s = 0: they add to no
sum and get no gradient. Voxels with r above the first bin, the unsure, are collected, and binned all at once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from math import gcd, isfinite, log, nan
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nnunet_calib.losses.cpu.autocast import without_autocast
from nnunet_calib.losses.cpu.bin_sums import BinSums, Chunks
from nnunet_calib.losses.cpu.pieces import MARGIN, Piece, pieces, spans, sparse_indices, sum_of

FACTORS = 32  # probabilities of at least 1/2 in a product
ROWS = 3  # of an image in the tables of bins: y = 0, ignored, y = 1


def _margins(z: Tensor, s: Tensor, ignored: Tensor | None = None) -> Tensor:
    """Return t (b, n), 0 in ignored voxels, given logits (b, 1 or 2, n)."""
    t = z[:, 0] * s if z.shape[1] == 1 else torch.sub(z[:, 1], z[:, 0]).mul_(s)
    return t if ignored is None else t.masked_fill_(ignored, 0)


def _fill(
    kept: Tensor, logits: Tensor, labels: Tensor, ignore_label: int | None
) -> Iterator[tuple[Piece, Tensor, Tensor, Tensor]]:
    """Write s r to the last row of `kept`, a piece at a time, and yield the piece with its s, t and r (b, n)."""
    images, _, voxels = logits.shape
    for piece in pieces(torch.Size((images, 2, voxels)), labels, ignore_label):
        s = torch.rsub(piece.y, 1, alpha=2).to(logits.dtype)
        if piece.ignored is not None:
            s.masked_fill_(piece.ignored, 0)
        t = _margins(piece.of(logits), s, piece.ignored)
        r = torch.sigmoid(t)
        if piece.ignored is not None:
            r.masked_fill_(piece.ignored, 0)
        torch.mul(r, s, out=piece.of(kept)[:, -1])
        yield piece, s, t, r


def _has_nan(piece: Piece, t: Tensor, logits: Tensor) -> bool:
    """Return whether the probability of a voxel that counts is NaN.

    Finite logits of two classes that are far apart have an infinite t, and the right r.
    """
    low, high = t.aminmax()
    if isfinite(high - low):
        return False
    z = piece.of(logits)
    of_voxels = (z if z.shape[1] == 1 else torch.softmax(z, 1)).isnan().any(1)
    return bool((of_voxels if piece.ignored is None else of_voxels & ~piece.ignored).any())


def _numbers(piece: Piece) -> Tensor:
    """Return the numbers of voxels with y = 0 and 1 (b, 2)."""
    positive = torch.tensor([np.count_nonzero(y) for y in piece.y.numpy()])
    valid = piece.y.shape[1] if piece.ignored is None else (~piece.ignored).sum(1)
    return torch.stack([valid - positive, positive], 1)


def _nll(t: Tensor, r: Tensor) -> Tensor:
    """Return the sum of log(1 + e^t) = max(t, 0) - log of the larger probability, in float64."""
    return sum_of(t.clamp_min(0)).sum() - _log_product(torch.maximum(r, 1 - r))


def _nll_of_most(r: Tensor) -> Tensor:
    """Return the sum of -log(1 - r) over voxels with r <= 1/2, and of log 2 over the others."""
    return -_log_product((1 - r).clamp_min_(0.5))


def _nll_of_others(t: Tensor) -> Tensor:
    """Return the rest of the sum, where r > 1/2: of log(1 + e^t) - log 2 = t - log r - log 2 over t > 0."""
    t = t.clamp_min(0)
    return (t - t.sigmoid().log_() - log(2)).sum(dtype=torch.float64)


def _log_product(p: Tensor) -> Tensor:
    """Return the sum of the logarithms of probabilities of at least 1/2, in float64."""
    return p.view(gcd(p.numel(), FACTORS), -1).prod(0).log_().sum(dtype=torch.float64)


def _binned(z: Tensor, s: Tensor, image: Tensor, ignored: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the probabilities to be binned, (1, C, k), and their rows in the tables, (1, 1, k), of voxels (b, C, n).

    For two classes they are p_y and r, the small ones with all their digits; for a region p_1.
    """
    if z.shape[1] == 2:
        t = _margins(z, s, ignored)
        p = torch.stack([-t, t]).sigmoid_()
    else:
        p = torch.sigmoid(z[:, 0] if ignored is None else z[:, 0].masked_fill(ignored, 0))
    row = (1 - s).int().add_(image, alpha=ROWS)
    return p.view(1, z.shape[1], -1), row.view(1, 1, -1)


def _tables(sums: BinSums, number: Tensor, other: Tensor, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return weight, sum of p and positives (B, C, M) of each bin, given what was binned and sums over all voxels.

    `number` (B, 2) is that of the voxels with y = 0 and 1, `other` the sum of their r. A voxel that was not binned has
    its r in the first bin and its p_y in the last one.
    """
    n, total = (x.view(classes, len(number), ROWS, -1)[:, :, ::2] for x in sums.result())
    if classes == 2:
        own_n, other_n, own_p, other_p = n[0], n[1].flip(1), total[0], total[1].flip(1)
    else:
        own_n, other_n, own_p, other_p = n[0, :, 1:], n[0, :, :1], total[0, :, 1:], total[0, :, :1]
    own, others, r_of_own, r_of_others = (x[:, -classes:] for x in (number, number.flip(1), other, other.flip(1)))
    sure = own - own_n.sum(2)
    positive = own_n.clone()
    positive[..., -1] += sure
    weight, probability = positive + other_n, own_p + other_p
    weight[..., 0] += others - other_n.sum(2)
    probability[..., 0] += r_of_others - other_p.sum(2)
    probability[..., -1] += sure - (r_of_own - (own_n - own_p).sum(2))
    return weight, probability, positive


def _derivatives(d_total: Tensor, d_of_true: Tensor, d_bins: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the derivatives by what was binned, as the tables are laid out, and those of the other voxels.

    With the derivatives u_y of p_y and u_r of r, that of the others is u_r - u_y, linear in s: its middle (B, 1) and
    its slope.
    """
    images, classes, num_bins = d_bins.shape
    by_bin = torch.cat([d_bins, d_bins[..., -1:]], 2) if num_bins else d_total.new_zeros((images, classes, 1))
    other = by_bin + d_total[..., None]  # where y is not c
    own = other + d_of_true[..., None]
    tables = own.new_zeros((classes, images, ROWS, own.shape[2]))
    if classes == 2:
        tables[0, :, ::2], tables[1, :, ::2] = own, other.flip(1)
        u = other.flip(1)[..., 0] - own[..., -1]
    else:
        tables[0, :, 0], tables[0, :, 2] = other[:, 0], own[:, 0]
        u = torch.cat([other[..., 0], -own[..., -1]], 1)
    return tables.view(1, classes, -1), u.sum(1, keepdim=True) / 2, u.diff(dim=1) / -2


def _differentiate_binned(
    kept: Tensor, z: Tensor, image: Tensor, ignored: Tensor | None, tables: Tensor, d_nll: float, chunks: Chunks
) -> Tensor:
    """Return the derivative of z_1 (b, n) as below, a chunk at a time, with u_y and u_r as they are in the bins."""
    s = kept.sign()
    p, row = _binned(z, s, image, ignored)
    # not 1 - r, whose last digits count where a bin holds few voxels
    p_y = p[0, 0] if len(p[0]) == 2 else _margins(z, s, ignored).neg_().sigmoid_().view(-1)
    flat = kept.reshape(-1)
    r, result = flat.abs(), torch.empty_like(flat)
    for where in chunks.of(p):
        u = chunks.look_up(tables, p[..., where], row[..., where])[0]
        of_bins = (u[1] - u[0]).mul_(flat[where]) if len(u) == 2 else u[0].mul_(r[where])
        torch.add(of_bins.mul_(p_y[where]), flat[where], alpha=d_nll, out=result[where])
    return result.view(kept.shape)


def _differentiate(kept: Tensor, middle: Tensor, slope: Tensor, d_nll: float) -> None:
    """Turn s r (b, n) of voxels that were not binned into the derivative of z_1, in place.

    It is s r (u (1 - r) + d_nll) with u = middle + slope s.
    """
    r = kept.abs()
    p_y = 1 - r
    torch.add(r.mul_(slope).addcmul_(kept, middle).mul_(p_y), kept, alpha=d_nll, out=kept)


class TwoClassSums(torch.autograd.Function):
    """Sums over the voxels that count."""

    @staticmethod
    @without_autocast
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, num_bins: int, ignore_label: int | None
    ) -> tuple[Tensor, ...]:
        """Return what `voxel_sums.SoftmaxSums` returns, for logits (B, 2, N); for (B, 1, N) that of class 1 only."""
        images, classes, voxels = logits.shape
        nll = torch.zeros((), dtype=torch.float64)
        number, other = (nll.new_zeros((images, 2)) for _ in range(2))  # voxels with y = 0 and 1, and sums of their r
        sums, chunks = BinSums(1, classes * images * ROWS, num_bins, logits.dtype), Chunks(num_bins, logits.numel())
        unsure_above = min(1 / num_bins - MARGIN, 0.5) if num_bins else 0.5
        ctx.p, ctx.whole, sparse = torch.empty_like(logits), [], []
        for piece, s, t, r in _fill(ctx.p, logits, labels, ignore_label):
            if _has_nan(piece, t, logits):  # no bin holds it, and all sums are NaN
                ctx.whole = None
                for x in (nll, number, other, sums.tables):
                    x.fill_(nan)
                break
            b, of_all, signed = piece.images, sum_of(r), sum_of(piece.of(ctx.p)[:, -1])
            number[b] += _numbers(piece)
            other[b] += torch.stack([of_all + signed, of_all - signed], 1).div_(2)
            index = sparse_indices(r.numpy() > unsure_above)
            ctx.whole.append(index is None)
            if index is None:
                nll += _nll(t, r)
                if num_bins:
                    image = torch.arange(b.start, b.start + len(s), dtype=torch.int32)[:, None]
                    p, row = _binned(piece.of(logits), s, image, piece.ignored)
                    sums.add(slice(1), p, chunks, row)
            else:
                nll += _nll_of_most(r)
                z, s = (x.flatten(-2).index_select(-1, index) for x in (piece.of(logits).movedim(1, 0), s))
                sparse.append((index + (b.start * voxels + piece.where.start), z, s))
        at, z, s = (
            (torch.cat(x, -1) for x in zip(*sparse, strict=True))
            if sparse
            else (labels.new_zeros(0, dtype=torch.int64), logits.new_zeros((classes, 0)), logits.new_zeros(0))
        )
        z, s = z[None], s[None]
        weight = probability = positive = nll.new_zeros((images, classes, 0))
        if ctx.whole is not None:
            nll += _nll_of_others(_margins(z, s))
        if num_bins:
            p, row = _binned(z, s, at.div(voxels, rounding_mode="floor").int())
            sums.add(slice(1), p, chunks, row)
            weight, probability, positive = _tables(sums, number, other, classes)
        ctx.save_for_backward(logits, labels, at)
        ctx.options = num_bins, ignore_label
        number, other, of_others = (x[:, -classes:] for x in (number, other, other.flip(1)))
        of_true = number - other
        ctx.mark_non_differentiable(number, weight, positive)
        return nll, of_true + of_others, of_true, number, probability, weight, positive

    @staticmethod
    @without_autocast
    @once_differentiable
    def backward(
        ctx: Any, d_nll: Tensor, d_total: Tensor, d_of_true: Tensor, _: Tensor, d_bins: Tensor, *__: Tensor
    ) -> tuple[Tensor, None, None, None]:
        """Return the gradient of the logits, given those of the sums."""
        logits, labels, unsure = ctx.saved_tensors
        num_bins, ignore_label = ctx.options
        if ctx.whole is None:
            return torch.full_like(logits, nan), None, None, None
        gradient, ctx.p = ctx.p, None
        if gradient is None:
            gradient = torch.empty_like(logits)
            deque(_fill(gradient, logits, labels, ignore_label), maxlen=0)
        images, classes, voxels = logits.shape
        derivatives = *_derivatives(d_total, d_of_true, d_bins), d_nll
        tables, middle, slope, d_nll = (d.to(logits.dtype) for d in derivatives)
        chunks = Chunks(num_bins, logits.numel())
        of_unsure = unsure.div(voxels, rounding_mode="floor")
        entries = [unsure + (of_unsure * (classes - 1) + c) * voxels for c in range(classes)]
        if num_bins:
            z = torch.stack([logits.view(-1).index_select(0, x) for x in entries])[None]
            kept = gradient.view(-1).index_select(0, entries[-1])[None]
            d_unsure = _differentiate_binned(kept, z, of_unsure.int(), None, tables, float(d_nll), chunks)[0]
        for (b, where), whole in zip(spans(images, 2, voxels), ctx.whole, strict=True):
            part, kept = gradient[b, :, where], gradient[b, -1, where]
            if whole and num_bins:
                image = torch.arange(b.start, b.start + len(kept), dtype=torch.int32)[:, None]
                ignored = None if ignore_label is None else kept == 0
                z = logits[b, :, where]
                kept.copy_(_differentiate_binned(kept, z, image, ignored, tables, float(d_nll), chunks))
            else:
                _differentiate(kept, middle[b], slope[b], float(d_nll))
            if classes == 2:
                torch.neg(kept, out=part[:, 0])
        if num_bins:
            for c, at in enumerate(entries):
                gradient.view(-1).index_copy_(0, at, d_unsure if c == classes - 1 else -d_unsure)
        return gradient, None, None, None

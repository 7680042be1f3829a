"""The sums for Dice, cross-entropy and mL1-ACE in one pass over the voxels, on a CPU, for softmax heads.

Computed separately, these three losses run the softmax twice, expand the labels to C-channel maps, and keep several
times the memory of the logits for their gradients. Yet they depend on the voxels only through a few sums over each
image:

    Dice                        sum of p_c, sum of p_c over voxels of class c, number of voxels of class c
    cross-entropy               sum of -log p_y, y being a voxel's own class
    mL1-ACE                     for each class and bin: number of voxels, sum of p_c, voxels of class c

So `SoftmaxSums` computes these sums, and `losses.joined` evaluates the losses as formulas of small tensors, which
autograd differentiates. `backward` receives the derivative by each sum: a number per class, a number per class and bin.
The derivative u_c by a voxel's probability p_c is the total over the sums that p_c was added to, a look-up by class and
bin. Through the softmax it becomes p_c (u_c - sum_k p_k u_k). The cross-entropy adds p_c - 1[c = y] times its own
derivative.

What makes it fast and small:

- **One buffer.** The softmax is computed once, and the backward pass turns it, in place, into the gradient. (A second
  backward pass through the same graph computes it again.)
- **Pieces** that fit into the processor's cache are processed in turn: parts of a large image, or several small images,
  since each of some hundred operations has a fixed cost. Each piece reuses the memory of the previous one.
- **Confident voxels.** Where p_y > 1 - 1 / M, p_y lies in the last bin and all other p_c in the first: their sums
  follow from the sums over all voxels. A trained network is confident in nearly all voxels; only the others, the
  unsure, are copied out and binned one by one. If a network is confident in few, the whole piece is binned.
- **Rows.** The binned probabilities have a row for each class, and `bin_sums` adds up, and looks up, all rows at once.
- **Few logarithms**: one for the product of four p_y.
- **Flat indices.** The p_y are picked out, and the gradient's share of y is added, by their positions in the flattened
  tensor, several times as fast as with `gather` and `scatter` along the classes.
- **Ignored voxels** get p = 0 and a class of their own, whose sums are not used.
- **Two classes, and regions,** need no softmax, only one number for each voxel: see `two_class_sums`.

The plain composition is the reference; tests/losses/test_fused.py compares with it.
"""

from __future__ import annotations

from math import gcd, isnan, nan
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from nnunet_calib.losses.cpu.autocast import without_autocast
from nnunet_calib.losses.cpu.bin_sums import BinSums, Chunks
from nnunet_calib.losses.cpu.pieces import MARGIN, Piece, pieces, sparse_indices, sum_of

FACTORS = 4  # p_y in a product
UNDERFLOW = 1e-9  # below, -log p_y is taken from the logits; a product of four is a normal float32


def _negative_log_likelihood(p_y: Tensor, lowest: float, piece: Piece, logits: Tensor) -> Tensor:
    """Return the sum of -log p_y (b, 1, n), in float64."""
    of_small = torch.zeros((), dtype=torch.float64)
    if lowest < UNDERFLOW:
        image, _, voxel = index = (p_y < UNDERFLOW).nonzero(as_tuple=True)
        z = piece.of(logits)[image, :, voxel]
        of_small = torch.log_softmax(z, 1).gather(1, piece.y[image, voxel, None].long()).sum(dtype=torch.float64)
        p_y = p_y.index_put(index, p_y.new_ones(()))
    return -(p_y.view(gcd(p_y.numel(), FACTORS), -1).prod(0).log_().sum(dtype=torch.float64) + of_small)


def _of_class(table: Tensor, row: Tensor) -> Tensor:
    """Return the entries of a table (b, R) for the rows (b, n), as (b, 1, n)."""
    first = torch.arange(0, table.numel(), table.shape[1], dtype=torch.int32)
    return table.reshape(-1).index_select(0, (row + first[:, None]).view(-1)).view(len(row), 1, -1)


def _derivatives(d_total: Tensor, d_of_true: Tensor, d_bins: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return u_c by class and bin, and for confident voxels by class; and what the true class adds to these two."""
    num_bins = d_bins.shape[2]
    by_bin = torch.cat([d_bins, d_bins[..., -1:]], 2) + d_total[..., None]
    u_sure, last = (by_bin[..., 0], by_bin[..., -1]) if num_bins else (d_total, d_total)
    more_sure, more = (pad(d, (0, 1)) for d in (d_of_true + last - u_sure, d_of_true))  # 0 for ignored voxels
    return by_bin, u_sure, more_sure, more


def _differentiate(p: Tensor, u: Tensor, mean: Tensor, of_true: Tensor, d_nll: Tensor) -> None:
    """Turn p (b, C, n) into the gradient, in place, but for what `of_true` - d_nll adds where y = c.

    Given the mean of u, which is overwritten, and what the true class adds to it.
    """
    p.mul_(u - mean.add_(of_true).sub_(d_nll))


def _differentiate_binned(p: Tensor, by_bin: Tensor, of_true: Tensor, d_nll: Tensor, chunks: Chunks) -> None:
    """Do the same a chunk at a time, with u_c as it is in the bin of each p."""
    for where in chunks.of(p):
        part = p[..., where]
        u = chunks.look_up(by_bin, part)
        _differentiate(part, u, torch.mul(part, u).sum(1, keepdim=True), of_true[..., where], d_nll)


class SoftmaxSums(torch.autograd.Function):
    """Sums over the voxels that count."""

    @staticmethod
    @without_autocast
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, num_bins: int, ignore_label: int | None
    ) -> tuple[Tensor, ...]:
        """Return sums of logits (B, C, N) with labels (B, N), in float64.

        Returns:
            -log p_y of all voxels together; p_c, p_c where y = c, number of voxels with y = c (B, C); of each bin
            (B, C, M) the p_c, the number of voxels and of those with y = c. Without bins (M = 0) these are empty.
        """
        images, classes, _ = logits.shape
        sure_above = 1 - 1 / max(num_bins, 1) + MARGIN
        nll = torch.zeros((), dtype=torch.float64)
        total = nll.new_zeros((images, classes))
        by_class = BinSums(images, classes + 1, 0, logits.dtype)
        of_all, of_class = (BinSums(images, c, num_bins, logits.dtype) for c in (classes, classes + 1))
        whole, chunks = (Chunks(m, logits.numel()) for m in (0, num_bins))
        p, ctx.kept = torch.softmax(logits, 1), []
        for piece in pieces(p.shape, labels, ignore_label):
            b, q, row, index = piece.images, piece.of(p), piece.rows(classes)[:, None], None
            flat, own = piece.own(p)
            p_y = flat.index_select(0, own).view(row.shape)
            if piece.ignored is not None:
                q.masked_fill_(piece.ignored[:, None], 0)
                p_y.masked_fill_(piece.ignored[:, None], 1)
            lowest = p_y.min().item()
            if isnan(lowest):  # no bin holds it, and all sums are NaN
                ctx.kept = None
                for sums in (nll, total, by_class.tables):
                    sums.fill_(nan)
                break
            nll += _negative_log_likelihood(p_y, lowest, piece, logits)
            total[b] += sum_of(q)
            by_class.add(b, p_y, whole, row)
            if num_bins:
                unsure, unsure_y = q, p_y
                index = sparse_indices(p_y.numpy() < sure_above) if len(q) == 1 else None
                if index is not None:
                    index = index.expand(1, classes, -1)
                    unsure = q.gather(2, index)
                    unsure_y, row = (x.gather(2, index[:, :1]) for x in (p_y, row))
                of_all.add(b, unsure, chunks)
                of_class.add(b, unsure_y, chunks, row)
            ctx.kept.append((p_y, index))
        number, of_true = (x[:, :classes, 0] for x in by_class.result())
        if num_bins:
            (weight, probability), (positive, p_positive) = of_all.result(), of_class.result()
            positive, p_positive = positive[:, :classes], p_positive[:, :classes]
            sure, p_sure = number - positive.sum(2), of_true - p_positive.sum(2)
            # all that is not of the other bins nor of the class itself
            weight[..., 0] = number.sum(1, keepdim=True) - weight[..., 1:].sum(2) - sure
            probability[..., 0] += total - probability.sum(2) - p_sure
            weight[..., -1] += sure
            probability[..., -1] += p_sure
            positive[..., -1] += sure
        else:
            weight = probability = positive = nll.new_zeros((images, classes, 0))
        ctx.save_for_backward(logits, labels)
        ctx.p, ctx.options = p, (num_bins, ignore_label)
        ctx.mark_non_differentiable(number, weight, positive)
        return nll, total, of_true, number, probability, weight, positive

    @staticmethod
    @without_autocast
    @once_differentiable
    def backward(
        ctx: Any, d_nll: Tensor, d_total: Tensor, d_of_true: Tensor, _: Tensor, d_bins: Tensor, *__: Tensor
    ) -> tuple[Tensor, None, None, None]:
        """Return the gradient of the logits, given those of the sums."""
        logits, labels = ctx.saved_tensors
        num_bins, ignore_label = ctx.options
        if ctx.kept is None:
            return torch.full_like(logits, nan), None, None, None
        p, ctx.p = torch.softmax(logits, 1) if ctx.p is None else ctx.p, None
        by_bin, u_sure, more_sure, more, d_nll = (
            d.to(p.dtype) for d in (*_derivatives(d_total, d_of_true, d_bins), d_nll)
        )
        chunks = Chunks(num_bins, p.numel())

        for piece, (p_y, index) in zip(pieces(p.shape, labels, ignore_label), ctx.kept, strict=True):
            b, q, row = piece.images, piece.of(p), piece.rows(p.shape[1])
            if piece.ignored is not None:
                q.masked_fill_(piece.ignored[:, None], 0)
            if num_bins and index is None:
                of_true = _of_class(more[b], row).mul_(p_y)
                _differentiate_binned(q, by_bin[b], of_true, d_nll, chunks)
            else:
                if index is not None:
                    unsure = q.gather(2, index)
                    unsure_y, unsure_row = (x.gather(2, index[:, :1]) for x in (p_y, row[:, None]))
                    of_unsure = _of_class(more[b], unsure_row[:, 0]).mul_(unsure_y)
                    _differentiate_binned(unsure, by_bin[b], of_unsure, d_nll, chunks)
                of_true = _of_class(more_sure[b], row).mul_(p_y)
                _differentiate(q, u_sure[b, :, None], torch.bmm(u_sure[b, None], q), of_true, d_nll)
                if index is not None:
                    q.scatter_(2, index, unsure)
                    of_true.scatter_(2, index[:, :1], of_unsure)
            of_true.sub_(d_nll)
            if piece.ignored is not None:
                of_true.masked_fill_(piece.ignored[:, None], 0)
            flat, own = piece.own(p)
            flat.index_add_(0, own, of_true.view(-1))
        return p, None, None, None

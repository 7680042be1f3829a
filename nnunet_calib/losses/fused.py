"""Dice + cross-entropy + mL1-ACE in one pass over the voxels, on a CPU, for softmax heads.

One after the other, these three losses run the softmax twice, expand the labels to C-channel maps, and keep several
times the memory of the logits for their gradients. Yet all that they need of the voxels are a few sums over each image:

    Dice                        sum of p_c, sum of p_c over voxels of class c, number of voxels of class c
    cross-entropy               sum of -log p_y, y being a voxel's own class
    mL1-ACE                     for each class and bin: number of voxels, sum of p_c, voxels of class c

So `VoxelSums` computes these sums, and `fused_loss` writes the losses down as formulas of small tensors, which autograd
differentiates. What comes back to its `backward` is the derivative with respect to each sum: a number per class, a
number per class and bin. The derivative u_c with respect to a voxel's probability p_c is the total over the sums that
p_c was added to, hence a look-up by class and bin, and the softmax makes p_c (u_c - sum_k p_k u_k) of it. The
cross-entropy adds p_c - 1[c = y] times its own derivative.

What makes it fast and small:

- **One buffer.** The softmax is computed once, and the backward pass turns it, in place, into the gradient. (A second
  backward pass through the same graph computes it again.)
- **Pieces** that fit the processor's cache are worked off in turn: parts of a large image, or several small images,
  since each of some hundred operations has a fixed cost. All intermediate results lie in memory that the next piece
  uses again.
- **Sure voxels.** Where p_y > 1 - 1 / M, p_y lies in the last bin and all other p_c in the first: their sums follow
  from the sums over all voxels. A trained network is sure of nearly all voxels; only the others, the unsure, are copied
  out and binned one by one. Where a network is sure of little, the whole piece is binned as it lies.
- **Rows.** What is binned has a row for each class, and `piece_bins` adds up, and looks up, all rows at once.
- **Few logarithms**: one for the product of eight p_y, in float64.
- **Ignored voxels** get p = 0 and a class of their own, whose sums nobody reads.

The plain composition is the reference: tests/losses/test_fused.py holds this file to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import gcd, isnan, nan
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nnunet_calib.losses.autocast import custom_bwd, custom_fwd
from nnunet_calib.losses.bins import AbsentClasses, Reduction, error_of_sums
from nnunet_calib.losses.piece_bins import CHUNK, BinSums, Chunks
from nnunet_calib.losses.targets import as_int32, at_least_float32, label_error

PIECE = 2**20  # probabilities in a piece: 4 MiB
BLOCK = 64  # probabilities added in their own precision, before float64 takes over
FACTORS = 8  # p_y in a product
UNDERFLOW = 1e-30  # below, -log p_y is taken from the logits; a product of eight is a normal float64
# Well above the rounding of a softmax, so that no p of a sure voxel is on the other side of its bin's edge.
MARGIN = 1e-4
MOSTLY = 0.4  # share of unsure voxels above which a piece is binned as it lies


@dataclass
class _Piece:
    """A part of the n voxels of one image, or all voxels of b images."""

    images: slice
    where: slice
    y: Tensor  # (b, 1, n) int64 labels; 0 for ignored voxels
    row: Tensor  # (b, 1, n) int32 labels; C for ignored voxels
    ignored: Tensor | None  # (b, 1, n), None where no voxel is

    def of(self, x: Tensor) -> Tensor:
        """Its part of a tensor (B, C, N)."""
        return x[self.images, :, self.where]


def _pieces(shape: torch.Size, labels: Tensor, ignore_label: int | None) -> Iterator[_Piece]:
    """The voxels of labels (B, N), where the shape is (B, C, N)."""
    images, classes, voxels = shape
    together = min(max(CHUNK // (classes * voxels), 1), images)
    length = -(-voxels // -(-classes * voxels // PIECE))
    for image, start in product(range(0, images, together), range(0, voxels, length)):
        of, where = slice(image, image + together), slice(start, start + length)
        row, ignored = as_int32(labels[of, None, where]), None
        y = row
        if ignore_label is not None and (mask := row == ignore_label).any():
            y, row, ignored = row.masked_fill(mask, 0), row.masked_fill(mask, classes), mask
        low, high = y.aminmax()
        if low < 0 or high >= classes:
            raise label_error(labels, classes, ignore_label)
        yield _Piece(of, where, y.long(), row, ignored)


def _sum(p: Tensor) -> Tensor:
    """The sum over the last axis, in float64."""
    whole = p.shape[-1] // BLOCK * BLOCK
    blocks = p[..., :whole].unflatten(-1, (BLOCK, -1)).sum(-2)
    return blocks.sum(-1, dtype=torch.float64) + p[..., whole:].sum(-1, dtype=torch.float64)


def _negative_log_likelihood(p_y: Tensor, lowest: float, piece: _Piece, logits: Tensor) -> Tensor:
    """The sum of -log p_y (b, 1, n), given in float64."""
    of_small = p_y.new_zeros(())
    if lowest < UNDERFLOW:
        image, _, voxel = index = (p_y < UNDERFLOW).nonzero(as_tuple=True)
        z = piece.of(logits)[image, :, voxel]
        of_small = torch.log_softmax(z, 1).gather(1, piece.y[index][:, None]).sum(dtype=torch.float64)
        p_y = p_y.index_put(index, p_y.new_ones(()))
    return -(p_y.view(gcd(p_y.numel(), FACTORS), -1).prod(0).log_().sum() + of_small)


class VoxelSums(torch.autograd.Function):
    """The sums over the voxels that count."""

    @staticmethod
    @custom_fwd(device_type="cpu", cast_inputs=torch.float32)  # half-precision sums would be wrong in the third digit
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, num_bins: int, ignore_label: int | None
    ) -> tuple[Tensor, ...]:
        """Sums of logits (B, C, N) with labels (B, N), in float64.

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
        for piece in _pieces(p.shape, labels, ignore_label):
            b, q = piece.images, piece.of(p)
            if piece.ignored is not None:
                q.masked_fill_(piece.ignored, 0)
            p_y, index = q.gather(1, piece.y), None
            if piece.ignored is not None:
                p_y.masked_fill_(piece.ignored, 1)
            lowest = p_y.min().item()
            if isnan(lowest):  # no bin holds it, and all sums are NaN
                ctx.kept = None
                for sums in (nll, total, by_class.tables):
                    sums.fill_(nan)
                break
            nll += _negative_log_likelihood(p_y.double(), lowest, piece, logits)
            total[b] += _sum(q)
            by_class.add(b, p_y, whole, piece.row)
            if num_bins:
                unsure, unsure_y, row = q, p_y, piece.row
                is_unsure = p_y < sure_above
                if len(q) == 1 and is_unsure.count_nonzero() < MOSTLY * p_y.numel():
                    index = is_unsure.view(-1).nonzero().view(1, 1, -1).expand(1, classes, -1)
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
    @custom_bwd(device_type="cpu")
    @once_differentiable
    def backward(ctx: Any, d_nll: Tensor, d_total: Tensor, d_of_true: Tensor, _: Tensor, d_bins: Tensor, *__: Tensor):
        """The gradient of the logits, given those of the sums."""
        logits, labels = ctx.saved_tensors
        num_bins, ignore_label = ctx.options
        if ctx.kept is None:
            return torch.full_like(logits, nan), None, None, None
        p, ctx.p = torch.softmax(logits, 1) if ctx.p is None else ctx.p, None
        classes = p.shape[1]
        # u_c by class and bin, and what the true class adds to it; of sure voxels and of the others
        by_bin = torch.cat([d_bins, d_bins[..., -1:]], 2) + d_total[..., None]
        u_sure, last = (by_bin[..., 0], by_bin[..., -1]) if num_bins else (d_total, d_total)
        more_sure, more = (d_of_true + last - u_sure)[:, None], d_of_true[:, None]
        d_nll, by_bin, u_sure, more_sure, more = (d.to(p.dtype) for d in (d_nll, by_bin, u_sure, more_sure, more))
        chunks = Chunks(num_bins, p.numel())

        def differentiate(
            p: Tensor, u: Tensor, mean: Tensor, u_y: Tensor, more: Tensor, p_y: Tensor, y: Tensor, row: Tensor
        ) -> None:
            """Turn p (b, C, n) into the gradient, in place, given the mean of u; mean and u_y are overwritten."""
            of_true = torch.gather(more, 2, y).mul_(p_y)
            mean.add_(of_true)
            # apart from the other classes, since p_y + 1 - 1 would lose digits of a small p_y - 1
            u_y.sub_(mean).mul_(p_y).add_(of_true).add_(p_y.sub(1).mul_(d_nll))
            if ignore_label is not None:
                u_y.masked_fill_(row == classes, 0)
            p.mul_(u - mean.sub_(d_nll)).scatter_(1, y, u_y)

        def differentiate_unsure(b: slice, p: Tensor, p_y: Tensor, y: Tensor, row: Tensor) -> None:
            """The same, a chunk at a time, with u_c as it is in the bin of each p."""
            for where in chunks.of(p):
                part, of_part = p[..., where], (x[..., where] for x in (p_y, y, row))
                u = chunks.look_up(by_bin[b], part)
                mean = torch.mul(part, u).sum(1, keepdim=True)
                differentiate(part, u, mean, torch.gather(u, 1, y[..., where]), more[b], *of_part)

        for piece, (p_y, index) in zip(_pieces(p.shape, labels, ignore_label), ctx.kept, strict=True):
            b, q = piece.images, piece.of(p)
            if piece.ignored is not None:
                q.masked_fill_(piece.ignored, 0)
            if num_bins and index is None:
                differentiate_unsure(b, q, p_y, piece.y, piece.row)
                continue
            if index is not None:
                unsure = q.gather(2, index)
                of_true = (x.gather(2, index[:, :1]) for x in (p_y, piece.y, piece.row))
                differentiate_unsure(b, unsure, *of_true)
            u_y = torch.gather(u_sure[b, None], 2, piece.y)
            mean = torch.bmm(u_sure[b, None], q)
            differentiate(q, u_sure[b, :, None], mean, u_y, more_sure[b], p_y, piece.y, piece.row)
            if index is not None:
                q.scatter_(2, index, unsure)
        return p, None, None, None


def fused_loss(
    logits: Tensor,
    target: Tensor,
    *,
    weight_ce: float = 1.0,
    weight_dice: float = 1.0,
    batch_dice: bool = False,
    smooth: float = 1e-5,
    weight_ml1_ace: float = 1.0,
    num_bins: int = 20,
    reduction: Reduction = "ace",
    absent_classes: AbsentClasses = "skip",
    ignore_label: int | None = None,
) -> Tensor:
    r"""Weighted sum of cross-entropy, Dice loss without background, and mL1-ACE with hard bins.

    .. math:: - \frac{w_{CE}}{N} \sum_i \log p_{i, y_i} + w_{ACE} \, \mathrm{ACE}
        - w_{Dice} \, \mathrm{mean}_{b, c > 0} \frac{2 \sum_{i: y_i = c} p_{i,c} + s}{\sum_i p_{i,c} + n_c + s}

    Args:
        logits: (B, C, *spatial) on a CPU, C at least 2.
        target: labels (B, 1, *spatial).
        weight_ce: factor of the cross-entropy, a mean over the voxels that count.
        weight_dice: factor of the Dice loss, which is the negative of the coefficient.
        batch_dice: take the Dice coefficient of the whole batch rather than of each image.
        smooth: s.
        weight_ml1_ace: factor of mL1-ACE; 0 leaves it out.
        num_bins: of mL1-ACE, as the next two: see `ml1_ace_loss`.
        reduction: "ace", "ece" or "mce".
        absent_classes: "skip", "zero" or "keep".
        ignore_label: voxels with this label are left out.

    Returns:
        A scalar in at least float32. It can be differentiated once.

    Raises:
        ValueError: for a label that has no class.
    """
    bins, logits = num_bins if weight_ml1_ace else 0, at_least_float32(logits)
    sums = VoxelSums.apply(logits.flatten(2), target.flatten(1), bins, ignore_label)
    nll, total, of_true, number, probability, weight, positive = sums
    voxels = number.sum()
    if batch_dice:
        total, of_true, number = (x.sum(0, keepdim=True) for x in (total, of_true, number))
    dice = (2 * of_true + smooth) / (number + total + smooth).clamp_min(1e-8)
    loss = weight_ce * nll / voxels.clamp_min(1) - weight_dice * dice[:, 1:].mean()
    if bins:
        loss = loss + weight_ml1_ace * error_of_sums(weight, probability, positive, 1, reduction, absent_classes)
    return loss.to(logits.dtype)

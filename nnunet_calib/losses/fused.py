"""Dice + cross-entropy + mL1-ACE in one pass over the voxels, on a CPU, for softmax heads.

Written one after the other, these three losses run the softmax twice, expand the labels to C-channel maps, and keep
what they need for their gradients, several times the memory of the logits. All that they need of the voxels, though,
are a few sums over each image:

    Dice                        sum of p_c, sum of p_c over voxels of class c, number of voxels of class c
    cross-entropy               sum of -log p_y, y being a voxel's own class
    mL1-ACE                     for each class and bin: number of voxels, sum of p_c, voxels of class c

So `_Sums`, the one custom autograd function here, computes these sums, and `fused_loss` writes the losses down as plain
formulas of small tensors, which autograd differentiates. What comes back to `_Sums.backward` is the derivative with
respect to each sum: a number per class, a number per class and bin. The derivative u_c with respect to the probability
p_c of a voxel is the total over the sums that p_c was added to, hence a look-up by class and bin, and the softmax makes
p_c (u_c - sum_k p_k u_k) of it. The cross-entropy adds p_c - 1[c = y] times its own derivative.

What makes it fast:

- **Pieces.** The voxels are worked off in pieces that fit the processor's cache, in two buffers that are used again and
  again. Nothing as large as the logits is kept: the backward pass runs the softmax once more and writes the gradient.
- **Sure voxels.** Where p_y > 1 - 1 / M, p_y lies in the last bin and the probabilities of all other classes in the
  first, so that no bin needs to be looked up: their sums follow from the sum over all voxels. A trained network is sure
  of nearly all voxels. Only the others, the unsure, are copied out and binned one by one.
- **One histogram for number and sum.** `torch.bincount` adds 2^14 + p for each p. In float64 the number and the sum of
  up to 2^13 such terms can be told apart again, and the sum is exact to 2^-26 per term. Eight interleaved histograms
  keep neighbours, which mostly fall into the same bin, from waiting for each other (and make 2^16 voxels possible).
- **Ignored voxels** are left out by picking the others from the piece.

The plain composition is the reference: tests/losses/test_fused.py holds this file to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nnunet_calib.binning import bin_index
from nnunet_calib.losses.ml1_ace import AbsentClasses, Reduction, error_of_sums

LANES = 8  # a power of two
COUNT = 2.0**14  # stands for one voxel in a histogram; more than the sum of all p of a lane
PIECE = 2**19  # probabilities in a piece: two buffers of 2 MiB
# Rows of equal length 2^k would fall on the same lines of the cache. At most 2^16, for the histograms.
LONGEST, MULTIPLE = 65_472, 192
# Well above the rounding of a softmax, so that no p of a sure voxel is on the other side of its bin's edge.
MARGIN = 1e-4
UNDERFLOW = 1e-30  # below, -log p_y is taken from the logits


@dataclass
class _Piece:
    """Voxels of one image with their logits z and probabilities p (C, n), overwritten by the next piece."""

    image: int
    where: slice
    kept: Tensor | None  # which voxels of `where` these are, None for all
    z: Tensor
    p: Tensor
    y: Tensor
    at_true: Tensor  # where p_y lies in the flattened p
    p_y: Tensor
    sure: Tensor
    unsure: Tensor  # the indices of the others: a voxel with NaN, for one

    def bins(self, num_bins: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of the unsure voxels: p (C, k), its place in (C, M) tables, and where p_y lies in both, flattened."""
        p, y = self.p.index_select(1, self.unsure), self.y.index_select(0, self.unsure)
        # in float64, as `ml1_ace_loss` does, or a p on an edge may fall on its other side
        places = bin_index(p.double(), num_bins).add_(torch.arange(len(p))[:, None], alpha=num_bins)
        return p, places, torch.arange(len(y)).add_(y, alpha=len(y))


def _pieces(logits: Tensor, labels: Tensor, num_bins: int, ignore_label: int | None) -> Iterator[_Piece]:
    """The voxels of logits (B, C, N) and labels (B, N) that count, in pieces of one image."""
    classes, voxels = logits.shape[1:]
    length = max(min(PIECE // classes, LONGEST, voxels) // MULTIPLE, 1) * MULTIPLE
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    buffers, positions = torch.empty((2, classes * length), dtype=dtype), torch.arange(length)
    for image, start in product(range(len(logits)), range(0, voxels, length)):
        where, kept = slice(start, min(start + length, voxels)), None
        source, y = logits[image, :, where], labels[image, where]
        if ignore_label is not None and not (valid := y != ignore_label).all():
            kept = valid.nonzero()[:, 0]
            source, y = source.index_select(1, kept), y.index_select(0, kept)
        n = y.numel()
        if not n:
            continue
        z, p = (buffer[: classes * n].view(classes, n) for buffer in buffers)
        torch.softmax(z.copy_(source), 0, out=p)
        y = y.long()
        at_true = torch.add(positions[:n], y, alpha=n)
        try:
            p_y = p.view(-1).index_select(0, at_true)
        except (IndexError, RuntimeError) as error:
            raise ValueError(
                f"expected labels from 0 to {classes - 1} (or the ignore label, {ignore_label}), got values from "
                f"{int(y.min())} to {int(y.max())}: check the labels in dataset.json against the label maps"
            ) from error
        sure = p_y > (1 - 1 / num_bins + MARGIN if num_bins else UNDERFLOW)
        yield _Piece(image, where, kept, z, p, y, at_true, p_y, sure, sure.logical_not().nonzero()[:, 0])


def _number_and_sum(places: Tensor, p: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """How often each place from 0 to size - 1 occurs, and the sum of the p there, in float64."""
    if p.dtype == torch.float64:  # too precise for both at once
        places, p = places.flatten(), p.flatten()
        return torch.bincount(places, minlength=size).double(), torch.bincount(places, p, minlength=size)
    lanes = torch.arange(places.shape[-1]).bitwise_and_(LANES - 1)
    places = torch.add(lanes, places, alpha=LANES)
    total = torch.bincount(places.flatten(), p.double().add_(COUNT).flatten(), minlength=size * LANES)
    number = total.div(COUNT, rounding_mode="floor")
    return number.view(-1, LANES).sum(1), total.sub_(number, alpha=COUNT).view(-1, LANES).sum(1)


def _negative_log_likelihood(piece: _Piece) -> Tensor:
    """The sum of -log p_y."""
    log_p = piece.p_y.log()
    tiny = piece.unsure[piece.p_y.index_select(0, piece.unsure) < UNDERFLOW]
    if tiny.numel():
        z, y = piece.z.index_select(1, tiny), piece.y.index_select(0, tiny)
        log_p[tiny] = torch.log_softmax(z, 0).gather(0, y[None])[0]
    return -log_p.sum(dtype=torch.float64)


class _Sums(torch.autograd.Function):
    """The sums over the voxels that count: see `forward` for what they are and the module for how it is done."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, num_bins: int, ignore_label: int | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Sums of logits (B, C, N) with labels (B, N), in float64.

        Returns:
            -log p_y of all voxels together; p_c (B, C); p_c where y = c (B, C); number of voxels with y = c (B, C);
            of each bin (B, C, M) the p_c, the number of voxels and the number of those with y = c. The numbers have no
            gradient. Without bins (M = 0) the last three are empty.
        """
        (images, classes), bins = logits.shape[:2], num_bins
        nll = torch.zeros((), dtype=torch.float64)
        total = nll.new_zeros((images, classes))
        # [..., 0] of the unsure voxels, [..., 1] of the sure ones
        number, of_true = (nll.new_zeros((images, classes, 2)) for _ in range(2))
        weight, probability, positive = (nll.new_zeros((images, classes, bins)) for _ in range(3))
        for piece in _pieces(logits, labels, num_bins, ignore_label):
            b = piece.image
            nll += _negative_log_likelihood(piece)
            total[b] += piece.p.sum(1, dtype=torch.float64)
            of_piece = _number_and_sum(piece.y * 2 + piece.sure, piece.p_y, 2 * classes)
            for sums, more in zip((number, of_true), of_piece, strict=True):
                sums[b] += more.view(classes, 2)
            if bins and piece.unsure.numel():
                p, places, at_true = piece.bins(bins)
                of_bins = _number_and_sum(places, p, classes * bins)
                for sums, more in zip((weight, probability), of_bins, strict=True):
                    sums[b] += more.view(classes, bins)
                positive[b] += torch.bincount(places.view(-1)[at_true], minlength=classes * bins).view(classes, bins)
        if bins:
            sure, p_sure = number[..., 1], of_true[..., 1]
            # of the sure voxels, in the first bin, all that is not of the unsure ones nor of the class itself
            first = total - probability.sum(2) - p_sure
            weight[..., 0] += sure.sum(1, keepdim=True) - sure
            probability[..., 0] += first
            weight[..., -1] += sure
            probability[..., -1] += p_sure
            positive[..., -1] += sure
        number, of_true = number.sum(2), of_true.sum(2)
        ctx.save_for_backward(logits, labels)
        ctx.options = num_bins, ignore_label
        ctx.mark_non_differentiable(number, weight, positive)
        return nll, total, of_true, number, probability, weight, positive

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_nll: Tensor, d_total: Tensor, d_of_true: Tensor, _: Tensor, d_bins: Tensor, *__: Tensor):
        """The gradient of the logits, given those of the sums."""
        logits, labels = ctx.saved_tensors
        num_bins, ignore_label = ctx.options
        gradient = torch.empty_like(logits) if ignore_label is None else torch.zeros_like(logits)
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        d_sure, d_true = d_total, d_of_true
        if num_bins:
            d_sure, d_true = d_total + d_bins[..., 0], d_of_true + d_bins[..., -1] - d_bins[..., 0]
        d_nll, d_total, d_of_true, d_bins, d_sure, d_true = (
            d.to(dtype) for d in (d_nll, d_total, d_of_true, d_bins, d_sure, d_true)
        )
        for piece in _pieces(logits, labels, num_bins, ignore_label):
            b, p, u = piece.image, piece.p, piece.z  # the logits are not needed any more
            # a sure voxel: u_c is one number per class, and another for the true class
            of_true = d_true[b].index_select(0, piece.y).mul_(piece.p_y)
            mean = torch.mv(p.T, d_sure[b]).add_(of_true)
            torch.sub(d_sure[b][:, None], mean.sub_(d_nll), out=u)
            if num_bins and piece.unsure.numel():
                unsure, places, at_true = piece.bins(num_bins)
            u.mul_(p).view(-1).scatter_add_(0, piece.at_true, of_true.sub_(d_nll))
            if num_bins and piece.unsure.numel():
                v = d_bins[b].view(-1).index_select(0, places.view(-1)).view(places.shape).add_(d_total[b][:, None])
                v.view(-1)[at_true] += d_of_true[b].index_select(0, piece.y.index_select(0, piece.unsure))
                v.sub_((unsure * v).sum(0).sub_(d_nll)).mul_(unsure)
                v.view(-1)[at_true] -= d_nll
                u.index_copy_(1, piece.unsure, v)
            if piece.kept is None:
                gradient[b, :, piece.where] = u
            else:
                gradient[b, :, piece.where].index_copy_(1, piece.kept, u.to(gradient.dtype))
        return gradient, None, None, None


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

    .. math:: - \frac{w_{CE}}{N} \sum_i \log p_{i, y_i}
        - w_{Dice} \, \mathrm{mean}_{b, c > 0} \frac{2 \sum_{i: y_i = c} p_{i,c} + s}{\sum_i p_{i,c} + n_c + s}
        + w_{ACE} \, \mathrm{ACE}

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
    bins = num_bins if weight_ml1_ace else 0
    # half-precision sums would be wrong in the third digit
    with torch.autocast("cpu", enabled=False):
        nll, total, of_true, number, *of_bins = _Sums.apply(logits.flatten(2), target.flatten(1), bins, ignore_label)
        voxels = number.sum()
        if batch_dice:
            total, of_true, number = (x.sum(0, keepdim=True) for x in (total, of_true, number))
        dice = (2 * of_true + smooth) / (number + total + smooth).clamp_min(1e-8)
        loss = weight_ce * nll / voxels.clamp_min(1) - weight_dice * dice[:, 1:].mean()
        if bins:
            probability, weight, positive = of_bins
            loss = loss + weight_ml1_ace * error_of_sums(weight, probability, positive, 1, reduction, absent_classes)
    return loss.to(torch.promote_types(logits.dtype, torch.float32))

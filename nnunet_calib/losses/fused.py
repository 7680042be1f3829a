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
  since each of some hundred operations has a fixed cost.
- **Sure voxels.** Where p_y > 1 - 1 / M, p_y lies in the last bin and all other p_c in the first: their sums follow
  from the sum over all voxels. A trained network is sure of nearly all voxels; only the others, the unsure, are copied
  out and binned one by one. Nor does each sure voxel need a logarithm: it is taken of the product of sixteen p_y.
- **One histogram for number and sum.** `torch.bincount` adds 2^k + p for each p. In float64 the number and the sum of
  fewer than 2^k such terms can be told apart again, and the sum is exact to 2^(2k - 53) per term. Eight interleaved
  histograms keep neighbours, which mostly fall into the same bin, from waiting for each other.
- **Ignored voxels** get p = 0 and a class of their own, whose sums nobody reads.

The plain composition is the reference: tests/losses/test_fused.py holds this file to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.amp import custom_bwd, custom_fwd
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from nnunet_calib.binning import bin_index
from nnunet_calib.losses.bins import AbsentClasses, Reduction, error_of_sums
from nnunet_calib.losses.targets import as_int32, at_least_float32, label_error

PIECE = 2**20  # probabilities in a piece: 4 MiB
LANES = 8  # a power of two
BLOCK = 64  # probabilities added in their own precision, before float64 takes over
FACTORS = 16  # p_y of sure voxels in a product
SURE = 0.9  # what they are above whatever the bins are, so that the product is well above 0
# Well above the rounding of a softmax, so that no p of a sure voxel is on the other side of its bin's edge.
MARGIN = 1e-4
UNDERFLOW = 1e-30  # below, -log p_y is taken from the logits


@dataclass
class _Piece:
    """A part of the n voxels of one image, or all voxels of some images."""

    images: slice
    where: slice
    p: Tensor  # (images, C, n)
    flat: Tensor  # the memory that p is in
    base: Tensor  # (images * n) where p_0 lies in flat; p_c lies c * stride further
    stride: int
    at_true: Tensor  # (images * n) where p_y lies in flat; p_0 for ignored voxels
    row: Tensor  # (images * n) of y in flattened tables (images, C + 1); C is the class of ignored voxels
    lanes: Tensor  # (images * n) 0, 1, ..., LANES - 1, 0, 1, ...
    ignored: Tensor | None  # (images * n), None where no voxel is

    def true_probabilities(self) -> Tensor:
        """p_y of all voxels, 1 of ignored ones."""
        p_y = self.flat.index_select(0, self.at_true)
        return p_y if self.ignored is None else p_y.masked_fill_(self.ignored, 1)

    def unsure(self, index: Tensor, num_bins: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What the bins need of the k voxels with these indices.

        Their p (C, k), where these lie in `flat`, and their bins' places in flattened tables (images, C + 1, M); their
        rows (k,), and where p_y lies in the flattened p.
        """
        (images, classes, _), k = self.p.shape, len(index)
        y = row = self.row.index_select(0, index)
        at = self.base.index_select(0, index) + self.stride * torch.arange(classes, dtype=torch.int32)[:, None]
        p = self.flat.index_select(0, at.view(-1)).view(classes, k)
        # in float64, as `ml1_ace_loss` does, or a p on an edge may fall on its other side
        place = bin_index(p.double(), num_bins).int()
        place.add_(num_bins * torch.arange(classes, dtype=torch.int32)[:, None])
        if images > 1:
            y = row % (classes + 1)
            place.add_(row - y, alpha=num_bins)
        return p, at.view(-1), place, row, torch.arange(k, dtype=torch.int32).add_(y, alpha=k)


@lru_cache(maxsize=16)
def _positions(images: int, voxels: int, classes: int, distance: int) -> tuple[Tensor, Tensor, Tensor]:
    """For images that lie `distance` apart: where each voxel lies (images, n), its lane, and its image's first row."""
    image, voxel, any_voxel = (torch.arange(n, dtype=torch.int32) for n in (images, voxels, images * voxels))
    base = torch.add(voxel, image[:, None], alpha=distance)
    return base, any_voxel.bitwise_and_(LANES - 1), image[:, None] * (classes + 1)


def _pieces(p: Tensor, labels: Tensor, ignore_label: int | None) -> Iterator[_Piece]:
    """The voxels of p (B, C, N) and labels (B, N). Sets p of ignored voxels to 0."""
    images, classes, voxels = p.shape
    together = min(max(PIECE // (classes * voxels), 1), images)
    parts = -(-classes * voxels // PIECE)
    length = -(-voxels // parts // BLOCK) * BLOCK
    for image, start in product(range(0, images, together), range(0, voxels, length)):
        of = slice(image, min(image + together, images))
        where = slice(start, min(start + length, voxels))
        piece, y, ignored = p[of, :, where], as_int32(labels[of, where]), None
        base, lanes, first_row = _positions(len(piece), piece.shape[2], classes, classes * voxels)
        of_true = y
        if ignore_label is not None and (mask := y == ignore_label).any():
            piece.masked_fill_(mask[:, None], 0)
            y, of_true, ignored = y.masked_fill(mask, classes), y.masked_fill(mask, 0), mask.view(-1)
        low, high = of_true.aminmax()
        if low < 0 or high >= classes:
            raise label_error(labels, classes, ignore_label)
        at_true = torch.add(base, of_true, alpha=voxels).view(-1)
        row, flat = (y + first_row if len(piece) > 1 else y).view(-1), p[of].view(-1)[start:]
        yield _Piece(of, where, piece, flat, base.view(-1), voxels, at_true, row, lanes, ignored)


def _add_number_and_sum(tables: list[Tensor], piece: _Piece, place: Tensor, p: Tensor) -> None:
    """Add how often each place of the piece's images occurs, and the sum of p there, to two tables of all images."""
    number, total = (table[piece.images] for table in tables)
    size = number.numel()
    if p.dtype == torch.float64:  # too precise for both at once
        number += torch.bincount(place.flatten(), minlength=size).view(number.shape)
        total += torch.bincount(place.flatten(), p.flatten(), minlength=size).view(total.shape)
        return
    one = 2.0 ** (place.numel() // LANES + place.numel() // place.shape[-1]).bit_length()  # more than a lane holds
    place = torch.add(piece.lanes[: place.shape[-1]], place, alpha=LANES)
    both = torch.bincount(place.flatten(), p.double().add_(one).flatten(), minlength=size * LANES)
    times = both.div(one, rounding_mode="floor")
    for table, x in ((number, times), (total, both.sub_(times, alpha=one))):
        table += x.view(-1, LANES).sum(1).view(table.shape)


def _sum(p: Tensor) -> Tensor:
    """The sum over the last axis, in float64."""
    whole = p.shape[-1] // BLOCK * BLOCK
    blocks = p[..., :whole].unflatten(-1, (BLOCK, -1)).sum(-2)
    return blocks.sum(-1, dtype=torch.float64) + p[..., whole:].sum(-1, dtype=torch.float64)


def _negative_log_likelihood(piece: _Piece, p_y: Tensor, unsure: Tensor, logits: Tensor) -> Tensor:
    """The sum of -log p_y."""
    factors = p_y.new_ones(-(-len(p_y) // FACTORS) * FACTORS)
    factors[: len(p_y)] = p_y
    factors.index_fill_(0, unsure.long(), 1)
    of_sure = factors.view(FACTORS, -1).prod(0).log_()
    p_y = p_y.index_select(0, unsure)
    log_p, underflow = p_y.log(), p_y < UNDERFLOW
    if underflow.any():
        index = unsure[underflow]
        z = logits[piece.images, :, piece.where].transpose(0, 1).flatten(1).index_select(1, index)
        y = piece.row.index_select(0, index).long() % (logits.shape[1] + 1)
        log_p[underflow] = torch.log_softmax(z, 0).gather(0, y[None])[0]
    return -of_sure.sum(dtype=torch.float64) - log_p.sum(dtype=torch.float64)


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
        sure_above = max(SURE, 1 - 1 / max(num_bins, 1) + MARGIN)
        nll = torch.zeros((), dtype=torch.float64)
        total = nll.new_zeros((images, classes))
        by_class = [nll.new_zeros((images, classes + 1)) for _ in range(2)]
        by_bin = [nll.new_zeros((images, classes + 1, num_bins)) for _ in range(4)]
        p, ctx.kept = torch.softmax(logits, 1), []
        for piece in _pieces(p, labels, ignore_label):
            p_y = piece.true_probabilities()
            index = (p_y < sure_above).nonzero()[:, 0].int()
            ctx.kept.append((p_y, index if num_bins else index[:0]))
            nll += _negative_log_likelihood(piece, p_y, index, logits)
            total[piece.images] += _sum(piece.p)
            _add_number_and_sum(by_class, piece, piece.row, p_y)
            if num_bins and len(index):
                unsure, _, place, _, true = piece.unsure(index, num_bins)
                _add_number_and_sum(by_bin[:2], piece, place, unsure)
                of_class = (x.view(-1).index_select(0, true) for x in (place, unsure))
                _add_number_and_sum(by_bin[2:], piece, *of_class)
        number, of_true, weight, probability, positive, p_positive = (x[:, :classes] for x in by_class + by_bin)
        if num_bins:
            sure, p_sure = number - positive.sum(2), of_true - p_positive.sum(2)
            weight[..., 0] += sure.sum(1, keepdim=True) - sure
            # all that is not of the unsure ones nor of the class itself
            probability[..., 0] += total - probability.sum(2) - p_sure
            weight[..., -1] += sure
            probability[..., -1] += p_sure
            positive[..., -1] += sure
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
        p, ctx.p = torch.softmax(logits, 1) if ctx.p is None else ctx.p, None
        first, last = (d_bins[..., 0], d_bins[..., -1]) if num_bins else (0, 0)
        d_sure, d_true = d_total + first, d_of_true + last - first
        d_bins = pad(d_bins + d_total[..., None], (0, 0, 0, 1))
        d_true, d_of_true = (pad(d, (0, 1)) for d in (d_true, d_of_true))
        d_nll, d_sure, d_true, d_of_true, d_bins = (d.to(p.dtype) for d in (d_nll, d_sure, d_true, d_of_true, d_bins))
        scratch = p.new_empty(min(PIECE + BLOCK * p.shape[1], p.numel()))
        for piece, (p_y, index) in zip(_pieces(p, labels, ignore_label), ctx.kept, strict=True):
            b, q = piece.images, piece.p
            # a sure voxel: u_c is one number per class, and another for the true class
            of_true = d_true[b].view(-1).index_select(0, piece.row).mul_(p_y)
            mean = torch.bmm(d_sure[b, None], q).add_(of_true.view(len(q), 1, -1))
            of_true.sub_(d_nll)
            if piece.ignored is not None:
                of_true.masked_fill_(piece.ignored, 0)
            unsure, at, place, row, true = piece.unsure(index, num_bins)
            v = d_bins[b].view(-1).index_select(0, place.view(-1))
            v.index_add_(0, true, d_of_true[b].view(-1).index_select(0, row))
            v = v.view(unsure.shape)
            v.sub_((unsure * v).sum(0).sub_(d_nll)).mul_(unsure)
            v.view(-1).index_add_(0, true, d_nll.expand(len(index)), alpha=-1)
            q.mul_(torch.sub(d_sure[b, :, None], mean.sub_(d_nll), out=scratch[: q.numel()].view(q.shape)))
            piece.flat.scatter_add_(0, piece.at_true.long(), of_true)
            piece.flat.scatter_(0, at.long(), v.view(-1))
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

"""Counts and sums of probabilities by bin, in integers, whose sum does not depend on the order.

On a GPU many threads add to the same few bins: floating-point sums would depend on the order of the threads, and the
threads would wait for each other. So each voxel adds one integer, a fixed-point number that is exact for a float32,
with the counts in its upper bits. Each bin has many cells side by side, one for every few hundred voxels, so that
neighbouring voxels add to different ones.

Soft bins share a probability between the two nearest centres (m + 1/2) / M. In the segment between two centres the
shares are linear in p. Let q be the distance from the lower centre in widths of a bin: then the sums of q, q^2 and q y
over each segment determine all sums by bin.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet_calib.binning import bin_index
from nnunet_calib.losses.targets import widest

PER_CELL = 512  # voxels that add to a cell, the most it has room for
FRACTION = 33  # binary digits of the fixed-point numbers, which lie in [0, 1]
COUNT = FRACTION + 10  # where the number of voxels begins, above a sum of up to PER_CELL
POSITIVE = COUNT + 10  # where the number of positive voxels begins


class Segments:
    """The M bins on [0, 1], or for soft bins the M + 1 segments between their centres."""

    def __init__(self, num_bins: int, soft: bool) -> None:
        self.num_bins, self.soft = num_bins, soft
        self.count = num_bins + soft

    def index(self, p: Tensor) -> Tensor:
        """Return the segment of each probability, in int64."""
        if not self.soft:
            return bin_index(p, self.num_bins)
        return self._scaled(p).add_(0.5).long().clamp_(0, self.num_bins)

    def position(self, p: Tensor, index: Tensor) -> Tensor:
        """Return q, in [0, 1]: the distance from the segment's lower end, for the first segment from p = 0."""
        scaled = self._scaled(p)
        return scaled.sub_((index - 0.5).clamp_(min=0)).clamp_(0, 1).to(p.dtype)

    def _scaled(self, p: Tensor) -> Tensor:
        """Return M p, exact on devices with float64."""
        return p.to(widest(p.device)) * self.num_bins


class BinTables:
    """Sums by image, head and segment, from which those of the bins follow."""

    def __init__(self, segments: Segments, images: int, heads: int, logits: Tensor) -> None:
        """Make empty tables for the probabilities of these logits."""
        self.segments = segments
        self.packed = logits.dtype != torch.float64 == widest(logits.device)
        self.fields = 5 if segments.soft else 3  # number, positive, x; x^2, x where positive
        shape = (self.fields, images, heads, segments.count)
        self.sums = torch.zeros(shape, dtype=widest(logits.device), device=logits.device)

    def add(self, images: slice, p: Tensor, own: Tensor, valid: Tensor | None) -> None:
        """Add probabilities p (b, C, n), positive where `own` is 1, of the voxels that count."""
        cells = -(-p.shape[2] // PER_CELL)
        index = self.segments.index(p)
        x = self.segments.position(p, index) if self.segments.soft else p
        if valid is not None:
            index = torch.where(valid, index, self.segments.count)  # an extra segment, cut off below
        lane = torch.arange(p.shape[2], device=p.device) % cells
        at = index.mul_(cells).add_(lane)
        size = (*p.shape[:2], (self.segments.count + 1) * cells)
        fields = self._packed(at, x, own, size) if self.packed else self._by_themselves(at, x, own, size)
        for total, field in zip(self.sums[:, images], fields, strict=True):
            by_segment = field.view(*p.shape[:2], -1, cells)[:, :, :-1]
            total += by_segment.sum(3, dtype=None if self.packed else total.dtype)

    def _packed(self, at: Tensor, x: Tensor, own: Tensor, size: tuple[int, ...]) -> list[Tensor]:
        def add_up(terms: Tensor) -> Tensor:
            return terms.new_zeros(size).scatter_add_(2, at, terms)

        terms = (x * 2.0**FRACTION).long()
        cells = add_up(terms.add_(2**COUNT).add_((own * 2.0**POSITIVE).long()))
        total = (cells & (2**COUNT - 1)).to(self.sums.dtype).mul_(2.0**-FRACTION)
        fields = [(cells >> COUNT) & (2 ** (POSITIVE - COUNT) - 1), cells >> POSITIVE, total]
        if self.segments.soft:
            scale = 2.0**50  # PER_CELL of them fit into 63 bits
            for more in (x.square(), x * own):
                fields.append(add_up((more * scale).long()).to(self.sums.dtype).div_(scale))
        return fields

    def _by_themselves(self, at: Tensor, x: Tensor, own: Tensor, size: tuple[int, ...]) -> list[Tensor]:
        terms = [torch.ones_like(x), own, x, x.square(), x * own][: self.fields]
        return [x.new_zeros(size).scatter_add_(2, at, values) for values in terms]

    def bins(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return weight, sum of probabilities and positives (B, C, M) of each bin."""
        if not self.segments.soft:
            number, positive, total = self.sums
            return number, total, positive
        number, positive, q, q_squared, q_positive = self.sums
        start = (torch.arange(self.segments.count, device=q.device, dtype=q.dtype) - 0.5).clamp_(min=0)
        total = (q + start * number) / self.segments.num_bins
        total_of_upper = (q_squared + start * q) / self.segments.num_bins
        upper = q, total_of_upper, q_positive
        weight, probability, positives = (
            _share(whole, share) for whole, share in zip((number, total, positive), upper, strict=True)
        )
        return weight, probability, positives

    def derivatives(self, d_weight: Tensor, d_probability: Tensor, d_positive: Tensor) -> list[Tensor]:
        """Return tables (B, C, segments) of coefficients of 1, q and y in the derivative of p, given those of bins."""
        if not self.segments.soft:
            return [d_probability]
        return soft_derivatives(d_weight, d_probability, d_positive)

    def look_up(self, coefficients: list[Tensor], p: Tensor, own: Tensor) -> Tensor:
        """Return the derivative of each p (b, C, n)."""
        index = self.segments.index(p)
        if not self.segments.soft:
            return coefficients[0].gather(2, index)
        constant, linear, of_positive = (table.gather(2, index) for table in coefficients)
        return constant.add_(linear.mul_(self.segments.position(p, index))).add_(of_positive.mul_(own))


def _share(whole: Tensor, upper: Tensor) -> Tensor:
    """Return sums by bin (B, C, M), given sums by segment (B, C, M + 1) and the upper bin's share of them."""
    inner, upper = whole[..., 1:-1], upper[..., 1:-1]
    bins = whole.new_zeros((*whole.shape[:2], whole.shape[2] - 1))
    bins[..., 0] += whole[..., 0]
    bins[..., -1] += whole[..., -1]
    bins[..., :-1] += inner - upper
    bins[..., 1:] += upper
    return bins


def soft_derivatives(d_weight: Tensor, d_probability: Tensor, d_positive: Tensor) -> list[Tensor]:
    """Return the coefficients of 1, q and y in the derivative of p, (B, C, M + 1) by segment, given those of bins.

    Between two centres, with the upper bin's share q: d p = (1 - q) dP_lower + q dP_upper + M (dW_upper - dW_lower +
    p (dP_upper - dP_lower) + y (dO_upper - dO_lower)), where M p = q + k - 1/2 in segment k.
    """
    num_bins = d_weight.shape[2]
    middle = torch.arange(1, num_bins, device=d_weight.device, dtype=d_weight.dtype) - 0.5
    step = d_probability.diff(dim=2)
    inner = d_probability[..., :-1] + num_bins * d_weight.diff(dim=2) + middle * step
    constant = torch.cat([d_probability[..., :1], inner, d_probability[..., -1:]], 2)
    linear, of_positive = (torch.nn.functional.pad(x, (1, 1)) for x in (2 * step, num_bins * d_positive.diff(dim=2)))
    return [constant, linear, of_positive]

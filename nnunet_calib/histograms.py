"""Fine histograms of probabilities and sums of scores: the additive part of what is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from nnunet_calib.binning import bin_index
from nnunet_calib.scopes import scope_members
from nnunet_calib.sure_voxels import SureVoxels
from nnunet_calib.temperature import MIN_PROBABILITY, log_probabilities

# Divided by 5, 6, 8, 10, 12, 15, 16, 20, 24, 25, 30, 40, 50, 60, 75, 80, 100, 120, ...: errors with these are exact.
FINE_BINS = 1200
_MARGIN = 0.999  # keeps clear of the edge of a bin, whatever is rounded
PARTS = 4  # a voxel is in or out of the foreground, in or out of the boundary band


@dataclass(frozen=True)
class Histograms:
    """Sums over voxels, apart for the four combinations of foreground and boundary (see `scopes`).

    Rows are the heads (classes, or regions), followed by the top label: confidence max_c p_c against whether that class
    is the true one. For regions, where each head decides for itself, the last row pools the heads: confidence
    max(p, 1 - p) against whether p > 1/2 is right.

    Attributes:
        counts: (4, heads + 1, fine bins) voxels in each bin; int64, or float64 weights for a voxel sample.
        probability: the same shape, float64 sums of the probability (or confidence).
        positives: the same shape and dtype as counts, voxels that belong to the class (or are right).
        nll: (4,) float64 sums of -log p_y in nats; for regions of the binary cross-entropy averaged over heads.
        brier: (4,) float64 sums of sum_c (p_c - y_c)^2; for regions averaged over heads.
        voxels: (4,) voxels.
    """

    counts: NDArray
    probability: NDArray[np.float64]
    positives: NDArray
    nll: NDArray
    brier: NDArray
    voxels: NDArray

    @classmethod
    def of(
        cls, p: NDArray, y: NDArray, scope_bits: NDArray[np.uint8], weights: NDArray | None = None
    ) -> Histograms:
        """Histograms of some voxels.

        Args:
            p: (heads, n) probabilities.
            y: (n,) labels, or (heads, n) bool for regions.
            scope_bits: (n,) from `scopes.scope_bits`.
            weights: (n,) how many voxels each one stands for; None and integers count in integers.
        """
        p = p.astype(np.result_type(p, np.float32), copy=False)
        if y.ndim == 2:
            logits = log_probabilities(p, regions=True).astype(np.float64)
            nll = (np.logaddexp(0, logits) - y * logits).mean(0)
            brier = np.square(p - y, dtype=np.float64).mean(0)
            is_true, confidence, is_right = y, np.maximum(p, 1 - p), (p > 0.5) == y
        else:
            index = y[None].astype(np.int64)
            true = np.take_along_axis(p, index, 0)[0].astype(np.float64)
            nll = -np.log(np.maximum(true, MIN_PROBABILITY))
            brier = np.einsum("cn,cn->n", p, p, dtype=np.float64) - 2 * true + 1
            is_true, confidence, is_right = np.zeros(p.shape, bool), p.max(0, initial=0)[None], p.argmax(0) == index
            np.put_along_axis(is_true, index, True, 0)
        members = (scope_bits == np.arange(PARTS)[:, None]).astype(np.float64)
        if weights is not None:
            members *= weights
        counts, probability, positives = _binned(p, is_true, confidence, is_right, scope_bits, weights, members)
        voxels = _sums(scope_bits, weights, PARTS)
        if weights is not None and weights.dtype.kind in "iu":
            counts, positives, voxels = (np.rint(x).astype(np.int64) for x in (counts, positives, voxels))
        return cls(counts, probability, positives, nll=members @ nll, brier=members @ brier, voxels=voxels)

    def with_sure(self, sure: SureVoxels) -> Histograms:
        """The sum of these, whose arrays are changed, and those of sure voxels."""
        voxels = sure.voxels.sum(1)
        for values, of_true, of_others in (
            (self.counts, sure.voxels, voxels[:, None] - sure.voxels),
            (self.positives, sure.voxels, 0),
            (self.probability, sure.true, sure.other),
        ):
            values[:, :-1, 0] += of_others
            values[:, :-1, -1] += of_true
            values[:, -1, -1] += of_true.sum(1)
        return replace(self, nll=self.nll + sure.nll, brier=self.brier + sure.brier, voxels=self.voxels + voxels)

    @classmethod
    def empty(cls, heads: int, regions: bool) -> Histograms:
        """Histograms of no voxels."""
        y = np.zeros((heads, 0), bool) if regions else np.zeros(0, np.int64)
        return cls.of(np.zeros((heads, 0)), y, np.zeros(0, np.uint8))

    @classmethod
    def merge(cls, parts: Sequence[Histograms]) -> Histograms:
        """Histograms of the voxels of all parts."""
        return cls(*(reduce(np.add, [getattr(part, f.name) for part in parts]) for f in fields(cls)))

    def __add__(self, other: Histograms) -> Histograms:
        """Histograms of the voxels of both."""
        return Histograms.merge([self, other])

    def add(self, other: Histograms) -> None:
        """Add another's voxels to these arrays."""
        for f in fields(self):
            mine = getattr(self, f.name)
            mine += getattr(other, f.name)

    def scope(self, name: str) -> Histograms:
        """The sums of one scope, without the leading axis.

        Raises:
            ValueError: for an unknown scope.
        """
        members = scope_members(name)
        return Histograms(*(getattr(self, f.name)[members].sum(0) for f in fields(self)))


def _binned(
    p: NDArray,
    y: NDArray[np.bool_],
    confidence: NDArray,
    is_right: NDArray[np.bool_],
    part: NDArray[np.uint8],
    weights: NDArray | None,
    members: NDArray[np.float64],
) -> list[NDArray]:
    """Weight, weighted probability and weighted positives, each (4, heads + 1, fine bins).

    Most p of a head are small where y is not: they are in the first bin, and no more than added up.
    """
    heads, everywhere = len(p), np.arange(p.shape[1])
    listed = p >= _MARGIN / FINE_BINS
    listed |= y
    voxels = [*(np.flatnonzero(row) for row in listed), *(everywhere for _ in confidence)]
    rows = [*range(heads), *(heads for _ in confidence)]
    voxel, row = np.concatenate(voxels), np.repeat(rows, list(map(len, voxels)))
    values, right = (
        np.concatenate([x[k] for x, k in zip((*of_heads, *of_tops), voxels, strict=True)])
        for of_heads, of_tops in ((p, confidence), (y, is_right))
    )
    values = values.astype(np.float64)  # exact edges, see bin_index
    group = part[voxel].astype(np.int64) * (heads + 1) + row
    cell = group * FINE_BINS + bin_index(values, FINE_BINS)
    w = None if weights is None else weights[voxel]
    shape = PARTS, heads + 1, FINE_BINS
    counts, probability, positives = (
        _sums(where, of_voxels, int(np.prod(shape))).reshape(shape)
        for where, of_voxels in (
            (cell, w), (cell, values if w is None else w * values), (cell[right], None if w is None else w[right])
        )
    )  # fmt: skip
    probability[:, :-1, 0] += members @ np.multiply(p, ~listed, dtype=np.float64).T
    rest = _sums(part, None, PARTS)[:, None] - _sums(group, None, PARTS * (heads + 1)).reshape(PARTS, -1)[:, :-1]
    counts[:, :-1, 0] += rest if w is None else np.where(rest, members @ ~listed.T, 0)
    return [counts, probability, positives]


def _sums(where: NDArray, weights: NDArray | None, size: int) -> NDArray:
    """`np.bincount`, which counts in integers without weights, but also where there is nothing to weigh."""
    return np.bincount(where, weights, size).astype(np.int64 if weights is None else np.float64, copy=False)

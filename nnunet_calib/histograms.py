"""Fine histograms of probabilities and sums of scores: the additive part of what is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from nnunet_calib.binning import bin_index
from nnunet_calib.scopes import scope_members
from nnunet_calib.sure_voxels import SureSums, columns, sum_sure_voxels
from nnunet_calib.temperature import MIN_PROBABILITY, log_probabilities

# Divided by 5, 6, 8, 10, 12, 15, 16, 20, 24, 25, 30, 40, 50, 60, 75, 80, 100, 120, ...: errors with these are exact.
FINE_BINS = 1200
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
        part = scope_bits.astype(np.int64)
        w = np.ones(len(part)) if weights is None else weights.astype(np.float64)
        if y.ndim == 2:
            logits = log_probabilities(p, regions=True).astype(np.float64)
            nll = (np.logaddexp(0, logits) - y * logits).mean(0)
            brier = np.square(p - y, dtype=np.float64).mean(0)
            rows = [_binned(*row, part, weights) for row in zip(p, y, strict=True)]
            tops = [_binned(np.maximum(q, 1 - q), (q > 0.5) == t, part, weights) for q, t in zip(p, y, strict=True)]
            rows.append([reduce(np.add, columns) for columns in zip(*tops, strict=True)])
        else:
            true = np.take_along_axis(p, y[None].astype(np.int64), 0)[0].astype(np.float64)
            nll = -np.log(np.maximum(true, MIN_PROBABILITY))
            brier = np.square(p, dtype=np.float64).sum(0) - 2 * true + 1
            rows = [_binned(p[c], y == c, part, weights) for c in range(len(p))]
            rows.append(_binned(p.max(0, initial=0), p.argmax(0) == y, part, weights))
        counts, probability, positives = (np.stack(columns, axis=1) for columns in zip(*rows, strict=True))
        voxels = _sums(part, w, PARTS)
        if weights is None or weights.dtype.kind in "iu":
            counts, positives, voxels = (np.rint(x).astype(np.int64) for x in (counts, positives, voxels))
        return cls(
            counts, probability, positives,
            nll=_sums(part, w * nll, PARTS), brier=_sums(part, w * brier, PARTS), voxels=voxels,
        )

    @classmethod
    def of_classes(
        cls, p: NDArray, y: NDArray, scope_bits: NDArray[np.uint8]
    ) -> tuple[Histograms, NDArray[np.int64]]:
        """The same as `of` for classes, several times as fast where the model is sure of most voxels, and right.

        Returns:
            The histograms, and the indices of the voxels whose top confidence may be below 1 - 1 / 1200.
        """
        sure, others = sum_sure_voxels(p, y, scope_bits, parts=PARTS, num_bins=FINE_BINS)
        return cls.of(columns(p, others), y[others], scope_bits[others]).with_sure(sure), others

    def with_sure(self, sure: SureSums) -> Histograms:
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

    def scope(self, name: str) -> Histograms:
        """The sums of one scope, without the leading axis.

        Raises:
            ValueError: for an unknown scope.
        """
        members = scope_members(name)
        return Histograms(*(getattr(self, f.name)[members].sum(0) for f in fields(self)))


def _binned(p: NDArray, y: NDArray, part: NDArray, weights: NDArray | None) -> list[NDArray]:
    """Weight, weighted probability and weighted positives, each (4, fine bins)."""
    p = p.astype(np.float64)  # exact edges, see bin_index
    cell = part * FINE_BINS + bin_index(p, FINE_BINS)
    weighted = p if weights is None else weights * p
    rows = ((cell, weights), (cell, weighted), (cell[y], None if weights is None else weights[y]))
    return [_sums(where, w, PARTS * FINE_BINS).reshape(PARTS, FINE_BINS) for where, w in rows]


def _sums(where: NDArray, weights: NDArray | None, size: int) -> NDArray:
    """`np.bincount`, which counts in integers without weights, but also where there is nothing to weigh."""
    return np.bincount(where, weights, size).astype(np.int64 if weights is None else np.float64, copy=False)

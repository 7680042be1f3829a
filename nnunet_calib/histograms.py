"""Fine histograms of probabilities and sums of scores: the additive part of what is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from nnunet_calib.binning import bin_index
from nnunet_calib.scopes import scope_members
from nnunet_calib.temperature import MIN_PROBABILITY, log_probabilities

# Divided by 5, 6, 8, 10, 12, 15, 16, 20, 24, 25, 30, 40, 50, 60, 75, 80, 100, 120, ...: errors with these are exact.
FINE_BINS = 1200
_PARTS = 4  # a voxel is in or out of the foreground, in or out of the boundary band


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
            weights: (n,) how many voxels each one stands for; None counts in integers.
        """
        regions = y.ndim == 2
        p = p.astype(np.result_type(p, np.float32), copy=False)
        part = scope_bits.astype(np.int64)
        w = np.ones(p.shape[1]) if weights is None else np.asarray(weights, dtype=np.float64)
        if regions:
            confidence, right = np.maximum(p, 1 - p), (p > 0.5) == y
            logits = log_probabilities(p, regions=True).astype(np.float64)
            nll = (np.logaddexp(0, logits) - y * logits).mean(0)
            brier = np.square(p - y, dtype=np.float64).mean(0)
            rows = [*zip(p, y, strict=True)]
            top = (confidence.ravel(), right.ravel(), np.tile(part, len(p)), np.tile(w, len(p)))
        else:
            true = np.take_along_axis(p, y[None].astype(np.int64), 0)[0].astype(np.float64)
            nll = -np.log(np.maximum(true, MIN_PROBABILITY))
            brier = np.square(p, dtype=np.float64).sum(0) - 2 * true + 1
            rows = [(p[c], y == c) for c in range(len(p))]
            top = (p.max(0, initial=0), p.argmax(0) == y, part, w)
        binned = [_binned(*row, part, w) for row in rows] + [_binned(*top)]
        counts, probability, positives = (np.stack(columns, axis=1) for columns in zip(*binned, strict=True))
        voxels = np.bincount(part, w, _PARTS)
        if weights is None:
            counts, positives, voxels = (np.rint(x).astype(np.int64) for x in (counts, positives, voxels))
        return cls(
            counts, probability, positives,
            nll=np.bincount(part, w * nll, _PARTS), brier=np.bincount(part, w * brier, _PARTS), voxels=voxels,
        )

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


def _binned(p: NDArray, y: NDArray, part: NDArray, w: NDArray) -> list[NDArray]:
    """Weight, weighted probability and weighted positives, each (4, fine bins)."""
    p = p.astype(np.float64)  # exact edges, see bin_index
    cell = part * FINE_BINS + bin_index(p, FINE_BINS)
    size = _PARTS * FINE_BINS
    return [np.bincount(cell, values, size).reshape(_PARTS, FINE_BINS) for values in (w, w * p, w * y)]

"""Fine histograms of probabilities and sums of scores, both additive over voxels and cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_calib.measuring.confident_voxels import ConfidentVoxels, columns
from nnunet_calib.measuring.fine_histogram import FINE_BINS, PARTS, FineBins
from nnunet_calib.measuring.scopes import scope_members

_BINNED = 1 << 13  # voxels looked up at a time: fewer would spend more time on calls than on work


@dataclass(frozen=True)
class Histograms:
    """Sums over voxels, separate for the four combinations of foreground and boundary (see `scopes`).

    Rows are the heads (classes, or regions), followed by the top label: confidence max_c p_c against whether that class
    is the true one. For regions, where each head decides for itself, the last row pools the heads: confidence
    max(p, 1 - p) against whether p > 1/2 is right.

    Attributes:
        counts: (4, heads + 1, fine bins) voxels in each bin; int64, or float64 weights for a voxel sample.
        probability: the same shape, float64 sums of the probability (or confidence).
        positives: the same shape and dtype as counts, voxels that belong to the class (or whose top label is right).
        nll: (4,) float64 sums of -log p_y in nats; for regions of the binary cross-entropy averaged over heads.
        brier: (4,) float64 sums of sum_c (p_c - y_c)^2; for regions averaged over heads.
        voxels: (4,) voxels.
        entropy: (4, 2, entropy bins) float64 number of voxels whose top label is right, and of those whose is wrong, by
            the entropy of their probabilities (see `entropy_bins`); zero for regions, whose entropy follows from their
            confidence.
    """

    counts: NDArray[Any]
    probability: NDArray[np.float64]
    positives: NDArray[Any]
    nll: NDArray[Any]
    brier: NDArray[Any]
    voxels: NDArray[Any]
    entropy: NDArray[np.float64]

    @classmethod
    def of(
        cls, p: NDArray[Any], y: NDArray[Any], scope_bits: NDArray[np.uint8], weights: NDArray[Any] | None = None
    ) -> Histograms:
        """Return histograms of some voxels.

        Args:
            p: (heads, n) probabilities.
            y: (n,) labels, or (heads, n) bool for regions.
            scope_bits: (n,) from `scopes.scope_bits`.
            weights: (n,) number of voxels each one stands for; with None or integers the counts are integers.
        """
        bins = FineBins(len(p), counting=weights is None or weights.dtype.kind in "iu")
        bins.add(p, y, scope_bits, weights)
        return cls(*bins.arrays())

    def plus_confident(self, confident: ConfidentVoxels) -> Histograms:
        """Return the histograms with the confident voxels added; the arrays are changed in place."""
        voxels = confident.voxels.sum(1)
        for values, of_true, of_others in (
            (self.counts, confident.voxels, voxels[:, None] - confident.voxels),
            (self.positives, confident.voxels, 0),
            (self.probability, confident.true, confident.other),
        ):
            values[:, :-1, 0] += of_others
            values[:, :-1, -1] += of_true
            values[:, -1, -1] += of_true.sum(1)
        self.entropy[:, 0, 0] += voxels
        return replace(
            self, nll=self.nll + confident.nll, brier=self.brier + confident.brier, voxels=self.voxels + voxels
        )

    @classmethod
    def empty(cls, heads: int, regions: bool) -> Histograms:
        """Return histograms without voxels."""
        y = np.zeros((heads, 0), bool) if regions else np.zeros(0, np.int64)
        return cls.of(np.zeros((heads, 0)), y, np.zeros(0, np.uint8))

    @classmethod
    def merge(cls, parts: Sequence[Histograms]) -> Histograms:
        """Return histograms of the voxels of all parts."""
        return cls(*(reduce(np.add, [getattr(part, f.name) for part in parts]) for f in fields(cls)))

    def __add__(self, other: Histograms) -> Histograms:
        """Return histograms of the voxels of both."""
        return Histograms.merge([self, other])

    def add(self, other: Histograms) -> None:
        """Add other voxels to the arrays in place."""
        for f in fields(self):
            mine = getattr(self, f.name)
            mine += getattr(other, f.name)

    def scope(self, name: str) -> Histograms:
        """Return the sums of one scope, without the leading axis.

        Raises:
            ValueError: for an unknown scope.
        """
        members = scope_members(name)
        return Histograms(*(getattr(self, f.name)[members].sum(0) for f in fields(self)))


class Binner:
    """A maker of histograms, many times as fast as `Histograms.of` where a softmax model is confident and right.

    Confident voxels are summed, see `confident_voxels`; the others are looked up, see `fine_histogram`.
    """

    def __init__(self, heads: int, *, regions: bool) -> None:
        """Start without voxels."""
        self._bins = FineBins(heads, counting=True)
        self._confident = None if regions else ConfidentVoxels(heads, parts=PARTS, num_bins=FINE_BINS)
        self._waiting: list[tuple[NDArray[Any], NDArray[Any], NDArray[np.uint8]]] = []
        # Once a large block has been freed, glibc keeps freed memory. Otherwise it returns arrays of a few hundred
        # kilobytes to the system and fetches them again for each piece, which takes longer than the sums.
        np.empty(1 << 23, np.uint8)

    def add(self, p: NDArray[Any], y: NDArray[Any], scope_bits: NDArray[np.uint8]) -> None:
        """Add voxels; the arguments are those of `Histograms.of`."""
        if self._confident is not None:
            others = self._confident.add(p, y, scope_bits)
            if len(others) < len(y):
                p, y, scope_bits = columns(p, others), y[others], scope_bits[others]
        self._waiting.append((p, y, scope_bits))
        if sum(len(bits) for *_, bits in self._waiting) >= _BINNED:
            self._look_up()

    def _look_up(self) -> None:
        if self._waiting:
            self._bins.add(*(np.concatenate(arrays, axis=-1) for arrays in zip(*self._waiting, strict=True)))
            self._waiting.clear()

    def histograms(self) -> Histograms:
        """Return the histograms of all voxels added."""
        self._look_up()
        binned = Histograms(*self._bins.arrays())
        return binned if self._confident is None else binned.plus_confident(self._confident)

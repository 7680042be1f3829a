"""Fill fine bins voxel by voxel, with as few look-ups as possible.

Most probabilities of a head are below 1 / 1200: they lie in its first bin and are only added up. A class with p > 1/2
is the top label, so that the top label's upper bins are the sums of those of the classes. Look-ups are collected and
made in large batches, because each batch touches every bin of every table.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnunet_calib.binning import bin_index
from nnunet_calib.measuring.entropy_bins import ENTROPY_BINS, entropy_bin
from nnunet_calib.posthoc.logits import MIN_PROBABILITY, log_probabilities

# A multiple of 5, 6, 8, 10, 12, 15, 16, 20, 24, 25, 30, 40, 50, 60, 75, ...: errors with so many bins are exact.
FINE_BINS = 1200
PARTS = 4  # inside or outside the foreground, inside or outside the boundary band
_MARGIN = 0.999  # of the width of a bin: rounding must not move a voxel across an edge
_HALF = FINE_BINS // 2  # the bin of p = 1/2, which two classes may share; in a higher bin a voxel has one class
_PIECE = 1 << 14  # largest number of voxels at a time, which the cache still holds
_WAITING = 1 << 15  # size of a batch of look-ups


class _Values(NamedTuple):
    """Values (k,) of voxels (k,) in a row of the tables, or in rows (k,)."""

    voxels: NDArray[np.int64]
    row: NDArray[np.int64] | int
    values: NDArray[Any]


class _Lookup(NamedTuple):
    """The look-ups beside the p of each head; in the last row those of the top label.

    Attributes:
        truths: p of the true heads.
        tops: confidence; if `derived`, only where no class has p > 1/2.
        rights: those of `tops` whose top label is right.
        derived: whether the rest of the last row is the sum of the other rows.
        is_right: (n,) whether the top label is right; None for regions.
    """

    truths: list[_Values]
    tops: list[_Values]
    rights: list[_Values]
    derived: bool
    is_right: NDArray[np.bool_] | None


class FineBins:
    """The arrays of `Histograms`, for voxels that are added in pieces."""

    def __init__(self, heads: int, *, counting: bool) -> None:
        """Start without voxels.

        Args:
            heads: classes or regions.
            counting: whether all weights will be whole numbers.
        """
        self._shape = PARTS, heads + 1, FINE_BINS
        self._counts, self._probability, self._positives = (np.zeros(self._shape) for _ in range(3))
        self._nll, self._brier, self._voxels = (np.zeros(PARTS) for _ in range(3))
        self._entropy = np.zeros((PARTS, 2, ENTROPY_BINS))
        self._counting, self._derived = counting, False
        self._waiting: list[_Cells] = []
        self._true: list[_Cells] = []

    def add(
        self, p: NDArray[Any], y: NDArray[Any], part: NDArray[np.uint8], weights: NDArray[Any] | None = None
    ) -> None:
        """Add voxels; the arguments are those of `Histograms.of`."""
        step = len(part) // (len(part) // _PIECE + 1) + 1
        for start in range(0, len(part), step):
            some = slice(start, start + step)
            self._add(p[:, some], y[..., some], part[some], None if weights is None else weights[some])

    def _add(self, p: NDArray[Any], y: NDArray[Any], part: NDArray[np.uint8], weights: NDArray[Any] | None) -> None:
        p = p.astype(np.result_type(p, np.float32), copy=False)
        exact = p.astype(np.float64)  # in which edges are exact, see bin_index
        if y.ndim == 2:
            logits = log_probabilities(p, regions=True).astype(np.float64)
            nll = (np.logaddexp(0, logits) - y * logits).mean(0)
            brier = np.square(exact - y).mean(0)
            lookup = _of_regions(exact, y)
        else:
            lookup = _of_classes(exact, y.astype(np.int64))
            true = lookup.truths[0].values
            nll = -np.log(np.maximum(true, MIN_PROBABILITY))
            brier = np.einsum("cn,cn->n", exact, exact) - 2 * true + 1
        members = (part == np.arange(PARTS)[:, None]).astype(np.float64)
        if weights is not None:
            members *= weights
        self._nll += members @ nll
        self._brier += members @ brier
        self._voxels += members.sum(1)
        if lookup.is_right is not None:
            cells = (part * np.int64(2) + ~lookup.is_right) * ENTROPY_BINS + entropy_bin(p)
            self._entropy += np.bincount(cells, weights, self._entropy.size).reshape(self._entropy.shape)

        listed = exact >= _MARGIN / FINE_BINS
        heads = [_Values(k, c, exact[c, k]) for c, k in enumerate(map(np.flatnonzero, listed))]
        exact[listed] = 0
        self._probability[:, :-1, 0] += members @ exact.T
        if not self._counting:
            self._counts[:, :-1, 0] += members @ ~listed.T
        if lookup.derived != self._derived:
            self._look_up()
            self._derived = lookup.derived
        start = part.astype(np.int64) * math.prod(self._shape[1:])  # NumPy 1 would stay in uint8
        self._waiting.append(_cells([*heads, *lookup.tops], start, weights))
        self._true.append(_cells([*lookup.truths, *lookup.rights], start, weights))
        if sum(len(cells) for cells, *_ in self._waiting) >= _WAITING:
            self._look_up()

    def _look_up(self) -> None:
        """Add the collected look-ups to the tables."""
        if not self._waiting:
            return
        (cells, values, weights), (of_truths, _, their_weights) = map(_joined, (self._waiting, self._true))
        for table, where, number in (
            (self._counts, cells, weights),
            (self._probability, cells, values if weights is None else values * weights),
            (self._positives, of_truths, their_weights),
        ):
            new = np.bincount(where, number, table.size).reshape(self._shape)
            if self._derived:
                new[:, -1, _HALF + 1 :] += new[:, :-1, _HALF + 1 :].sum(1)
            table += new
        self._waiting.clear()
        self._true.clear()

    def arrays(self) -> tuple[NDArray[Any], ...]:
        """Return the arrays of `Histograms` in their order, counts as integers if `counting`; call it once."""
        self._look_up()
        sums: list[NDArray[Any]] = [self._counts, self._positives, self._voxels]
        counts, positives, voxels = sums
        if self._counting:
            counts[:, :-1, 0] += voxels[:, None] - counts[:, :-1].sum(2)
            counts, positives, voxels = (x.astype(np.int64) for x in sums)
        return counts, self._probability, positives, self._nll, self._brier, voxels, self._entropy


def _of_classes(p: NDArray[Any], y: NDArray[np.int64]) -> _Lookup:
    """Return the look-ups of classes: p (C, n), labels (n,)."""
    everywhere, top = np.arange(len(y)), p.max(0)
    # unlike a softmax, other values may exceed 1/2 in several classes
    derived = np.count_nonzero(p > 0.5) == np.count_nonzero(top > 0.5)
    looked_up = np.flatnonzero(bin_index(top, FINE_BINS) <= _HALF) if derived else everywhere
    true = p[y, everywhere]
    is_right = true == top
    is_right[looked_up] = p[:, looked_up].argmax(0) == y[looked_up]  # of equal probabilities the first one counts
    tops, rights = (_Values(k, len(p), top[k]) for k in (looked_up, looked_up[is_right[looked_up]]))
    return _Lookup([_Values(everywhere, y, true)], [tops], [rights], derived, is_right)


def _of_regions(p: NDArray[np.float64], y: NDArray[np.bool_]) -> _Lookup:
    """Return the look-ups of regions (heads, n): each decides for itself, and the last row pools them.

    p is float64: float32 would round 1 - p, possibly onto or across an edge.
    """
    confidence, is_right = np.maximum(p, 1 - p), (p > 0.5) == y
    truths = [_Values(k, c, p[c, k]) for c, k in enumerate(map(np.flatnonzero, y))]
    tops = [_Values(np.arange(len(row)), len(p), row) for row in confidence]
    rights = [_Values(k, len(p), row[k]) for row, k in zip(confidence, map(np.flatnonzero, is_right), strict=True)]
    return _Lookup(truths, tops, rights, derived=False, is_right=None)


_Cells = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[Any] | None]


def _cells(looked_up: list[_Values], start: NDArray[np.int64], weights: NDArray[Any] | None) -> _Cells:
    """Return cells of the flat tables, values and weights; `start` is the first cell of each voxel's part."""
    values = np.concatenate([x.values for x in looked_up]).astype(np.float64, copy=False)
    cells = np.concatenate([start[x.voxels] + x.row * FINE_BINS for x in looked_up])
    cells += bin_index(values, FINE_BINS)
    return cells, values, None if weights is None else np.concatenate([weights[x.voxels] for x in looked_up])


def _joined(waiting: list[_Cells]) -> _Cells:
    cells, values, weights = zip(*waiting, strict=True)
    return np.concatenate(cells), np.concatenate(values), None if weights[0] is None else np.concatenate(weights)

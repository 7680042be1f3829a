"""One pass over the voxels of a case."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nnunet_calib.measuring.class_lumps import lump_classes
from nnunet_calib.measuring.confident_voxels import columns
from nnunet_calib.measuring.file_budget import sample_in_room
from nnunet_calib.measuring.histograms import Binner, Histograms
from nnunet_calib.measuring.voxel_sample import (
    NOT_VALID,
    STRATA,
    VoxelSample,
    choose_voxels,
    gradient_spread,
    strata_of,
)
from nnunet_calib.posthoc.logits import log_probabilities

_SLAB_VALUES = 1 << 19
# Allowed difference of the sum over classes from 1. float16 rounds each p, and so the sum of any number of classes, by
# a relative 2**-11 at most; bfloat16 by 2**-9. The rest is for arithmetic in such types.
_SUMS_DIFFER = 0.01


@dataclass(frozen=True)
class Volume:
    """The probabilities of a case, with labels and scopes of its voxels.

    Attributes:
        probabilities: (C, *spatial) on the grid of the crop.
        labels: (*spatial) unsigned integers.
        valid: (*spatial) which voxels count; None means all.
        scope_bits: (*spatial) from `scopes.scope_bits`.
        crop: where in `labels` the probabilities lie; around it p(class 0) = 1, for regions p = 0.
        members: (regions, labels) which labels belong to which region; None for classes.
    """

    probabilities: Probabilities
    labels: NDArray[Any]
    valid: NDArray[np.bool_] | None
    scope_bits: NDArray[np.uint8]
    crop: tuple[slice, ...]
    members: NDArray[np.bool_] | None

    def target(self, labels: NDArray[Any]) -> NDArray[Any]:
        """Return labels (n,) as they are, or for regions the membership (heads, n)."""
        return labels if self.members is None else self.members[:, labels]

    def around(self, voxels: int) -> NDArray[np.float32]:
        """Return the probabilities (C, n) of voxels outside the crop."""
        p = np.zeros((self.probabilities.shape[0], voxels), np.float32)
        if self.members is None:
            p[0] = 1
        return p

    def slab(self, rows: slice) -> NDArray[Any]:
        """Return the probabilities (C, rows, ...) of a range of the first axis of the whole grid."""
        shape = self.labels[rows].shape
        low, high = max(rows.start, self.crop[0].start), min(rows.stop, self.crop[0].stop)
        p = self.around(int(np.prod(shape))).reshape(-1, *shape)
        if high > low:
            here = (slice(None), slice(low - rows.start, high - rows.start), *self.crop[1:])
            p[here] = np.asarray(self.probabilities[:, low - self.crop[0].start : high - self.crop[0].start])
        return p

    def histograms(self, strata: NDArray[np.uint8] | None = None) -> Histograms:
        """Return the histograms of all voxels.

        Args:
            strata: (*spatial) output array for the stratum of each voxel, see `voxel_sample.strata_of`.

        Raises:
            ValueError: if a probability is NaN or outside [0, 1], or if classes do not sum to 1.
        """
        heads, shape = self.probabilities.shape[0], self.labels[self.crop].shape
        binner = Binner(heads, regions=self.members is not None)
        if strata is not None:
            self._fill_around(strata)
        for rows in slab_slices(shape, heads):
            slab = np.asarray(self.probabilities[:, rows]).reshape(heads, -1)
            crop = (of_voxels[self.crop][rows].ravel() for of_voxels in (self.labels, self.scope_bits))
            labels, scopes = crop
            here = np.full(labels.size, NOT_VALID)
            chosen = np.ones(labels.size, bool) if self.valid is None else self.valid[self.crop][rows].ravel()
            for piece in slab_slices(labels.shape, heads):
                p, y, bits = slab[:, piece], labels[piece], scopes[piece]
                kept: NDArray[Any] | slice = slice(None)
                if not chosen[piece].all():
                    kept = np.flatnonzero(chosen[piece])
                    p, y, bits = columns(p, kept), y[kept], bits[kept]
                if not p.size:
                    continue
                check_range(p)
                if self.members is None:
                    check_sums(p)
                binner.add(p, self.target(y), bits)
                if strata is not None:
                    here[piece][kept] = strata_of(p, y, self.members)
            if strata is not None:
                strata[self.crop][rows] = here.reshape(-1, *shape[1:])
        histograms = binner.histograms()
        if shape != self.labels.shape:
            histograms.add(self._histograms_around())
        return histograms

    def _histograms_around(self) -> Histograms:
        """Return the histograms of the voxels outside the crop, which differ in label and scope alone."""
        around = np.ones(self.labels.shape, bool) if self.valid is None else self.valid.copy()
        around[self.crop] = False
        values = int(self.labels.max(initial=0)) + 1
        number = np.zeros(4 * values, np.int64)
        for rows in slab_slices(self.labels.shape):
            here = around[rows]
            if here.any():
                key = self.scope_bits[rows][here].astype(np.int64) * values + self.labels[rows][here]
                number += np.bincount(key, minlength=len(number))
        key = np.flatnonzero(number)
        bits, labels = np.divmod(key, values)
        return Histograms.of(self.around(len(key)), self.target(labels), bits.astype(np.uint8), number[key])

    def _fill_around(self, strata: NDArray[np.uint8]) -> None:
        """Write the strata of the voxels outside the crop; those inside are still to be written."""
        if self.labels[self.crop].shape == self.labels.shape:
            return
        labels = np.arange(int(self.labels.max(initial=0)) + 1)
        if self.members is None:
            labels = np.minimum(labels, self.probabilities.shape[0] - 1)  # the ignore label may be larger
        np.take(strata_of(self.around(len(labels)), labels, self.members), self.labels, out=strata)
        if self.valid is not None:
            strata[~self.valid] = NOT_VALID

    def sample(self, strata: NDArray[np.uint8], max_voxels: int, room: int) -> VoxelSample:
        """Choose the voxel sample; a pilot sample of an eighth of the size decides how strata share the budget.

        With many heads, unlikely classes are lumped, and the sample is reduced until it takes at most `room` bytes.
        """
        strata = strata.ravel()
        spread = None
        if np.count_nonzero(strata != NOT_VALID) > max_voxels >= 8 * STRATA:
            chosen, weights = choose_voxels(strata, max_voxels // 8)
            spread = gradient_spread(self._voxels(chosen, weights), strata[chosen])

        def draw(number: int) -> VoxelSample:
            sample = self._voxels(*choose_voxels(strata, number, spread))
            if self.members is not None:
                return sample
            return replace(sample, logits=lump_classes(sample.logits, sample.labels))

        return sample_in_room(draw, max_voxels, room)

    def _voxels(self, chosen: NDArray[np.int64], weights: NDArray[np.float32]) -> VoxelSample:
        position = np.unravel_index(chosen, self.labels.shape)
        inside = np.all([(x >= s.start) & (x < s.stop) for x, s in zip(position, self.crop, strict=True)], axis=0)
        p = np.asarray(
            self.probabilities[(slice(None), *(x[inside] - s.start for x, s in zip(position, self.crop, strict=True)))]
        )
        if not inside.all():
            p_inside, p = p, self.around(len(chosen)).astype(p.dtype)
            p[:, inside] = p_inside
        logits = log_probabilities(p, regions=self.members is not None).T.astype(np.float16)
        labels = self.target(self.labels[position].astype(np.uint16))
        return VoxelSample(np.ascontiguousarray(logits), labels.T, weights, self.scope_bits[position])


def region_members(regions: Sequence[tuple[int, ...]], largest: int) -> NDArray[np.bool_]:
    """Return the mask (regions, largest + 1) of the labels that belong to each region."""
    return np.stack([np.isin(np.arange(largest + 1), region) for region in regions])


class Probabilities(Protocol):
    """An array of probabilities: a shape (C, *spatial), and NumPy's indexing with slices and with arrays."""

    @property
    def shape(self) -> Sequence[int]: ...  # noqa: D102

    def __getitem__(self, key: Any) -> Any: ...


def slab_slices(shape: Sequence[int], channels: int = 1) -> Iterator[slice]:
    """Yield slices along the first axis, each of about half a million values over all channels."""
    rows = max(1, _SLAB_VALUES // max(1, channels * int(np.prod(shape[1:]))))
    return (slice(start, min(start + rows, shape[0])) for start in range(0, shape[0], rows))


def check_range(p: NDArray[Any]) -> None:
    """Raise ValueError for values outside [0, 1]."""
    if not p.size:
        return
    # one pass: as unsigned integers, non-negative floats keep their order, and NaN and negative values are larger
    bits = p.view(f"u{p.itemsize}")
    if bits.max() <= np.array(1 + 1e-5, p.dtype).view(bits.dtype):
        return
    low, high = p.min(), p.max()  # NaN if any is
    if not (low >= 0 and high <= 1 + 1e-5):
        raise ValueError(
            f"expected probabilities in [0, 1], got values from {low} to {high}: pass the outputs of softmax or "
            f"sigmoid, without NaN"
        )


def check_sums(p: NDArray[Any], rounded: float = 0) -> None:
    """Raise ValueError where the probabilities (C, ...) of classes do not sum to 1.

    Args:
        p: in [0, 1].
        rounded: largest rounding error of each value.
    """
    if not p.size:
        return
    sums = p.sum(0, dtype=None if p.itemsize > 2 else np.float32)
    low, high, allowed = sums.min(), sums.max(), _SUMS_DIFFER + len(p) * rounded
    if not (low >= 1 - allowed and high <= 1 + allowed):
        worst = low if 1 - low > high - 1 else high
        raise ValueError(
            f"expected probabilities of {len(p)} classes that sum to 1 in each voxel, got a sum of {worst:.4g}: pass "
            f"the output of softmax; what comes from a sigmoid is of regions, which dataset.json must name"
        )

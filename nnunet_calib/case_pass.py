"""One pass over the voxels of a case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from nnunet_calib.histograms import Histograms
from nnunet_calib.slabs import Probabilities, slab_slices
from nnunet_calib.sure_voxels import columns
from nnunet_calib.temperature import log_probabilities
from nnunet_calib.voxel_sample import NOT_VALID, VoxelSample, choose_voxels, strata_of


@dataclass(frozen=True)
class Volume:
    """A case's probabilities and what is known of its voxels.

    Attributes:
        probabilities: (C, *spatial) on the grid of the crop.
        labels: (*spatial) unsigned integers.
        valid: (*spatial) which voxels count; None means all.
        scope_bits: (*spatial) from `scopes.scope_bits`.
        crop: where in `labels` the probabilities lie; around it p(class 0) = 1, for regions p = 0.
        members: (regions, labels) which labels belong to which region; None for classes.
    """

    probabilities: Probabilities
    labels: NDArray
    valid: NDArray[np.bool_] | None
    scope_bits: NDArray[np.uint8]
    crop: tuple[slice, ...]
    members: NDArray[np.bool_] | None

    def target(self, labels: NDArray) -> NDArray:
        """(n,) labels as they are, or which regions (heads, n) they belong to."""
        return labels if self.members is None else self.members[:, labels]

    def around(self, voxels: int) -> NDArray[np.float32]:
        """(C, n) probabilities around the crop."""
        p = np.zeros((self.probabilities.shape[0], voxels), np.float32)
        if self.members is None:
            p[0] = 1
        return p

    def slab(self, rows: slice) -> NDArray:
        """(C, rows, ...) probabilities of a range of the first axis of the whole grid."""
        shape = self.labels[rows].shape
        low, high = max(rows.start, self.crop[0].start), min(rows.stop, self.crop[0].stop)
        p = self.around(int(np.prod(shape))).reshape(-1, *shape)
        if high > low:
            here = (slice(None), slice(low - rows.start, high - rows.start), *self.crop[1:])
            p[here] = np.asarray(self.probabilities[:, low - self.crop[0].start : high - self.crop[0].start])
        return p

    def histograms(self) -> tuple[Histograms, NDArray[np.uint8]]:
        """The histograms of all voxels, and the stratum (*spatial) of each, see `voxel_sample.strata_of`.

        Raises:
            ValueError: if a probability is NaN or outside [0, 1].
        """
        heads, shape = self.probabilities.shape[0], self.labels[self.crop].shape
        total, strata = self._histograms_around(), self._strata_around()
        for rows in slab_slices(shape, heads):
            p = np.asarray(self.probabilities[:, rows]).reshape(heads, -1)
            y, bits = (of_voxels[self.crop][rows].ravel() for of_voxels in (self.labels, self.scope_bits))
            here = np.full(p.shape[1], NOT_VALID)
            kept: NDArray | slice = slice(None)
            if self.valid is not None and not (valid := self.valid[self.crop][rows]).all():
                kept = np.flatnonzero(valid)
                p, y, bits = columns(p, kept), y[kept], bits[kept]
            if not p.size:
                continue
            _check_range(p)
            if self.members is None:
                histograms, _ = Histograms.of_classes(p, y, bits)
            else:
                histograms = Histograms.of(p, self.target(y), bits)
            total += histograms
            here[kept] = strata_of(p, y, self.members)
            strata[self.crop][rows] = here.reshape(-1, *shape[1:])
        return total, strata

    def _histograms_around(self) -> Histograms:
        """Those of the voxels around the crop, all of which look the same but for label and scope."""
        if self.labels[self.crop].shape == self.labels.shape:
            return Histograms.empty(self.probabilities.shape[0], self.members is not None)
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

    def _strata_around(self) -> NDArray[np.uint8]:
        """(*spatial) those of the voxels around the crop; what lies in it is still to be written."""
        if self.labels[self.crop].shape == self.labels.shape:
            return np.full(self.labels.shape, NOT_VALID)
        labels = np.arange(int(self.labels.max(initial=0)) + 1)
        if self.members is None:
            labels = np.minimum(labels, self.probabilities.shape[0] - 1)  # one that is ignored may be larger
        strata = strata_of(self.around(len(labels)), labels, self.members)[self.labels]
        if self.valid is not None:
            strata[~self.valid] = NOT_VALID
        return strata

    def sample(self, strata: NDArray[np.uint8], max_voxels: int) -> VoxelSample:
        """The voxel sample, see `choose_voxels`."""
        chosen, weights = choose_voxels(strata.ravel(), max_voxels)
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
    """(regions, largest + 1) which labels belong to which region."""
    return np.stack([np.isin(np.arange(largest + 1), region) for region in regions])


def _check_range(p: NDArray) -> None:
    q = torch.as_tensor(p if p.flags.writeable and min(p.strides) >= 0 else p.copy())
    # a third of the time of NumPy's; row by row, since it is slow where rows lie apart
    ends = torch.tensor([[float(end) for end in row.aminmax()] for row in q], dtype=torch.float64)
    low, high = ends[:, 0].min().item(), ends[:, 1].max().item()  # NaN if any is
    if not (low >= 0 and high <= 1 + 1e-5):
        raise ValueError(
            f"expected probabilities in [0, 1], got values from {low} to {high}: pass the outputs of softmax or "
            f"sigmoid, without NaN"
        )

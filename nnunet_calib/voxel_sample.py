"""A weighted sample of a case's voxels: enough to fit a temperature and to say what it does to every error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from nnunet_calib.histograms import Histograms
from nnunet_calib.temperature import scale_logits

# A voxel whose top confidence is below this is kept before others: temperature changes little elsewhere.
UNSURE_BELOW = 0.99
_UNSURE_SHARE = 0.75
_SEED = 20240306
_CHUNK = 1 << 20


@dataclass(frozen=True)
class VoxelSample:
    """Voxels with the number of voxels each one stands for.

    Attributes:
        logits: (n, heads) float16: log p, for regions logit(p).
        labels: (n,) label, or (n, heads) bool for regions.
        weights: (n,) float32, at least 1; they sum to the voxels of the case.
        scope_bits: (n,) uint8, see `scopes.scope_bits`.
    """

    logits: NDArray[np.float16]
    labels: NDArray
    weights: NDArray[np.float32]
    scope_bits: NDArray[np.uint8]

    def __len__(self) -> int:
        """Number of voxels kept."""
        return len(self.weights)

    @classmethod
    def merge(cls, samples: Sequence[VoxelSample]) -> VoxelSample:
        """The voxels of all samples, in their order."""
        return cls(*(np.concatenate([getattr(s, f.name) for s in samples]) for f in fields(cls)))

    def histograms(self, temperature: float = 1.0) -> Histograms:
        """Histograms of the case after temperature scaling, each voxel counted with its weight."""
        p = scale_logits(self.logits.T.astype(np.float32), temperature, regions=self.labels.ndim == 2)
        return Histograms.of(p, self.labels.T, self.scope_bits, self.weights)


def choose_voxels(
    unsure: NDArray[np.bool_], max_voxels: int, valid: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Which voxels to keep, and their weights.

    A small case is kept whole. Of a large one up to three quarters of the budget go to the unsure voxels, the rest to
    the others; where a group must be thinned, a seeded random part of it is taken and each voxel stands for n / k.

    Args:
        unsure: (n,) which voxels the model is unsure of.
        max_voxels: the budget.
        valid: (n,) which voxels there are to choose from, all unsure ones among them; None means all.

    Returns:
        Rising indices into `unsure` and float32 weights that sum to the number of valid voxels.

    Raises:
        ValueError: for a budget below 2, one voxel of each group.
    """
    if max_voxels < 2:
        raise ValueError(f"expected max_voxels to be at least 2, got {max_voxels}")
    total = unsure.size if valid is None else int(np.count_nonzero(valid))
    if total <= max_voxels:
        indices = np.arange(total) if valid is None else np.flatnonzero(valid)
        return indices, np.ones(total, np.float32)
    sizes = [n := int(np.count_nonzero(unsure)), total - n]
    first = min(sizes[0], max(int(max_voxels * _UNSURE_SHARE), max_voxels - sizes[1], 1))
    budgets = [first, min(sizes[1], max_voxels - first)]
    rng = np.random.default_rng(_SEED)
    ranks = [np.sort(rng.choice(n, k, replace=False, shuffle=False)) for n, k in zip(sizes, budgets, strict=True)]
    picked: list[list[NDArray[np.int64]]] = [[], []]
    passed = [0, 0]
    for start in range(0, unsure.size, _CHUNK):  # the indices of all voxels would be eight times their number in bytes
        part = slice(start, start + _CHUNK)
        sure = ~unsure[part] if valid is None else valid[part] & ~unsure[part]
        for group, members in enumerate((unsure[part], sure)):
            low, passed[group] = passed[group], passed[group] + int(np.count_nonzero(members))
            here = ranks[group][slice(*np.searchsorted(ranks[group], (low, passed[group])))]
            if here.size:
                picked[group].append(np.flatnonzero(members)[here - low] + start)
    weights = [np.full(k, n / max(k, 1), np.float32) for n, k in zip(sizes, budgets, strict=True)]
    indices = np.concatenate([*picked[0], *picked[1]])
    order = np.argsort(indices)
    return indices[order], np.concatenate(weights)[order]

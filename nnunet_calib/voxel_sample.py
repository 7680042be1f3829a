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


def choose_voxels(unsure: NDArray[np.bool_], max_voxels: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Which voxels to keep, and their weights.

    A small case is kept whole. Of a large one up to three quarters of the budget go to the unsure voxels, the rest to
    the others; where a group must be thinned, a seeded random part of it is taken and each voxel stands for n / k.

    Args:
        unsure: (n,) which voxels the model is unsure of.
        max_voxels: the budget.

    Returns:
        Rising indices into `unsure` and float32 weights that sum to n.

    Raises:
        ValueError: for a budget below 2, one voxel of each group.
    """
    if max_voxels < 2:
        raise ValueError(f"expected max_voxels to be at least 2, got {max_voxels}")
    if unsure.size <= max_voxels:
        return np.arange(unsure.size), np.ones(unsure.size, np.float32)
    groups = [np.flatnonzero(unsure), np.flatnonzero(~unsure)]
    first = min(groups[0].size, max(int(max_voxels * _UNSURE_SHARE), max_voxels - groups[1].size, 1))
    budgets = [first, min(groups[1].size, max_voxels - first)]
    rng = np.random.default_rng(_SEED)
    picked = [rng.choice(g, k, replace=False, shuffle=False) for g, k in zip(groups, budgets, strict=True)]
    weights = [np.full(k, g.size / max(k, 1), np.float32) for g, k in zip(groups, budgets, strict=True)]
    indices = np.concatenate(picked)
    order = np.argsort(indices)
    return indices[order], np.concatenate(weights)[order]

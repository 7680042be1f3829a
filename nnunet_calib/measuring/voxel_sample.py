"""A weighted sample of a case's voxels: enough to fit a temperature and to say what it does to every error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from nnunet_calib.measuring.histograms import Histograms
from nnunet_calib.posthoc import IDENTITY, calibrator_of
from nnunet_calib.posthoc.calibrator import Calibrator
from nnunet_calib.posthoc.logits import calibrated
from nnunet_calib.posthoc.temperature import fit_temperature

# Strata end at these p of the true label. Below 1 - 2^-11, and on the other side of 1/2, they go on by factors of two;
# coarser ones do for voxels that the model is surer of, and right about, most of a scan.
_SURE = tuple(1 - 2.0**-k for k in (20, 17, 14, 11))
_EDGES = np.array([*_SURE, *(1 - 2.0**-k for k in range(10, 0, -1)), *(2.0**-k for k in range(2, 21))], np.float32)
STRATA = len(_EDGES) + 1
NOT_VALID = np.uint8(255)  # in the place of a stratum: a voxel that does not count
_FEW = 20  # voxels from which no standard deviation is taken
_EVEN_SHARE = 0.1  # of the budget, for the counts of voxels in each scope: shared out by the strata's sizes
_SEED = 20240306
_CHUNK = 1 << 19  # voxels looked up at a time: their indices take eight times their number in bytes


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
    labels: NDArray[Any]
    weights: NDArray[np.float32]
    scope_bits: NDArray[np.uint8]

    def __len__(self) -> int:
        """Number of voxels kept."""
        return len(self.weights)

    @classmethod
    def merge(cls, samples: Sequence[VoxelSample]) -> VoxelSample:
        """The voxels of all samples, in their order."""
        return cls(*(np.concatenate([getattr(s, f.name) for s in samples]) for f in fields(cls)))

    def histograms(self, calibrator: Calibrator | float = IDENTITY) -> Histograms:
        """Return histograms of the case after calibration, each voxel counted with its weight."""
        z = self.logits.T.astype(np.float32)
        p = calibrated(z, calibrator_of(calibrator), regions=self.labels.ndim == 2)
        return Histograms.of(p, self.labels.T, self.scope_bits, self.weights)


def strata_of(p: NDArray[Any], labels: NDArray[Any], members: NDArray[np.bool_] | None = None) -> NDArray[np.uint8]:
    """The stratum of each voxel, from 0 (sure and right) to STRATA - 1 (sure and wrong).

    What a voxel adds to the gradient in T differs little within a stratum: 1 - p of the true label, or p where that is
    less, lies between two neighbouring powers of two; 1 - p below 2^-11, of eight.

    Args:
        p: (C, n) probabilities.
        labels: (n,).
        members: (C, labels) which labels belong to which region; then p is what the heads give the truth, multiplied.
    """
    if members is not None:
        return _by_chance(np.where(members[:, labels], p, 1 - p).prod(0))
    strata = np.zeros(len(labels), np.uint8)
    for edge in _EDGES[: len(_SURE)]:  # several times as fast as a search
        strata += p[0] <= edge
    others = np.flatnonzero((strata == len(_SURE)) | (labels != 0))
    strata[others] = _by_chance(p[labels[others], others])
    return strata


def _by_chance(chances: NDArray[Any]) -> NDArray[np.uint8]:
    """The same from p of the true label."""
    return np.searchsorted(-_EDGES, -chances.astype(np.float32, copy=False), side="right").astype(np.uint8)


def _influences() -> NDArray[np.float64]:
    """About how far voxels of a stratum pull at T, which is not known yet: see `choose_voxels`."""
    m = logit(np.concatenate([[1 - 2.0**-21], np.sqrt(_EDGES[1:] * _EDGES[:-1], dtype=np.float64), [2.0**-21]]))
    return np.asarray((1 + np.abs(m)) * expit(-m / 1.5), np.float64)


def gradient_spread(sample: VoxelSample, strata: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Standard deviation within each stratum of what a voxel adds to the NLL's derivative by 1 / T at its minimum.

    Args:
        sample: some voxels of a case.
        strata: of each of them. Where they are too few, the root mean square stands in for the standard deviation.
    """
    regions = sample.labels.ndim == 2
    fit = fit_temperature(sample.logits, sample.labels, weights=sample.weights, regions=regions)
    z = sample.logits.T.astype(np.float32)
    truth = sample.labels.T if regions else sample.labels == np.arange(len(z))[:, None]
    gradient = ((calibrated(z, fit.calibrator, regions=regions) - truth) * z).sum(0, dtype=np.float64)
    number, total, squares = (np.bincount(strata, w, STRATA) for w in (None, gradient, gradient**2))
    mean = np.where(number < _FEW, 0, total) / np.maximum(number, 1)
    return np.sqrt(np.maximum(squares / np.maximum(number, 1) - mean**2, 0))


def _allocate(sizes: NDArray[np.int64], budget: int, spread: NDArray[np.float64]) -> NDArray[np.int64]:
    """How many voxels of each stratum to keep, by Neyman's rule: at least one, at most all, `budget` together."""
    claims = sizes * spread
    claims = claims / max(claims.sum(), 1e-30) * (1 - _EVEN_SHARE) + sizes / sizes.sum() * _EVEN_SHARE
    some = np.minimum(sizes, 1)

    def kept(log_scale: float) -> NDArray[np.int64]:
        return np.asarray(np.clip(claims * np.exp(log_scale), some, sizes), np.int64)

    low, high = -1.0, float(np.log(sizes[sizes > 0] / claims[sizes > 0]).max()) + 1  # all but nothing; everything
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if kept(middle).sum() <= budget else (low, middle)
    number = kept(low)
    number[np.flatnonzero(number < sizes)[: budget - number.sum()]] += 1
    return number


def choose_voxels(
    strata: NDArray[np.uint8], max_voxels: int, spread: NDArray[np.float64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    r"""Which voxels to keep, and their weights.

    A small case is kept whole. Of a large one, each stratum h of n voxels is thinned to a seeded random part of k, and
    each voxel kept stands for n / k. Nine tenths of the budget are shared out by Neyman's rule for fitting T,

    .. math:: k_h \propto n_h \, s_h

    where s_h is the standard deviation of the voxels' gradients by T; as long as that is not known,
    :math:`(1 + |m|) \, \sigma(-m / 1.5)` with m the logit of p of the true label, which keeps the few voxels of much
    influence, sure but wrong ones above all. The rest is shared out by n alone. No stratum goes without a voxel.

    Args:
        strata: (n,) from `strata_of`, or NOT_VALID.
        max_voxels: the budget.
        spread: (STRATA,) s_h in any unit, from `gradient_spread`.

    Returns:
        Rising indices into `strata` and float32 weights that sum to the number of valid voxels.

    Raises:
        ValueError: for a budget below one voxel of each stratum.

    References:
        Cochran, Sampling techniques, 3rd ed., Wiley 1977, section 5.5.
    """
    if max_voxels < STRATA:
        raise ValueError(f"expected max_voxels to be at least {STRATA}, one of each stratum, got {max_voxels}")
    chunks = [strata[start : start + _CHUNK] for start in range(0, strata.size, _CHUNK)]
    counts = [_counts(chunk) for chunk in chunks]
    sizes = np.sum([np.zeros(STRATA, np.int64), *counts], axis=0)
    if (total := int(sizes.sum())) <= max_voxels:
        return np.flatnonzero(strata != NOT_VALID), np.ones(total, np.float32)
    budgets = _allocate(sizes, max_voxels, _influences() if spread is None else spread)
    rng = np.random.default_rng(_SEED)
    ranks = [np.sort(rng.choice(n, k, replace=False, shuffle=False)) for n, k in zip(sizes, budgets, strict=True)]
    picked, passed = [], np.zeros(STRATA, np.int64)
    for number, (chunk, count) in enumerate(zip(chunks, counts, strict=True)):
        unsure = np.flatnonzero((chunk >= len(_SURE)) & (chunk != NOT_VALID))
        unsure = unsure[np.argsort(chunk[unsure], kind="stable")]
        ends = np.cumsum(count[len(_SURE) :])[:-1]
        sure = (np.flatnonzero(chunk == h) for h in range(len(_SURE)))
        for h, members in enumerate(chain(sure, np.split(unsure, ends))):
            low, passed[h] = passed[h], passed[h] + count[h]
            here = ranks[h][slice(*np.searchsorted(ranks[h], (low, passed[h])))]
            picked.append(members[here - low] + number * _CHUNK)
    indices = np.sort(np.concatenate(picked))
    return indices, (sizes / np.maximum(budgets, 1)).astype(np.float32)[strata[indices]]


def _counts(strata: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Voxels of each stratum; the first ones, which have the most, without a lookup of each voxel."""
    counts = np.bincount(strata[(strata >= len(_SURE)) & (strata != NOT_VALID)], minlength=STRATA)
    counts[: len(_SURE)] = [np.count_nonzero(strata == h) for h in range(len(_SURE))]
    return counts

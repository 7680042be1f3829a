"""A weighted sample of a case's voxels, to fit a calibrator and to compute errors after calibration."""

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

# Edges of the strata of p of the true label. Up to 1 - 2^-11, 1 - p changes by a factor of two from edge to edge, and
# below 1/2 so does p. Beyond, strata are coarser: there lies most of a scan, confident and right.
_SURE = tuple(1 - 2.0**-k for k in (20, 17, 14, 11))
_EDGES = np.array([*_SURE, *(1 - 2.0**-k for k in range(10, 0, -1)), *(2.0**-k for k in range(2, 21))], np.float32)
STRATA = len(_EDGES) + 1
NOT_VALID = np.uint8(255)  # instead of a stratum: an ignored voxel
_FEW = 20  # fewer voxels give no useful standard deviation
_EVEN_SHARE = 0.1  # of the budget, in proportion to the strata's sizes, for the counts of voxels in each scope
_SEED = 20240306
_CHUNK = 1 << 19  # voxels processed at a time; an index takes 8 bytes


@dataclass(frozen=True)
class VoxelSample:
    """Voxels, each with the number of voxels it stands for.

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
        """Return the number of voxels kept."""
        return len(self.weights)

    @classmethod
    def merge(cls, samples: Sequence[VoxelSample]) -> VoxelSample:
        """Return the voxels of all samples, in their order."""
        return cls(*(np.concatenate([getattr(s, f.name) for s in samples]) for f in fields(cls)))

    def histograms(self, calibrator: Calibrator | float = IDENTITY) -> Histograms:
        """Return histograms of the case after calibration, each voxel counted with its weight."""
        z = self.logits.T.astype(np.float32)
        p = calibrated(z, calibrator_of(calibrator), regions=self.labels.ndim == 2)
        return Histograms.of(p, self.labels.T, self.scope_bits, self.weights)


def strata_of(p: NDArray[Any], labels: NDArray[Any], members: NDArray[np.bool_] | None = None) -> NDArray[np.uint8]:
    """Return the stratum of each voxel, from 0 (confident and right) to STRATA - 1 (confident and wrong).

    Within a stratum the voxels' contributions to the gradient in T differ little: 1 - p of the true label, or p if that
    is less, lies between neighbouring powers of two, and 1 - p below 2^-11 between powers of eight.

    Args:
        p: (C, n) probabilities.
        labels: (n,).
        members: (C, labels) mask of the labels of each region; then the probabilities that the heads give to the truth
            are multiplied.
    """
    if members is not None:
        return _by_chance(np.where(members[:, labels], p, 1 - p).prod(0))
    strata = np.zeros(len(labels), np.uint8)
    for edge in _EDGES[: len(_SURE)]:  # several times as fast as searchsorted
        strata += p[0] <= edge
    others = np.flatnonzero((strata == len(_SURE)) | (labels != 0))
    strata[others] = _by_chance(p[labels[others], others])
    return strata


def _by_chance(chances: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the strata of probabilities of the true label."""
    return np.searchsorted(-_EDGES, -chances.astype(np.float32, copy=False), side="right").astype(np.uint8)


def _influences() -> NDArray[np.float64]:
    """Return s_h of each stratum while T is not known yet, see `choose_voxels`."""
    m = logit(np.concatenate([[1 - 2.0**-21], np.sqrt(_EDGES[1:] * _EDGES[:-1], dtype=np.float64), [2.0**-21]]))
    return np.asarray((1 + np.abs(m)) * expit(-m / 1.5), np.float64)


def gradient_spread(sample: VoxelSample, strata: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the standard deviation in each stratum of the voxels' terms of dNLL / d(1 / T) at the minimum.

    In a stratum of fewer than 20 voxels it is replaced by the root mean square.

    Args:
        sample: some voxels of a case.
        strata: (n,) the stratum of each voxel.
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
    """Return the number of voxels to keep of each stratum: at least one, at most all, `budget` together."""
    claims = sizes * spread
    claims = claims / max(claims.sum(), 1e-30) * (1 - _EVEN_SHARE) + sizes / sizes.sum() * _EVEN_SHARE
    some = np.minimum(sizes, 1)

    def kept(log_scale: float) -> NDArray[np.int64]:
        return np.asarray(np.clip(claims * np.exp(log_scale), some, sizes), np.int64)

    low, high = -1.0, float(np.log(sizes[sizes > 0] / claims[sizes > 0]).max()) + 1  # hardly any voxel; all of them
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if kept(middle).sum() <= budget else (low, middle)
    number = kept(low)
    number[np.flatnonzero(number < sizes)[: budget - number.sum()]] += 1
    return number


def choose_voxels(
    strata: NDArray[np.uint8], max_voxels: int, spread: NDArray[np.float64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    r"""Choose the voxels to keep, with their weights.

    A small case is kept whole. In a large one, a stratum h of n voxels is reduced to a seeded random sample of k, each
    of which stands for n / k voxels. Nine tenths of the budget are allocated by Neyman's rule for fitting T,

    .. math:: k_h \propto n_h \, s_h

    where s_h is the standard deviation of the voxels' gradients in T. While it is unknown, s_h is
    :math:`(1 + |m|) \, \sigma(-m / 1.5)` with m the logit of p of the true label, which keeps the few voxels of much
    influence, above all confident but wrong ones. The rest is allocated in proportion to n. Each stratum keeps a voxel.

    Args:
        strata: (n,) from `strata_of`, or NOT_VALID.
        max_voxels: the budget.
        spread: (STRATA,) s_h in any unit, from `gradient_spread`.

    Returns:
        Rising indices into `strata` and float32 weights that sum to the number of valid voxels.

    Raises:
        ValueError: for a budget of less than one voxel per stratum.

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
    """Return the number of voxels in each stratum; the first ones, the largest, are counted without a histogram."""
    counts = np.bincount(strata[(strata >= len(_SURE)) & (strata != NOT_VALID)], minlength=STRATA)
    counts[: len(_SURE)] = [np.count_nonzero(strata == h) for h in range(len(_SURE))]
    return counts

"""Standard errors of calibration errors that are computed from a voxel sample."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import hadamard

from nnunet_calib.measuring.case_statistics import CaseStatistics
from nnunet_calib.measuring.histograms import Histograms
from nnunet_calib.measuring.voxel_sample import VoxelSample
from nnunet_calib.metrics.errors import calibration_errors
from nnunet_calib.posthoc import IDENTITY
from nnunet_calib.posthoc.calibrator import Calibrator

REPLICATES = 32  # a power of two, for a Hadamard matrix
_SEED = 20240306


def replicates(sample: VoxelSample, temperature: Calibrator | float = IDENTITY) -> Iterator[Histograms]:
    r"""Yield histograms after calibration as 32 other samples of the same design might have given them.

    Balanced half-samples: the voxels of a weight w, drawn at random without replacement from one stratum, are paired at
    random, and the pairs assigned to 31 groups. A replicate counts the voxels of a pair

    .. math::
        w \Big(1 + \sqrt{1 - 1 / w}\Big) \text{ and } w \Big(1 - \sqrt{1 - 1 / w}\Big) \text{ times}

    or the other way round, as a Hadamard matrix determines for the pair's group. 1 - 1/w is the fraction of the voxels
    that were not drawn: voxels of weight 1 do not vary. Only differences within a stratum count, so that sums vary as
    they do over samples. The odd voxel of a stratum does not vary; the single voxels of strata are paired with each
    other. `rms_deviation` evaluates the values of the replicates.

    References:
        Wolter, Introduction to variance estimation, 2nd ed., Springer 2007, chapters 2 and 3.
    """
    whole = sample.histograms(temperature)
    share = np.sqrt(1 - 1 / sample.weights.astype(np.float64))
    shuffled = np.random.default_rng(_SEED).permutation(np.flatnonzero(share))
    _, stratum, kept = np.unique(sample.weights[shuffled], return_inverse=True, return_counts=True)
    stratum[kept[stratum] == 1] = len(kept)
    order = np.argsort(stratum, kind="stable")
    dealt, stratum = shuffled[order], stratum[order]
    place = np.arange(len(dealt)) - np.searchsorted(stratum, stratum)
    is_paired = place < np.bincount(stratum, minlength=1)[stratum] // 2 * 2
    dealt, sign = dealt[is_paired], 1 - 2 * (place[is_paired] % 2)
    pair = np.arange(len(dealt)) // 2
    deviations = []
    for group in range(REPLICATES - 1):
        here = np.flatnonzero(pair % (REPLICATES - 1) == group)
        some = dealt[here]
        part = VoxelSample(*(getattr(sample, f.name)[some] for f in fields(VoxelSample)))
        part = replace(part, weights=sample.weights[some] * share[some] * sign[here])
        deviations.append(part.histograms(temperature))
    changes = [
        np.tensordot(hadamard(REPLICATES)[:, 1:].astype(float), [getattr(d, f.name) for d in deviations], 1)
        for f in fields(Histograms)
    ]
    for change in zip(*changes, strict=True):
        yield Histograms(*(getattr(whole, f.name) + x for f, x in zip(fields(Histograms), change, strict=True)))


def rms_deviation(value: NDArray[Any] | float, replicated: NDArray[Any]) -> NDArray[np.float64]:
    """Return the root mean square of value_r - value for replicates (R, ...) of a value (...).

    Unlike the deviation from the replicates' mean, it includes the bias by which noise increases absolute values.
    Replicates with an undefined value are left out; NaN if the value is undefined itself, or in all replicates.
    """
    squares = np.square(np.asarray(replicated, dtype=np.float64) - value)
    known = (~np.isnan(squares)).sum(0)
    return np.asarray(np.sqrt(np.nansum(squares, axis=0) / np.where(known, known, np.nan)))


def sampling_errors(
    statistics: CaseStatistics,
    temperature: Calibrator | float = IDENTITY,
    num_bins: int = 20,
    scope: str = "image",
    **options: Any,
) -> dict[str, NDArray[np.float64]]:
    """Return standard errors of `calibration_errors(statistics.with_temperature(temperature), ...)` by voxel sampling.

    They estimate the difference of each value from that over all voxels, for a given temperature; the variation over
    cases is not included. They are zero if all voxels were kept, up to the rounding of log-probabilities to float16. A
    bin with hardly any voxel in the sample can hide its error: for MCE, and for ACE with bins of few voxels, the
    standard errors are a lower bound.

    Args:
        statistics: with a voxel sample.
        temperature: T > 0, or a calibrator of any kind.
        num_bins: see `calibration_errors`.
        scope: see `calibration_errors`.
        options: other options of `calibration_errors`.

    Returns:
        The names and shapes of `calibration_errors`.
    """

    def measure(histograms: Histograms) -> dict[str, NDArray[np.float64]]:
        return calibration_errors(replace(statistics, histograms=histograms), num_bins, scope, **options)

    whole = measure(statistics.sample.histograms(temperature))
    others = [measure(histograms) for histograms in replicates(statistics.sample, temperature)]
    return {name: rms_deviation(value, np.stack([other[name] for other in others])) for name, value in whole.items()}

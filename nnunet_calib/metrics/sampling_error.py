"""How far an error computed from a voxel sample may be off because most voxels were not kept."""

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
    r"""Histograms after calibration as 32 other samples of the same design might have given them.

    Balanced half-samples: the voxels of each weight w, which were drawn at random without replacement from one stratum,
    are paired at random, and the pairs dealt into 31 groups. A replicate counts the voxels of a pair

    .. math::
        w \Big(1 + \sqrt{1 - 1 / w}\Big) \text{ and } w \Big(1 - \sqrt{1 - 1 / w}\Big) \text{ times}

    or the other way round, as a Hadamard matrix says for the pair's group. Here 1 - 1/w is the share of the voxels that
    were not drawn: voxels that stand for themselves do not vary. As only differences within a stratum count, sums vary
    as they do over samples. The odd voxel of a stratum does not vary; those of strata of which one was kept are paired
    with each other. `rms_deviation` takes what was computed from each replicate.

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
    """Root mean square of value_r - value for replicates (R, ...) of a value (...).

    What noise adds to an absolute value is in it, unlike in the deviation from the mean of the replicates. Replicates
    in which the value is undefined are left out; NaN if it is undefined itself, or in all of them.
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
    """Standard errors of `calibration_errors(statistics.with_temperature(temperature), ...)` from sampling voxels.

    They tell how far each value may be from that of all voxels; how it would vary with other cases is another
    question, and the temperature is taken as given. Zero where all voxels were kept, up to the rounding of the kept
    log-probabilities to float16. A bin of which hardly a voxel was kept can hide its error: take those of the maximum,
    and of ACE with bins of few voxels, for a lower bound.

    Args:
        statistics: with a voxel sample.
        temperature: T > 0, or a calibrator of any kind.
        num_bins: as for `calibration_errors`, as are `scope` and the other options.
        scope: see there.
        options: see there.

    Returns:
        The names and shapes of `calibration_errors`.
    """

    def measure(histograms: Histograms) -> dict[str, NDArray[np.float64]]:
        return calibration_errors(replace(statistics, histograms=histograms), num_bins, scope, **options)

    whole = measure(statistics.sample.histograms(temperature))
    others = [measure(histograms) for histograms in replicates(statistics.sample, temperature)]
    return {name: rms_deviation(value, np.stack([other[name] for other in others])) for name, value in whole.items()}

"""How far an error computed from a voxel sample may be off because most voxels were not kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_calib.histograms import Histograms
from nnunet_calib.metrics import calibration_errors
from nnunet_calib.statistics import CaseStatistics
from nnunet_calib.voxel_sample import VoxelSample

REPLICATES = 40
_GROUPS = 20
_SEED = 20240306


def replicates(sample: VoxelSample, temperature: float = 1.0) -> Iterator[Histograms]:
    r"""Histograms after temperature scaling as 40 other samples of the same design might have given them.

    Half-samples of random groups: the voxels of each weight w, which were drawn at random without replacement, are
    dealt into 20 groups at random. A replicate counts each voxel of ten of the groups, and of the other ten,

    .. math::
        w_i \Big(1 + \sqrt{1 - 1 / w_i}\Big) \text{ and } w_i \Big(1 - \sqrt{1 - 1 / w_i}\Big) \text{ times}

    where 1 - 1/w is the share of the voxels that were not drawn: voxels that stand for themselves do not vary. Sums
    then vary as they do over samples. `rms_deviation` takes what was computed from each replicate.

    References:
        Wolter, Introduction to variance estimation, 2nd ed., Springer 2007, chapters 2 and 3.
    """
    whole = sample.histograms(temperature)
    share = np.sqrt(1 - 1 / sample.weights.astype(np.float64))
    rng = np.random.default_rng(_SEED)
    shuffled = rng.permutation(np.flatnonzero(share))
    dealt = shuffled[np.argsort(sample.weights[shuffled], kind="stable")]
    groups = []
    for group in range(_GROUPS):
        some = np.sort(dealt[group::_GROUPS])
        part = VoxelSample(*(getattr(sample, f.name)[some] for f in fields(VoxelSample)))
        groups.append(replace(part, weights=sample.weights[some] * share[some]).histograms(temperature))
    for _ in range(REPLICATES):
        signs = rng.permutation(np.repeat([-1.0, 1.0], _GROUPS // 2))
        yield Histograms(*(
            getattr(whole, f.name) + np.tensordot(signs, [getattr(group, f.name) for group in groups], 1)
            for f in fields(Histograms)
        ))


def rms_deviation(value: NDArray | float, replicated: NDArray) -> NDArray[np.float64]:
    """Root mean square of value_r - value for replicates (R, ...) of a value (...).

    What noise adds to an absolute value is in it, unlike in the deviation from the mean of the replicates. Replicates
    in which the value is undefined are left out; NaN if it is undefined itself, or in all of them.
    """
    squares = np.square(np.asarray(replicated, dtype=np.float64) - value)
    known = (~np.isnan(squares)).sum(0)
    return np.sqrt(np.nansum(squares, axis=0) / np.where(known, known, np.nan))


def sampling_errors(
    statistics: CaseStatistics, temperature: float = 1.0, num_bins: int = 20, scope: str = "image", **options: Any
) -> dict[str, NDArray[np.float64]]:
    """Standard errors of `calibration_errors(statistics.with_temperature(temperature), ...)` from sampling voxels.

    They tell how far each value may be from that of all voxels; how it would vary with other cases is another
    question, and the temperature is taken as given. Zero where all voxels were kept, up to the rounding of the kept
    log-probabilities to float16. A bin of which hardly a voxel was kept can hide its error: take those of the maximum,
    and of ACE with bins of few voxels, for a lower bound.

    Args:
        statistics: with a voxel sample.
        temperature: T > 0.
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

"""Sampling errors of a fold's numbers: how far they may be off because not every voxel was kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nnunet_calib.nnunet.labels import Heads
from nnunet_calib.results.error_tree import RunningMeans, Tree, combine, measure
from nnunet_calib.metrics.sampling_error import REPLICATES, replicates, rms_deviation
from nnunet_calib.measuring.case_statistics import CaseStatistics


class SampledErrors:
    """Standard errors of averages after temperature that come from keeping a sample of the voxels only.

    Cases are added one after the other. Only sums over them are kept.
    """

    def __init__(self, heads: Heads) -> None:
        self._heads, self._sums = heads, RunningMeans()

    def add(self, case: CaseStatistics, voxels: int, temperature: float, calibrated: Tree) -> None:
        """Add a case: its statistics, of how many voxels they are, and its errors after temperature."""
        if len(case.sample) == voxels:
            self._sums.add(combine(lambda values: np.repeat(values, REPLICATES + 1), calibrated))
        else:
            others = (measure(replace(case, histograms=h), self._heads) for h in replicates(case.sample, temperature))
            self._sums.add(combine(np.array, calibrated, *others))

    def spread(self) -> Tree:
        """The sampling errors of all numbers of `average`."""
        return combine(lambda values: float(rms_deviation(values[0][0], values[0][1:])), self._sums.means(self._heads))

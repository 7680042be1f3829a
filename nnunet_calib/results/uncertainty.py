"""Bootstrap intervals and sampling errors of the numbers in a summary.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnunet_calib.measuring.case_statistics import CaseStatistics
from nnunet_calib.measuring.scopes import SCOPES
from nnunet_calib.metrics.catalogue import SCORES
from nnunet_calib.metrics.pooled_errors import PooledCases, PoolErrors
from nnunet_calib.metrics.sampling_error import REPLICATES, replicates, rms_deviation
from nnunet_calib.metrics.significance import percentile_interval, pooled_interval, resampled_means, resampling_counts
from nnunet_calib.posthoc.calibrator import Calibrator
from nnunet_calib.results.error_tree import RunningMeans, add_class_means, average, combine, described, measure
from nnunet_calib.results.heads import Heads
from nnunet_calib.results.schemas import CALIBRATED, STAGES, UNCALIBRATED, Tree


class _Resampled(NamedTuple):
    means: NDArray[np.float64]
    cases: int


def intervals(per_case: Sequence[Tree], heads: Heads) -> Tree:
    """Return [low, high] for each number of `average(per_case, heads)`.

    All numbers share their resamples. The mean over classes is taken within each resample. A resample without any case
    of a class that the cases have is left out of its interval, since the mean would be one of other classes.
    """
    counts = resampling_counts(len(per_case))

    def resampled(values: list[float]) -> _Resampled:
        return _Resampled(resampled_means(values, counts), int(np.count_nonzero(~np.isnan(values))))

    result: Tree = {}
    for scope in per_case[0]:  # one at a time: resamples take memory
        tree = combine(resampled, *(case[scope] for case in per_case))
        for name, keys in (("mean", heads.keys), ("foreground_mean", heads.foreground)):
            tree[name] = combine(_over_classes, *(tree["per_class"][key] for key in keys))
        result[scope] = combine(lambda found: [*percentile_interval(*found[0])], tree)
    return result


def means_with_intervals(
    before: Sequence[Tree], after: Sequence[Tree], heads: Heads, boundary_mm: float
) -> dict[str, Any]:
    """Return the entries `metrics` and `intervals` of a summary.json, from the errors before and after calibration."""
    change = [combine(lambda pair: pair[1] - pair[0], *pair) for pair in zip(before, after, strict=True)]
    stages = dict(zip(STAGES, (before, after), strict=True))
    return {
        "metrics": {name: described(average(trees, heads), boundary_mm) for name, trees in stages.items()},
        "intervals": {
            name: described(intervals(trees, heads), boundary_mm)
            for name, trees in (stages | {"change": change}).items()
        },
    }


def _over_classes(classes: list[_Resampled]) -> _Resampled:
    present = [c for c in classes if c.cases]
    if not present:
        return classes[0]
    return _Resampled(np.mean([c.means for c in present], axis=0), max(c.cases for c in present))


def pooled_with_intervals(stages: Mapping[str, PooledCases], heads: Heads, boundary_mm: float) -> dict[str, Any]:
    """Return the entries `pooled` and `pooled_intervals` of a summary.json.

    Args:
        stages: stage -> cases, the same ones in the same order.
        heads: heads of the network.
        boundary_mm: half width of the boundary scope.
    """
    values = {name: pooled_tree(cases.errors(), heads) for name, cases in stages.items()}
    resampled = {name: pooled_tree(cases.resampled(), heads) for name, cases in stages.items()}
    for trees in (values, resampled):
        trees["change"] = combine(lambda pair: pair[1] - pair[0], trees[UNCALIBRATED], trees[CALIBRATED])
    counts = {scope: stages[UNCALIBRATED].cases(scope) for scope in SCOPES}
    limits = {
        name: {
            scope: _limits(tree[scope], values[name][scope], counts[scope], 0.0 if name in stages else -math.inf)
            for scope in SCOPES
        }
        for name, tree in resampled.items()
    }
    numbers = {name: combine(lambda found: float(found[0][0]), values[name]) for name in stages}
    return {
        name: {stage: described(tree, boundary_mm, "pooled_over") for stage, tree in trees.items()}
        for name, trees in (("pooled", numbers), ("pooled_intervals", limits))
    }


def pooled_tree(errors: PoolErrors, heads: Heads) -> Tree:
    """Return a tree of pooled errors and their means over classes, with an array (pools,) at each leaf.

    A mean over classes is NaN for a pool without one of the classes that the cases have.
    """
    result: Tree = {}
    for scope, values in errors.items():
        names = [name for name in values if name not in SCORES]
        result[scope] = {
            "per_class": {key: {name: values[name][:, row] for name in names} for row, key in enumerate(heads.keys)},
            "top_label": {name: values[name][:, -1] for name in names},
            **{name: values[name] for name in SCORES},
        }
    add_class_means(result, heads, _mean_of_present)
    return result


def _mean_of_present(classes: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    known = [values for values in classes if not np.isnan(values).all()]
    return np.asarray(np.mean(known, axis=0)) if known else classes[0]


def _limits(resampled: Tree, values: Tree, cases: int, lowest: float) -> Tree:
    """Return [low, high] for each leaf of the resampled errors; `values` may have more leaves (errors by chance)."""
    return {
        name: _limits(entry, values[name], cases, lowest)
        if isinstance(entry, dict)
        else [*pooled_interval(entry, float(values[name][0]), cases, lowest=lowest)]
        for name, entry in resampled.items()
    }


class SampledErrors:
    """Standard errors of averages after calibration, due to keeping only a sample of the voxels.

    Cases are added one at a time, and only sums over them are kept.
    """

    def __init__(self, heads: Heads) -> None:
        self._heads, self._sums = heads, RunningMeans()

    def add(self, case: CaseStatistics, voxels: int, calibrator: Calibrator, calibrated: Tree) -> None:
        """Add a case, given its statistics, its number of voxels, and its errors after calibration."""
        if len(case.sample) == voxels:
            self._sums.add(combine(lambda values: np.repeat(values, REPLICATES + 1), calibrated))
        else:
            others = (measure(replace(case, histograms=h), self._heads) for h in replicates(case.sample, calibrator))
            self._sums.add(combine(np.array, calibrated, *others))

    def spread(self) -> Tree:
        """Return the sampling errors of all numbers of `average`."""
        return combine(lambda values: float(rms_deviation(values[0][0], values[0][1:])), self._sums.means(self._heads))

"""The numbers of a fold's summary.json as trees: errors of a case, and their means over cases."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_calib.measuring.case_statistics import CaseStatistics
from nnunet_calib.measuring.scopes import SCOPES
from nnunet_calib.metrics.bin_sums import BinSums
from nnunet_calib.metrics.catalogue import (
    BY_NAME,
    CASE_ERRORS,
    DEFINITIONS,
    HEAD_ERRORS,
    RANKINGS,
    SCORES,
    SUMMARY_ERRORS,
    SUMMARY_SCORES,
)
from nnunet_calib.metrics.errors import NUM_BINS, calibration_errors
from nnunet_calib.metrics.significance import LEVEL, RESAMPLES
from nnunet_calib.posthoc.calibrator import Calibrator
from nnunet_calib.posthoc.temperature import Temperature
from nnunet_calib.results.heads import BACKGROUND, Heads
from nnunet_calib.results.schemas import CALIBRATED, Tree

MIN_COUNT = 100
OTHER_BINS = (10, 15)
_PER_HEAD = tuple(dict.fromkeys([*HEAD_ERRORS, "ace_min_count", *SUMMARY_ERRORS]))


def measure(statistics: CaseStatistics, heads: Heads) -> Tree:
    """Measure the errors of one case: scope -> per_class, top_label, top_label with other bins, and scores."""
    result: Tree = {}
    for scope in SCOPES:
        errors = dict(calibration_errors(statistics, NUM_BINS, scope))
        ace = BinSums.of(statistics, NUM_BINS, scope).gap_errors(MIN_COUNT)["ace"]
        errors["ace_min_count"] = np.where(np.isnan(errors["ece"]), np.nan, ace[:-1])  # absent classes have no errors
        errors["top_label_ace_min_count"] = ace[-1]
        result[scope] = {
            "per_class": {
                key: {name: float(errors[name][i]) for name in _PER_HEAD} for i, key in enumerate(heads.keys)
            },
            "top_label": {name: float(errors[f"top_label_{name}"]) for name in _PER_HEAD},
            **{name: float(errors[name]) for name in SUMMARY_SCORES},
        }
        for bins in OTHER_BINS:
            gaps = BinSums.of(statistics, bins, scope).errors()
            result[scope][f"top_label_{bins}_bins"] = {name: float(gap[-1]) for name, gap in gaps.items()}
    return result


def brief(tree: Tree) -> Tree:
    """Return the part of the errors written for each case: the headline metrics, errors by chance and rankings."""
    return {
        scope: {
            "per_class": {key: {m: errors[m] for m in CASE_ERRORS} for key, errors in of_case["per_class"].items()},
            "top_label": {m: of_case["top_label"][m] for m in CASE_ERRORS},
            **{m: of_case[m] for m in (*SCORES, *RANKINGS)},
        }
        for scope, of_case in tree.items()
    }


def average(per_case: Sequence[Tree], heads: Heads) -> Tree:
    """Return means over the cases that have the class, then (mean, foreground_mean) over classes, as nnU-Net does."""
    result = combine(mean_of_known, *per_case)
    add_class_means(result, heads, mean_of_known)
    for scope, means in result.items():
        for key in heads.keys:
            found = [case[scope]["per_class"][key]["ece"] for case in per_case]
            means["per_class"][key]["cases"] = int(np.sum(~np.isnan(found)))
    return result


def add_class_means(result: Tree, heads: Heads, mean: Callable[[list[Any]], Any]) -> None:
    """Add the means over all classes and over the foreground classes to each scope."""
    for means in result.values():
        for name, keys in (("mean", heads.keys), ("foreground_mean", heads.foreground)):
            means[name] = combine(mean, *(means["per_class"][key] for key in keys))


class RunningMeans:
    """Means over cases of trees with an array at each leaf, from sums and counts, without keeping the cases."""

    def __init__(self) -> None:
        self._sums: Tree | None = None

    def add(self, tree: Tree) -> None:
        """Add a case; NaN does not count."""
        sums = combine(lambda values: np.stack([np.nan_to_num(values[0]), ~np.isnan(values[0])]), tree)
        self._sums = sums if self._sums is None else combine(sum, self._sums, sums)

    def means(self, heads: Heads) -> Tree:
        """Return the means as `average` does, element by element; NaN where no case has a value."""
        result = combine(lambda values: values[0][0] / np.where(values[0][1], values[0][1], np.nan), self._sums or {})
        add_class_means(result, heads, _nanmean_of_arrays)
        return result


def _nanmean_of_arrays(values: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    counts = sum(~np.isnan(v) for v in values)
    total: NDArray[np.float64] = sum(np.nan_to_num(v) for v in values) / np.where(counts, counts, np.nan)
    return total


def combine(function: Callable[[list[Any]], Any], *trees: Tree) -> Tree:
    """Combine trees leaf by leaf with a function of a list of numbers; integers, which are counts, are left out."""
    return {
        key: combine(function, *(tree[key] for tree in trees))
        if isinstance(value, dict)
        else function([tree[key] for tree in trees])
        for key, value in trees[0].items()
        if not isinstance(value, int)
    }


def mean_of_known(values: Iterable[float | None]) -> float:
    """Return the mean of the values other than None and NaN; NaN if there are none."""
    known = [value for value in values if value is not None and not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def case_error(errors: Tree, metric: str, of: str | None = None) -> float:
    """Return a metric of a case in a scope: a score, or the foreground mean of an error; NaN without a value.

    Args:
        errors: the case's errors in the scope, as from `brief`, with null or NaN for missing values. Files of older
            versions lack errors by chance.
        metric: name of the metric.
        of: "top_label" for the error of the top label.
    """
    if of == "top_label":
        return float(errors["top_label"][metric])
    if metric in errors:
        return mean_of_known([errors[metric]])
    return mean_of_known(of_class.get(metric) for key, of_class in errors["per_class"].items() if key != BACKGROUND)


def described(tree: Tree, boundary_mm: float, combined: str = "averaged_over") -> Tree:
    """Return the tree with the settings that each scope's numbers depend on beside them."""
    counts = {name: 1 for name in SUMMARY_ERRORS if BY_NAME[name].counted} | {"ace_min_count": MIN_COUNT}
    result = {}
    for scope, values in tree.items():
        definition = {"scope": scope, "bins": NUM_BINS, "min_count": counts, combined: "cases"}
        width = {"boundary_mm": boundary_mm} if scope == "boundary" else {}
        result[scope] = {"definition": definition | width, **values}
    return result


def scope_definitions(boundary_mm: float) -> dict[str, str]:
    """Return the definition of each scope: the voxels it holds."""
    return {
        "image": "all voxels of the exported image that are not ignored",
        "foreground": "voxels whose true label is not background",
        "boundary": f"voxels within {boundary_mm} mm of a voxel at a true label border",
    }


def definitions(
    boundary_mm: float, cross_fits: int | None, calibrator: Calibrator | type[Calibrator] = Temperature
) -> dict[str, Any]:
    """Return the definitions of names in a file; `cross_fits` is None if the calibrator comes from other cases."""
    fitted = {
        CALIBRATED: f"each case with {calibrator.indefinite} fitted on other cases of the fold only (cross-fitting in "
        f"{cross_fits} groups), on the kept voxels of the case",
        "temperature": "fitted on all cases of the fold by minimising the mean NLL over voxels",
    }
    given = {
        CALIBRATED: f"each case with the given {calibrator.noun}, on the kept voxels of the case",
        "temperature": "given, not fitted on these cases unless in_sample says so",
    }
    return (
        DEFINITIONS
        | {
            "bins": NUM_BINS,
            "ace_min_count": f"ace with min_count = {MIN_COUNT} voxels",
            **{f"top_label_{bins}_bins": f"top_label with {bins} bins" for bins in OTHER_BINS},
            "averaging": "per case, then the mean over the cases (for a class: those that contain it)",
            "scopes": scope_definitions(boundary_mm),
            "pooled": "errors of the voxels of all cases together: a large case counts for more than a small one",
            "intervals": f"[low, high], {LEVEL:.0%} bootstrap intervals over cases ({RESAMPLES} resamples, widened for "
            "few cases; null for fewer than two) at the given networks and temperatures; change: calibrated - "
            "uncalibrated of the same cases",
            "sampling_error": "how far the calibrated values may be off because not every voxel was kept, at the given "
            "temperatures: root mean square change over random half-samples of the kept voxels; 0 where all were kept",
        }
        | (given if cross_fits is None else fitted)
    )

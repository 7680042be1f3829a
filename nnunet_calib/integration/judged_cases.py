"""The cases of measured folds, each judged before and after a temperature that was fitted without it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from tqdm import tqdm

from nnunet_calib.histograms import Histograms
from nnunet_calib.integration.fold_results import FoldResult, some
from nnunet_calib.integration.folds import case_file, fit_cases
from nnunet_calib.integration.labels import Heads
from nnunet_calib.integration.summary import Tree, combine, measure
from nnunet_calib.statistics import CaseStatistics
from nnunet_calib.temperature import TemperatureFit


@dataclass(frozen=True)
class MeasuredCase:
    """What is kept in memory of a case.

    Attributes:
        fold: whose network predicted it.
        statistics: with the voxel sample; the histograms are empty, since no later step needs them.
        voxels: of the case.
        uncalibrated: its errors, from `measure`.
    """

    fold: int
    statistics: CaseStatistics
    voxels: int
    uncalibrated: Tree


def read_measured(found: Sequence[FoldResult], *, allow_missing: bool) -> tuple[list[MeasuredCase], list[str]]:
    """The cases of all folds, in the order of folds and names, and the names of those without statistics.

    Raises:
        ValueError: in one sentence, if cases are missing and must not be, do not belong together, or have no voxel.
    """
    cases: list[MeasuredCase] = []
    missing: dict[int, list[str]] = {}
    nothing: Histograms | None = None
    named = [(result, name) for result in found for name in result.cases]
    for result, name in tqdm(named, desc="reading cases"):
        statistics = _load(result, name)
        if statistics is None:
            missing.setdefault(result.fold, []).append(name)
            continue
        width = (cases[0].statistics if cases else statistics).boundary_mm
        expected = (len(result.heads.keys), result.heads.regions is not None, width)
        if (ours := (statistics.num_heads, statistics.regions, statistics.boundary_mm)) != expected:
            raise ValueError(
                f"expected statistics with (heads, regions, boundary_mm) = {expected}, found {ours} for {name} in fold "
                f"{result.fold}: measure its fold again with nnunet_calib validate"
            )
        nothing = nothing or Histograms.empty(statistics.num_heads, statistics.regions)
        cases.append(
            MeasuredCase(
                result.fold, replace(statistics, histograms=nothing, shown=None),
                int(statistics.histograms.voxels.sum()), measure(statistics, result.heads),
            )
        )
    if missing and not allow_missing:
        listed = "; ".join(f"fold {fold}: {some(names)}" for fold, names in missing.items())
        raise ValueError(
            f"expected statistics of every validation case with its fold's network, found none for {listed}: measure "
            f"them with nnunet_calib validate, or leave these cases out with --chill"
        )
    for result in found:
        if not any(len(case.statistics.sample) for case in cases if case.fold == result.fold):
            raise ValueError(
                f"expected cases with a voxel that counts in each fold, found none in fold {result.fold}: leave it out "
                f"with -f"
            )
    return cases, [name for names in missing.values() for name in names]


def _load(result: FoldResult, case: str) -> CaseStatistics | None:
    """None for a case without a file, or with that of other weights: a validation that runs, or was killed."""
    try:
        statistics = CaseStatistics.load(case_file(result.folder, case))
    except FileNotFoundError:
        return None
    return statistics if statistics.model.get("weights_sha256") == result.model["weights_sha256"] else None


def fits_without_fold(cases: Sequence[MeasuredCase]) -> dict[int, TemperatureFit]:
    """For each fold the temperature of all cases of the other folds, by which its own cases may be judged."""
    folds = sorted({case.fold for case in cases})
    return {fold: fit_cases([case.statistics for case in cases if case.fold != fold]) for fold in folds}


def errors_after(cases: Sequence[MeasuredCase], temperatures: Iterable[float], heads: Heads) -> list[Tree]:
    """The errors of each case with its temperature; NaN where it has none."""
    pairs = zip(cases, temperatures, strict=True)
    return [
        combine(lambda _: float("nan"), case.uncalibrated) if np.isnan(t) else
        measure(case.statistics.with_temperature(t), heads)
        for case, t in tqdm(pairs, desc="after temperature", total=len(cases))
    ]  # fmt: skip

"""The cases of measured folds, each judged before and after a temperature that was fitted without it.

Cases are read again for each pass over their voxels, so that the memory is that of one case and of the errors of all.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from nnunet_calib.integration.fold_results import FoldResult, some
from nnunet_calib.integration.folds import fitted_without, load_case
from nnunet_calib.integration.labels import Heads
from nnunet_calib.integration.sampled_errors import SampledErrors
from nnunet_calib.integration.summary import Tree, combine, measure
from nnunet_calib.joint_fit import Key, fit_jointly
from nnunet_calib.statistics import CaseStatistics
from nnunet_calib.temperature import TemperatureFit
from nnunet_calib.voxel_sample import VoxelSample


@dataclass(frozen=True)
class MeasuredCase:
    """What is kept in memory of a case.

    Attributes:
        name: of the case.
        fold: whose network predicted it.
        folder: the fold's calibration folder.
        weights_sha256: of that network.
        boundary_mm: half width of the boundary scope.
        voxels: of the case.
        kept: voxels of its sample.
        uncalibrated: its errors, from `measure`.
    """

    name: str
    fold: int
    folder: Path
    weights_sha256: str
    boundary_mm: float
    voxels: int
    kept: int
    uncalibrated: Tree

    def read(self) -> CaseStatistics:
        """Its statistics once more.

        Raises:
            ValueError: if the file is another one by now.
        """
        statistics = load_case(self.folder, self.name)
        found = statistics.model.get("weights_sha256"), int(statistics.histograms.voxels.sum()), len(statistics.sample)
        if found != (self.weights_sha256, self.voxels, self.kept):
            raise ValueError(
                f"expected {self.name} of fold {self.fold} to stay as it was, found other statistics in {self.folder}: "
                f"wait until its validation is done and run the same command again"
            )
        return statistics


def read_measured(found: Sequence[FoldResult], *, allow_missing: bool) -> tuple[list[MeasuredCase], list[str]]:
    """The cases of all folds, in the order of folds and names, and the names of those without statistics.

    Raises:
        ValueError: in one sentence, if cases are missing and must not be, do not belong together, or have no voxel.
    """
    cases: list[MeasuredCase] = []
    missing: dict[int, list[str]] = {}
    named = [(result, name) for result in found for name in result.cases]
    for result, name in tqdm(named, desc="reading cases"):
        statistics = _load(result, name)
        if statistics is None:
            missing.setdefault(result.fold, []).append(name)
            continue
        width = (cases[0] if cases else statistics).boundary_mm
        expected = (len(result.heads.keys), result.heads.regions is not None, width)
        if (ours := (statistics.num_heads, statistics.regions, statistics.boundary_mm)) != expected:
            raise ValueError(
                f"expected statistics with (heads, regions, boundary_mm) = {expected}, found {ours} for {name} in fold "
                f"{result.fold}: measure its fold again with nnunet_calib validate"
            )
        cases.append(
            MeasuredCase(
                name, result.fold, result.folder, result.model["weights_sha256"], statistics.boundary_mm,
                int(statistics.histograms.voxels.sum()), len(statistics.sample), measure(statistics, result.heads),
            )
        )
    if missing and not allow_missing:
        listed = "; ".join(f"fold {fold}: {some(names)}" for fold, names in missing.items())
        raise ValueError(
            f"expected statistics of every validation case with its fold's network, found none for {listed}: measure "
            f"them with nnunet_calib validate, or leave these cases out with --chill"
        )
    for result in found:
        if not any(case.kept for case in cases if case.fold == result.fold):
            raise ValueError(
                f"expected cases with a voxel that counts in each fold, found none in fold {result.fold}: leave it out "
                f"with -f"
            )
    return cases, [name for names in missing.values() for name in names]


def _load(result: FoldResult, case: str) -> CaseStatistics | None:
    """None for a case without a file, or with that of other weights: a validation that runs, or was killed."""
    try:
        statistics = load_case(result.folder, case)
    except FileNotFoundError:
        return None
    return statistics if statistics.model.get("weights_sha256") == result.model["weights_sha256"] else None


def fit_folds(cases: Sequence[MeasuredCase], sets: Mapping[Key, Container[int]]) -> dict[Key, TemperatureFit]:
    """The temperatures of sets of folds."""
    members = {key: {number for number, case in enumerate(cases) if case.fold in sets[key]} for key in sets}
    return fit_jointly(_samples(cases), members)


def fits_without_fold(cases: Sequence[MeasuredCase]) -> dict[int, TemperatureFit]:
    """For each fold the temperature of all cases of the other folds, by which its own cases may be judged."""
    folds = {case.fold for case in cases}
    return fit_folds(cases, {fold: folds - {fold} for fold in sorted(folds)})


def cross_fitted(cases: Sequence[MeasuredCase]) -> list[float]:
    """As `folds.cross_fitted_temperatures`: for each case of one fold a temperature that was fitted without it."""
    return fitted_without([case.kept for case in cases], _samples(cases))


def _samples(cases: Sequence[MeasuredCase]) -> Callable[[], Iterator[VoxelSample]]:
    """What reads the voxel samples of all cases, with a progress bar, each time that it is called."""
    return lambda: (case.read().sample for case in tqdm(cases, desc="fitting temperatures"))


def errors_after(
    cases: Sequence[MeasuredCase], temperatures: Sequence[float], heads: Heads, sampled: SampledErrors | None = None
) -> list[Tree]:
    """The errors of each case with its temperature; NaN where it has none.

    With `sampled`, their sampling errors are added up there.
    """
    errors = []
    for case, t in tqdm(zip(cases, temperatures, strict=True), desc="after temperature", total=len(cases)):
        if np.isnan(t):
            errors.append(combine(lambda _: float("nan"), case.uncalibrated))
            continue
        scaled = case.read().with_temperature(t)
        errors.append(measure(scaled, heads))
        if sampled is not None:
            sampled.add(scaled, case.voxels, t, errors[-1])
    return errors

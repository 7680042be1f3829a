"""Measured cases, the calibrators fitted to them, and the errors before and after calibration.

Only the errors of all cases, and as many whole cases as fit into 256 MiB, stay in memory. The other cases are read
again for each pass over their voxels, one at a time; a small fold is read only once.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from nnunet_calib.measuring.case_statistics import CaseStatistics
from nnunet_calib.measuring.scopes import SCOPES, scope_members, scope_notes
from nnunet_calib.measuring.voxel_sample import VoxelSample
from nnunet_calib.metrics.pooled_errors import CaseSums, PooledCases
from nnunet_calib.posthoc import fit
from nnunet_calib.posthoc.calibrator import Calibrator, Fit, Key
from nnunet_calib.posthoc.temperature import Temperature
from nnunet_calib.results.error_tree import brief, combine, described, mean_of_known, measure
from nnunet_calib.results.heads import Heads
from nnunet_calib.results.layout import case_file
from nnunet_calib.results.schemas import CALIBRATED, UNCALIBRATED, Tree
from nnunet_calib.results.uncertainty import SampledErrors, means_with_intervals, pooled_with_intervals

CROSS_FITS = 5
_HELD_BYTES = 1 << 28
_SECONDS_WITHOUT_BAR = 2


@dataclass(frozen=True)
class MeasuredCase:
    """The part of a measured case that stays in memory.

    Attributes:
        name: name of the case.
        fold: fold of the network that predicted the case, a number or "all"; None for predictions of unknown origin.
        folder: the calibration folder.
        weights_sha256: hash of that network's weights.
        boundary_mm: half width of the boundary scope.
        voxels: number of voxels.
        in_scopes: number of voxels in each scope.
        kept: number of voxels in the voxel sample.
        uncalibrated: errors before calibration, from `measure`.
        sums: sums for the pooled errors.
        held: the statistics, if they stay in memory.
    """

    name: str
    fold: Any
    folder: Path
    weights_sha256: str | None
    boundary_mm: float
    voxels: int
    in_scopes: Mapping[str, int]
    kept: int
    uncalibrated: Tree
    sums: CaseSums
    held: CaseStatistics | None = field(default=None, repr=False)

    def read(self) -> CaseStatistics:
        """Return the statistics, read again unless they are in memory.

        Raises:
            ValueError: if the file has been replaced since.
        """
        if self.held is not None:
            return self.held
        statistics = load_case(self.folder, self.name)
        found = statistics.model.get("weights_sha256"), int(statistics.histograms.voxels.sum()), len(statistics.sample)
        if found != (self.weights_sha256, self.voxels, self.kept):
            raise ValueError(
                f"expected {self.name} of fold {self.fold} to stay as it was, found other statistics in {self.folder}: "
                f"wait until its validation is done and run the same command again"
            )
        return statistics


class Keeper:
    """Factory of `MeasuredCase`s that holds the statistics of the first ones in memory."""

    def __init__(self, heads: Heads) -> None:
        self._heads, self._room = heads, _HELD_BYTES

    def keep(self, statistics: CaseStatistics, folder: Path, fold: int | str | None) -> MeasuredCase:
        """Return the `MeasuredCase` of a case in the calibration folder of a fold."""
        parts = (statistics.histograms, statistics.sample)
        self._room -= sum(getattr(part, entry.name).nbytes for part in parts for entry in fields(part))
        return MeasuredCase(
            statistics.cases[0],
            fold,
            folder,
            statistics.model.get("weights_sha256"),
            statistics.boundary_mm,
            int((voxels := statistics.histograms.voxels).sum()),
            {scope: int(voxels[scope_members(scope)].sum()) for scope in SCOPES},
            len(statistics.sample),
            measure(statistics, self._heads),
            CaseSums.of(statistics),
            replace(statistics, shown=None) if self._room >= 0 else None,
        )


def read_cases(
    calibration_folder: Path, cases: Sequence[str], heads: Heads, model: dict[str, Any], boundary_mm: float
) -> tuple[list[MeasuredCase], list[str]]:
    """Read the cases measured with this model and width, in order, and return them with the names of all others."""
    found, missing, keeper = [], [], Keeper(heads)
    for case in sorted(cases):
        path = case_file(calibration_folder, case)
        statistics = load_case(calibration_folder, case) if path.is_file() else None
        if statistics is not None and is_of(statistics, model, boundary_mm):
            found.append(keeper.keep(statistics, calibration_folder, model["fold"]))
        else:
            missing.append(case)
    return found, missing


def fit_sets(
    cases: Sequence[MeasuredCase], sets: Mapping[Key, Container[int]], kind: str = Temperature.kind
) -> Mapping[Key, Fit]:
    """Fit a calibrator to each set of case indices, all in the same passes."""
    folds = {fold: number for number, fold in enumerate(dict.fromkeys(case.fold for case in cases))}
    return fit(kind, _samples(cases), sets, [folds[case.fold] for case in cases])


def cross_fitted(cases: Sequence[MeasuredCase], kind: str = Temperature.kind) -> tuple[Fit, list[Calibrator | None]]:
    """Fit one calibrator of a kind to all cases, and for each case one without it.

    The cases are dealt into five groups (fewer if there are fewer cases); each case gets the calibrator fitted to the
    other groups. A case without a voxel that counts gets None, and so does a single case, which leaves nothing to fit.
    The standard error takes only cases as independent.

    Raises:
        ValueError: if no case has a voxel that counts.
    """
    groups = cross_fitting_groups([case.kept for case in cases])
    sets: dict[int | None, Container[int]] = {None: range(len(cases))}
    for group in sorted({group for group in groups if group is not None}):
        sets[group] = {number for number, other in enumerate(groups) if other not in (None, group)}
    fits = fit_sets(cases, sets, kind)
    return fits[None], [None if group is None else fits[group].calibrator for group in groups]


def cross_fitting_groups(kept: Sequence[int]) -> list[int | None]:
    """Return the group of each case in `cross_fitted`, given the number of voxels kept of each; None without voxels."""
    groups: list[int | None] = [None] * len(kept)
    measured = [i for i, voxels in enumerate(kept) if voxels]
    if len(measured) > 1:
        for k, i in enumerate(measured):
            groups[i] = k % CROSS_FITS
    return groups


def read_each(cases: Sequence[MeasuredCase], doing: str) -> Iterator[tuple[MeasuredCase, CaseStatistics]]:
    """Yield each case with its statistics, with a progress bar once it takes a while."""
    for case in tqdm(cases, desc=doing, delay=_SECONDS_WITHOUT_BAR):
        yield case, case.read()


def _samples(cases: Sequence[MeasuredCase]) -> Callable[[], Iterator[VoxelSample]]:
    """Return a function that reads the voxel samples of all cases, with a progress bar, each time it is called."""
    return lambda: (statistics.sample for _, statistics in read_each(cases, "fitting temperatures"))


def errors_after(
    cases: Sequence[MeasuredCase],
    calibrators: Sequence[Calibrator | None],
    heads: Heads,
    sampled: SampledErrors | None = None,
) -> tuple[list[Tree], list[CaseSums]]:
    """Return the errors of each case with its calibrator (NaN without one), and the sums for pooled errors.

    If `sampled` is given, add the cases to it for the sampling errors.
    """
    errors: list[Tree] = []
    sums: list[CaseSums] = []
    pairs = zip(cases, calibrators, strict=True)
    for case, calibrator in tqdm(pairs, desc="after temperature", total=len(cases), delay=_SECONDS_WITHOUT_BAR):
        if calibrator is None:
            errors.append(combine(lambda _: float("nan"), case.uncalibrated))
            sums.append(case.sums.without_voxels())
            continue
        after = case.read().with_temperature(calibrator)
        errors.append(measure(after, heads))
        sums.append(CaseSums.of(after))
        if sampled is not None:
            sampled.add(after, case.voxels, calibrator, errors[-1])
    return errors, sums


def mean_dice(cases: Sequence[MeasuredCase], calibrators: Sequence[Calibrator], heads: Heads) -> dict[str, float]:
    """Return the mean of `estimated_dice` over the cases, each with its calibrator."""
    return mean_of_pairs(estimated_dice(case, one, heads) for case, one in zip(cases, calibrators, strict=True))


def mean_of_pairs(pairs: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the means of the Dice before and of that after calibration; NaN does not count."""
    found = [*pairs]
    return {stage: mean_of_known(pair[stage] for pair in found) for stage in ("before", "after")}


def estimated_dice(case: MeasuredCase, calibrator: Calibrator, heads: Heads) -> dict[str, float]:
    """Return the Dice of a case before and after calibration, estimated from its voxel sample.

    It is the mean over the foreground classes that have a value; NaN if none has.
    """
    sample = case.read().sample
    z = torch.from_numpy(sample.logits.T.astype(np.float32))
    after = calibrator.logits(z, regions=heads.regions is not None)
    weights = sample.weights.astype(np.float64)
    found = []
    for logits in (z.numpy(), after.numpy()):
        if heads.regions is not None:
            predicted, true = logits > 0, sample.labels.T
        else:
            classes = np.arange(1, len(logits))[:, None]
            predicted, true = logits.argmax(0) == classes, sample.labels == classes
        overlap, size = (predicted & true) @ weights, predicted @ weights + true @ weights
        found.append(mean_of_known(np.divide(2 * overlap, size, out=np.full(len(size), np.nan), where=size > 0)))
    return {"before": found[0], "after": found[1]}


def results(
    cases: Sequence[MeasuredCase],
    calibrators: Sequence[Calibrator | None],
    heads: Heads,
    instead: Calibrator | None = None,
) -> dict[str, Any]:
    """Return means over all cases with their intervals and sampling errors, and the rows of the cases.

    Args:
        cases: all cases.
        calibrators: the calibrator that each case is judged with, or None.
        heads: heads of the network.
        instead: the calibrator for cases that have none of their own.
    """
    used = [calibrator or instead for calibrator in calibrators]
    before, sampled = [case.uncalibrated for case in cases], SampledErrors(heads)
    after, sums_after = errors_after(cases, used, heads, sampled)
    pooled = {UNCALIBRATED: [case.sums for case in cases], CALIBRATED: sums_after}
    width = cases[0].boundary_mm
    return {
        **means_with_intervals(before, after, heads, width),
        **pooled_with_intervals({stage: PooledCases(sums) for stage, sums in pooled.items()}, heads, width),
        "sampling_error": described(sampled.spread(), width),
        "voxels": (in_scopes := {scope: sum(case.in_scopes[scope] for case in cases) for scope in SCOPES}),
        "notes": scope_notes(in_scopes, width),
        "metric_per_case": [
            {
                "case": case.name,
                "voxels": case.voxels,
                "kept_voxels": case.kept,
                **as_json(calibrator),
                UNCALIBRATED: brief(b),
                CALIBRATED: brief(a),
            }
            for case, calibrator, b, a in zip(cases, calibrators, before, after, strict=True)
        ],
    }


def as_json(calibrator: Calibrator | None) -> dict[str, Any]:
    """Return the values of a case's calibrator; without one, a temperature of NaN."""
    return {"temperature": float("nan")} if calibrator is None else calibrator.to_json()


def is_calibrated(row: Mapping[str, Any]) -> bool:
    """Return whether a row written with `as_json` has a calibrator of its own."""
    return "kind" in row or row.get("temperature") is not None


def load_case(calibration_folder: Path, case: str) -> CaseStatistics:
    """Load the statistics of a case.

    Raises:
        ValueError: if the file is damaged or belongs to another case.
        FileNotFoundError: if there is no file.
    """
    path = case_file(calibration_folder, case)
    statistics = CaseStatistics.load(path)
    if statistics.cases != (case,):
        raise ValueError(
            f"expected the statistics of case {case}, found those of {', '.join(statistics.cases)!r:.99} in {path}: "
            f"measure the case again with nnunet_calib validate"
        )
    return statistics


def is_measured(calibration_folder: Path, case: str, model: dict[str, Any], boundary_mm: float) -> bool:
    """Return whether a readable file has statistics of the case from this model and boundary width."""
    try:
        return is_of(load_case(calibration_folder, case), model, boundary_mm)
    except (FileNotFoundError, ValueError):  # ValueError: damaged or in another format
        return False


def is_of(statistics: CaseStatistics, model: dict[str, Any], boundary_mm: float) -> bool:
    """Return whether statistics come from this network and boundary width."""
    return is_of_network(statistics, model) and statistics.boundary_mm == boundary_mm


def is_of_network(statistics: CaseStatistics, model: dict[str, Any]) -> bool:
    """Return whether statistics come from a network with these weights and plans; older files do not name the plans."""
    found = statistics.model
    if found.get("weights_sha256") != model["weights_sha256"]:
        return False
    return same_plans(found, model) is not False


def same_plans(one: dict[str, Any], other: dict[str, Any]) -> bool | None:
    """Return whether two models have the same plans and labels, whatever their names; None if the files do not say."""
    for name in ("plans_content_sha256", "plans_sha256"):  # older files have only the second, which also covers names
        a, b = one.get(name), other.get(name)
        if None not in (a, b):
            return bool(a == b)
    return None

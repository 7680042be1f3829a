"""Measured cases of which only the errors stay in memory: calibrators fitted to them, and how they judge a model.

Cases are read again for each pass over their voxels, so that the memory is that of one case, of the errors of all, and
of as many cases as fit into 256 MiB: a small fold is read once.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nnunet_calib.measuring.case_statistics import CaseStatistics
from nnunet_calib.measuring.scopes import SCOPES, scope_members, scope_notes
from nnunet_calib.measuring.voxel_sample import VoxelSample
from nnunet_calib.metrics.pooled_errors import CaseSums, PooledCases
from nnunet_calib.posthoc import fit
from nnunet_calib.posthoc.calibrator import Calibrator, Fit, Key
from nnunet_calib.posthoc.temperature import Temperature
from nnunet_calib.results.error_tree import brief, combine, described, measure
from nnunet_calib.results.heads import Heads
from nnunet_calib.results.layout import case_file
from nnunet_calib.results.schemas import CALIBRATED, UNCALIBRATED, Tree
from nnunet_calib.results.uncertainty import SampledErrors, means_with_intervals, pooled_with_intervals

CROSS_FITS = 5
_HELD_BYTES = 1 << 28
_SECONDS_WITHOUT_BAR = 2


@dataclass(frozen=True)
class MeasuredCase:
    """What is kept in memory of a case.

    Attributes:
        name: of the case.
        fold: whose network predicted it, a number or "all"; None for predictions of unknown origin.
        folder: the calibration folder.
        weights_sha256: of that network.
        boundary_mm: half width of the boundary scope.
        voxels: of the case.
        in_scopes: its voxels in each scope.
        kept: voxels of its sample.
        uncalibrated: its errors, from `measure`.
        sums: for its pooled errors.
        held: its statistics, if they stay in memory.
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
        """Its statistics once more.

        Raises:
            ValueError: if the file is another one by now.
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
    """Makes `MeasuredCase`s of the statistics of cases, and holds the first ones in memory."""

    def __init__(self, heads: Heads) -> None:
        self._heads, self._room = heads, _HELD_BYTES

    def keep(self, statistics: CaseStatistics, folder: Path, fold: int | str | None) -> MeasuredCase:
        """What is kept of a case in the calibration folder of a fold."""
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


def fit_sets(
    cases: Sequence[MeasuredCase], sets: Mapping[Key, Container[int]], kind: str = Temperature.kind
) -> Mapping[Key, Fit]:
    """Fit a calibrator to each set of cases, which are named by their numbers, in the same passes."""
    folds = {fold: number for number, fold in enumerate(dict.fromkeys(case.fold for case in cases))}
    return fit(kind, _samples(cases), sets, [folds[case.fold] for case in cases])


def cross_fitted(cases: Sequence[MeasuredCase]) -> tuple[Fit, list[Calibrator | None]]:
    """Fit one calibrator to all cases, and for each case one without it.

    The cases are dealt into five groups (fewer if there are fewer cases); a case gets the calibrator of the other
    groups. A case without a voxel that counts gets None, and so does a single one, which leaves nothing to fit on. The
    standard error takes only cases as independent.

    Raises:
        ValueError: if no case has a voxel that counts.
    """
    groups = cross_fitting_groups([case.kept for case in cases])
    sets: dict[int | None, Container[int]] = {None: range(len(cases))}
    for group in sorted({group for group in groups if group is not None}):
        sets[group] = {number for number, other in enumerate(groups) if other not in (None, group)}
    fits = fit_sets(cases, sets)
    return fits[None], [None if group is None else fits[group].calibrator for group in groups]


def cross_fitting_groups(kept: Sequence[int]) -> list[int | None]:
    """Which of the groups of `cross_fitted` each case is in, from the numbers of voxels kept of them."""
    groups: list[int | None] = [None] * len(kept)
    measured = [i for i, voxels in enumerate(kept) if voxels]
    if len(measured) > 1:
        for k, i in enumerate(measured):
            groups[i] = k % CROSS_FITS
    return groups


def _samples(cases: Sequence[MeasuredCase]) -> Callable[[], Iterator[VoxelSample]]:
    """What reads the voxel samples of all cases, with a progress bar, each time that it is called."""
    return lambda: (case.read().sample for case in tqdm(cases, desc="fitting temperatures", delay=_SECONDS_WITHOUT_BAR))


def errors_after(
    cases: Sequence[MeasuredCase],
    calibrators: Sequence[Calibrator | None],
    heads: Heads,
    sampled: SampledErrors | None = None,
) -> tuple[list[Tree], list[CaseSums]]:
    """Return the errors of each case with its calibrator, NaN without one, and the sums for pooled errors.

    With `sampled`, their sampling errors are added up there.
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


def results(
    cases: Sequence[MeasuredCase],
    calibrators: Sequence[Calibrator | None],
    heads: Heads,
    instead: Calibrator | None = None,
) -> dict[str, Any]:
    """Return means over all cases with their intervals and sampling errors, and the rows of the cases.

    Args:
        cases: all of them.
        calibrators: by which each is judged, None where it has none.
        heads: of the network.
        instead: the calibrator for those that have none.
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
    """Return the values of a case's calibrator, or NaN in the place of a temperature."""
    return {"temperature": float("nan")} if calibrator is None else calibrator.to_json()


def is_calibrated(row: Mapping[str, Any]) -> bool:
    """Return whether a row has a calibrator of its own, as `as_json` has written it."""
    return "kind" in row or row.get("temperature") is not None


def load_case(calibration_folder: Path, case: str) -> CaseStatistics:
    """The statistics of a case.

    Raises:
        ValueError: if its file is damaged, or is that of another case.
        FileNotFoundError: if there is none.
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
    """Whether there are statistics of a case that were measured so with this model, in a file that can be read."""
    try:
        return is_of(load_case(calibration_folder, case), model, boundary_mm)
    except (FileNotFoundError, ValueError):  # ValueError: damaged, or of another format
        return False


def is_of(statistics: CaseStatistics, model: dict[str, Any], boundary_mm: float) -> bool:
    """Whether the network and the boundary scope are the same."""
    return is_of_network(statistics, model) and statistics.boundary_mm == boundary_mm


def is_of_network(statistics: CaseStatistics, model: dict[str, Any]) -> bool:
    """Whether the weights are the same, and the plans, which older files do not name."""
    found = statistics.model
    if found.get("weights_sha256") != model["weights_sha256"]:
        return False
    return same_plans(found, model) is not False


def same_plans(one: dict[str, Any], other: dict[str, Any]) -> bool | None:
    """Return whether two models have the same plans and labels, whatever their names; None if files do not say so."""
    for name in ("plans_content_sha256", "plans_sha256"):  # the second is of names too: all that older files have
        a, b = one.get(name), other.get(name)
        if None not in (a, b):
            return bool(a == b)
    return None

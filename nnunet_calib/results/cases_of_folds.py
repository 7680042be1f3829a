"""The cases of measured folds, checked to belong together, and the temperatures of sets of folds."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from tqdm import tqdm

from nnunet_calib.results.case_files import is_of_network, load_case
from nnunet_calib.results.measured_folds import FoldResult, some
from nnunet_calib.results.judged_cases import Keeper, MeasuredCase, fit_sets
from nnunet_calib.posthoc.many_fits import Key
from nnunet_calib.measuring.case_statistics import CaseStatistics
from nnunet_calib.posthoc.temperature import TemperatureFit


def read_measured(found: Sequence[FoldResult], *, allow_missing: bool) -> tuple[list[MeasuredCase], list[str]]:
    """The cases of all folds, in the order of folds and names, and the names of those without statistics.

    Raises:
        ValueError: in one sentence, if cases are missing and must not be, do not belong together, or have no voxel.
    """
    cases: list[MeasuredCase] = []
    keeper = Keeper(found[0].heads)
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
                f"{result.fold}: measure its fold again with nnunet_calib validate, all with the same --boundary-mm"
            )
        cases.append(keeper.keep(statistics, result.folder, result.fold))
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
    """None for a case without a file, or with that of other weights or plans: a validation that runs, or was killed."""
    try:
        statistics = load_case(result.folder, case)
    except FileNotFoundError:
        return None
    return statistics if is_of_network(statistics, result.model) else None


def fit_folds(cases: Sequence[MeasuredCase], sets: Mapping[Key, Container[int]]) -> dict[Key, TemperatureFit]:
    """The temperatures of sets of folds."""
    members = {key: {number for number, case in enumerate(cases) if case.fold in sets[key]} for key in sets}
    return fit_sets(cases, members)


def fits_without_fold(cases: Sequence[MeasuredCase]) -> dict[int, TemperatureFit]:
    """For each fold the temperature of all cases of the other folds, by which its own cases may be judged."""
    folds = {case.fold for case in cases}
    return fit_folds(cases, {fold: folds - {fold} for fold in sorted(folds)})

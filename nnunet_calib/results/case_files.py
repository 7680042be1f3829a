"""The files with the statistics of single cases in a calibration folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nnunet_calib.results.layout import case_file
from nnunet_calib.measuring.case_statistics import CaseStatistics


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

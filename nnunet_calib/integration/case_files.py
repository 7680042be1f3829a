"""The files with the statistics of single cases in a calibration folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nnunet_calib.integration.model_folder import case_file
from nnunet_calib.statistics import CaseStatistics


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
    same_plans = found.get("plans_sha256", model.get("plans_sha256")) == model.get("plans_sha256")
    return found.get("weights_sha256") == model["weights_sha256"] and same_plans

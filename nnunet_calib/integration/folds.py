"""The calibration files of a fold: what is written from the statistics of its cases."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import nnunet_calib
from nnunet_calib.files import write_json
from nnunet_calib.integration.intervals import means_with_intervals
from nnunet_calib.integration.labels import Heads
from nnunet_calib.integration.sampled_errors import sampling_error
from nnunet_calib.integration.summary import brief, definitions, described, measure
from nnunet_calib.joint_fit import fit_jointly
from nnunet_calib.statistics import CaseStatistics
from nnunet_calib.temperature import TemperatureFit, fit_temperature
from nnunet_calib.threads import one_thread
from nnunet_calib.voxel_sample import VoxelSample

FORMAT_VERSION = 1
CALIBRATION_FOLDER = "calibration"
_CROSS_FITS = 5


def calibration_folder(model_folder: Path, fold: int | str) -> Path:
    """Where the calibration files of a fold are."""
    return model_folder / f"fold_{fold}" / "validation" / CALIBRATION_FOLDER


def case_file(calibration_folder: Path, case: str) -> Path:
    """Where the statistics of a case are kept."""
    return calibration_folder / "cases" / f"{case}.npz"


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


def read_cases(
    calibration_folder: Path, cases: Sequence[str], model: dict[str, Any]
) -> tuple[list[CaseStatistics], list[str]]:
    """Statistics of the cases measured with this model, and the names of the others (no file, or other weights)."""
    found, missing = [], []
    for case in sorted(cases):
        path = case_file(calibration_folder, case)
        statistics = load_case(calibration_folder, case) if path.is_file() else None
        if statistics is not None and _is_of(statistics, model):
            found.append(statistics)
        else:
            missing.append(case)
    return found, missing


def is_measured(calibration_folder: Path, case: str, model: dict[str, Any]) -> bool:
    """Whether there are statistics of a case that were measured with this model, in a file that can be read."""
    try:
        return _is_of(load_case(calibration_folder, case), model)
    except (FileNotFoundError, ValueError):  # ValueError: damaged, or of another format
        return False


def _is_of(statistics: CaseStatistics, model: dict[str, Any]) -> bool:
    """Whether the weights are the same, and the plans, which older files do not name."""
    found = statistics.model
    same_plans = found.get("plans_sha256", model.get("plans_sha256")) == model.get("plans_sha256")
    return found.get("weights_sha256") == model["weights_sha256"] and same_plans


@one_thread()
def fit_cases(cases: Sequence[CaseStatistics]) -> TemperatureFit:
    """One temperature for the voxel samples of cases; the standard error takes only cases as independent."""
    sample = VoxelSample.merge([case.sample for case in cases])
    groups = np.repeat(np.arange(len(cases)), [len(case.sample) for case in cases])
    return fit_temperature(
        sample.logits, sample.labels, weights=sample.weights, regions=cases[0].regions, groups=groups
    )


def cross_fitted_temperatures(cases: Sequence[CaseStatistics]) -> list[float]:
    """For each case a temperature that was fitted without it.

    The cases are dealt into five groups (fewer if there are fewer cases); a case gets the temperature of the other
    groups. A case without a voxel that counts gets NaN, and so does a single one, which leaves nothing to fit on.
    """
    return fitted_without([len(case.sample) for case in cases], lambda: (case.sample for case in cases))


def fitted_without(kept: Sequence[int], samples: Callable[[], Iterable[VoxelSample]]) -> list[float]:
    """The same from the numbers of voxels kept of the cases, and what gives their samples at each call."""
    groups = cross_fitting_groups(kept)
    sets = {
        group: {number for number, other in enumerate(groups) if other not in (None, group)}
        for group in sorted({group for group in groups if group is not None})
    }
    fits = fit_jointly(samples, sets) if sets else {}
    return [float("nan") if group is None else fits[group].temperature for group in groups]


def cross_fitting_groups(kept: Sequence[int]) -> list[int | None]:
    """Which of the groups of `cross_fitted_temperatures` each case is in, from the numbers of voxels kept of them."""
    groups: list[int | None] = [None] * len(kept)
    measured = [i for i, voxels in enumerate(kept) if voxels]
    if len(measured) > 1:
        for k, i in enumerate(measured):
            groups[i] = k % min(_CROSS_FITS, len(measured))
    return groups


def fitted_temperature(cases: Sequence[CaseStatistics], model: dict[str, Any]) -> dict[str, Any]:
    """The content of temperature.json: one temperature for all cases, and what it was fitted on.

    Raises:
        ValueError: if no case has a voxel that counts.
    """
    if not any(len(case.sample) for case in cases):
        raise ValueError(f"expected cases to fit a temperature on, found no voxel that counts in {len(cases)} cases")
    fit = fit_cases(cases)
    return {
        "format_version": FORMAT_VERSION,
        "temperature": fit.temperature,
        "standard_error": fit.standard_error,
        "nll_before": fit.nll_before,
        "nll_after": fit.nll_after,
        "at_bound": fit.at_bound,
        # fold "all" validates on its training cases; of predictions of unknown origin, nothing is known
        "in_sample": None if model["fold"] is None else model["fold"] == "all",
        "folds": None if model["fold"] is None else [model["fold"]],
        "cases": [case.cases[0] for case in cases],
        "model": model,
        "nnunet_calib": nnunet_calib.__version__,
    }


def write_fold(
    calibration_folder: Path, cases: Sequence[str], heads: Heads, model: dict[str, Any]
) -> dict[str, Any]:
    """Merge the case files of a fold into temperature.json and summary.json.

    Args:
        calibration_folder: the fold's `validation/calibration`.
        cases: the validation cases.
        heads: of the network.
        model: what identifies the model; case files of other weights are not used.

    Returns:
        The content of summary.json, with NaN where the file has null.

    Raises:
        ValueError: if no case was measured.
    """
    statistics, missing = read_cases(calibration_folder, cases, model)
    if not any(len(s.sample) for s in statistics):
        raise ValueError(f"expected statistics of {len(cases)} cases in {calibration_folder}, found none with a voxel")
    temperature = fitted_temperature(statistics, model)
    summary = summarise(statistics, missing, heads, model, temperature, cross_fitted_temperatures(statistics))
    write_json(temperature, calibration_folder / "temperature.json")
    write_json(summary, calibration_folder / "summary.json")
    return summary


def summarise(
    statistics: Sequence[CaseStatistics],
    missing: Sequence[str],
    heads: Heads,
    model: dict[str, Any],
    temperature: dict[str, Any],
    without: Sequence[float] | None,
) -> dict[str, Any]:
    """The content of summary.json, with NaN where the file has null.

    Args:
        statistics: of the cases.
        missing: names of the cases that were not measured.
        heads: of the network.
        model: what identifies the model.
        temperature: the content of temperature.json.
        without: for each case a temperature that was fitted without it, NaN where there is none and `temperature` is
            used; None if `temperature` itself was given, and is used for all of them.
    """
    width = statistics[0].boundary_mm
    given = temperature["temperature"]
    each = [given] * len(statistics) if without is None else without
    used = [given if np.isnan(t) else t for t in each]
    before = [measure(s, heads) for s in statistics]
    after = [measure(s.with_temperature(t), heads) for s, t in zip(statistics, used, strict=True)]
    return {
        "format_version": FORMAT_VERSION,
        "nnunet_calib": nnunet_calib.__version__,
        "model": model,
        "heads": asdict(heads),
        "definitions": definitions(width, None if without is None else _CROSS_FITS),
        "temperature": {k: v for k, v in temperature.items() if k not in ("model", "cases", "format_version")}
        | {"cross_fitted": without is not None},
        "missing_cases": [*missing],
        **means_with_intervals(before, after, heads, width),
        "sampling_error": described(sampling_error(statistics, used, after, heads), width),
        "metric_per_case": [
            {
                "case": s.cases[0], "voxels": int(s.histograms.voxels.sum()), "kept_voxels": len(s.sample),
                "temperature": t, "uncalibrated": brief(b), "calibrated": brief(a),
            }
            for s, t, b, a in zip(statistics, each, before, after, strict=True)
        ],
    }

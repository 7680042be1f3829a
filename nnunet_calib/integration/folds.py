"""The calibration files of a fold: what is written from the statistics of its cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

import nnunet_calib
from nnunet_calib.files import write_json
from nnunet_calib.integration.labels import Heads
from nnunet_calib.metrics import DEFINITIONS, NUM_BINS, calibration_errors
from nnunet_calib.scopes import SCOPES
from nnunet_calib.statistics import CaseStatistics
from nnunet_calib.temperature import TemperatureFit, fit_temperature
from nnunet_calib.voxel_sample import VoxelSample

FORMAT_VERSION = 1
CALIBRATION_FOLDER = "calibration"
_CROSS_FITS = 5
_BINNED = ("ece", "ace", "mce")
_SCORES = ("nll", "brier")


def case_file(calibration_folder: Path, case: str) -> Path:
    """Where the statistics of a case are kept."""
    return calibration_folder / "cases" / f"{case}.npz"


def read_cases(
    calibration_folder: Path, cases: Sequence[str], model: dict[str, Any]
) -> tuple[list[CaseStatistics], list[str]]:
    """Statistics of the cases measured with this model, and the names of the others (no file, or other weights)."""
    found, missing = [], []
    for case in sorted(cases):
        path = case_file(calibration_folder, case)
        statistics = CaseStatistics.load(path) if path.is_file() else None
        if statistics is not None and statistics.model.get("weights_sha256") == model["weights_sha256"]:
            found.append(statistics)
        else:
            missing.append(case)
    return found, missing


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
    temperatures = [float("nan")] * len(cases)
    measured = [i for i, case in enumerate(cases) if len(case.sample)]
    if len(measured) < 2:
        return temperatures
    groups = min(_CROSS_FITS, len(measured))
    for group in range(groups):
        fit = fit_cases([cases[i] for k, i in enumerate(measured) if k % groups != group])
        for i in measured[group::groups]:
            temperatures[i] = fit.temperature
    return temperatures


def _measure(statistics: CaseStatistics, heads: Heads) -> dict[str, Any]:
    """The errors of one case: scope -> per_class, top_label and scores."""
    result = {}
    for scope in SCOPES:
        errors = calibration_errors(statistics, NUM_BINS, scope)
        result[scope] = {
            "per_class": {
                key: {name: float(errors[name][i]) for name in _BINNED} for i, key in enumerate(heads.keys)
            },
            "top_label": {name: float(errors[f"top_label_{name}"]) for name in _BINNED},
            **{name: float(errors[name]) for name in _SCORES},
        }
    return result


def _nanmean(values: Sequence[float]) -> float:
    finite = [v for v in values if not np.isnan(v)]
    return float(np.mean(finite)) if finite else float("nan")


def _average(per_case: Sequence[dict[str, Any]], heads: Heads) -> dict[str, Any]:
    """Means over the cases that have the class, then (mean, foreground_mean) over classes, as nnU-Net does."""
    result = {}
    for scope in SCOPES:
        measured = [case[scope] for case in per_case]
        per_class = {}
        for key in heads.keys:
            columns = {name: [m["per_class"][key][name] for m in measured] for name in _BINNED}
            per_class[key] = {name: _nanmean(column) for name, column in columns.items()}
            per_class[key]["cases"] = int(np.sum(~np.isnan(columns[_BINNED[0]])))
        foreground = [key for i, key in enumerate(heads.keys) if i != heads.background]
        result[scope] = {
            "mean": {name: _nanmean([per_class[k][name] for k in heads.keys]) for name in _BINNED},
            "foreground_mean": {name: _nanmean([per_class[k][name] for k in foreground]) for name in _BINNED},
            "per_class": per_class,
            "top_label": {name: _nanmean([m["top_label"][name] for m in measured]) for name in _BINNED},
            **{name: _nanmean([m[name] for m in measured]) for name in _SCORES},
        }
    return result


def _definitions(cases: Sequence[CaseStatistics]) -> dict[str, Any]:
    return DEFINITIONS | {
        "bins": NUM_BINS,
        "averaging": "per case, then the mean over the cases (for a class: those that contain it)",
        "scopes": {
            "image": "all voxels of the exported image that are not ignored",
            "foreground": "voxels whose true label is not background",
            "boundary": f"voxels within {cases[0].boundary_mm} mm of a voxel at a true label border",
        },
        "calibrated": "each case with a temperature fitted on other cases of the fold only (cross-fitting in "
        f"{_CROSS_FITS} groups), on the kept voxels of the case",
        "temperature": "fitted on all cases of the fold by minimising the mean NLL over voxels",
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
    fit = fit_cases(statistics)
    without = cross_fitted_temperatures(statistics)
    before = [_measure(s, heads) for s in statistics]
    after = [
        _measure(s.with_temperature(fit.temperature if np.isnan(t) else t), heads)
        for s, t in zip(statistics, without, strict=True)
    ]
    temperature = {
        "format_version": FORMAT_VERSION,
        "temperature": fit.temperature,
        "standard_error": fit.standard_error,
        "nll_before": fit.nll_before,
        "nll_after": fit.nll_after,
        "at_bound": fit.at_bound,
        # fold "all" validates on its training cases
        "in_sample": model["fold"] == "all",
        "folds": [model["fold"]],
        "cases": [s.cases[0] for s in statistics],
        "model": model,
        "nnunet_calib": nnunet_calib.__version__,
    }
    summary = {
        "format_version": FORMAT_VERSION,
        "nnunet_calib": nnunet_calib.__version__,
        "model": model,
        "heads": asdict(heads),
        "definitions": _definitions(statistics),
        "temperature": {k: v for k, v in temperature.items() if k not in ("model", "cases", "format_version")},
        "missing_cases": missing,
        "metrics": {"uncalibrated": _average(before, heads), "calibrated": _average(after, heads)},
        "metric_per_case": [
            {
                "case": s.cases[0], "voxels": int(s.histograms.voxels.sum()), "kept_voxels": len(s.sample),
                "temperature": t, "uncalibrated": b, "calibrated": a,
            }
            for s, t, b, a in zip(statistics, without, before, after, strict=True)
        ],
    }
    write_json(temperature, calibration_folder / "temperature.json")
    write_json(summary, calibration_folder / "summary.json")
    return summary

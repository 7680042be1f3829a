"""Measuring the calibration of a folder of predictions, or fitting a calibrator to it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunet_calib.decisions.froc import lesion_summary, write_lesions
from nnunet_calib.io.atomic_files import hidden_folder
from nnunet_calib.io.json_forms import read_json
from nnunet_calib.nnunet.predictions import Predictions
from nnunet_calib.nnunet.validation.found_lesions import found_lesions
from nnunet_calib.posthoc import from_json
from nnunet_calib.posthoc.temperature import Temperature
from nnunet_calib.results.fold_summary import Fitted, fit_calibrator, summarise, write_fits, write_results
from nnunet_calib.results.judged_cases import MeasuredCase, read_cases
from nnunet_calib.results.layout import case_file

_RATERS = "Measured against {} raters: each voxel counts once for each of them."
_FREQUENCIES = (
    "Measured against frequencies of labels, multiples of 1/{} in every case: each voxel counts once for each of so "
    "many raters."
)


def evaluate(
    predictions: Predictions,
    calibration_folder: Path,
    processes: int | None = None,
    given: dict[str, Any] | None = None,
    kind: str = Temperature.kind,
    *,
    lesions: bool = False,
) -> dict[str, Any]:
    """Measure the cases and write a calibration folder; nothing is written before the last case is measured.

    Args:
        predictions: predictions to measure.
        calibration_folder: folder for cases/, summary.json and, unless a calibrator is given, temperature.json and that
            of another kind in calibrators.json.
        processes: number of cases measured at once; None means nnU-Net's default.
        given: calibrator from `given_temperature`; None fits one, and each case is then judged by one that was fitted
            without it.
        kind: kind of the calibrator that is fitted, from `posthoc.KINDS`.
        lesions: whether lesions are judged too, which takes another pass over the cases, and written into lesions.json.

    Returns:
        The content of summary.json, with NaN where the file has null.

    Raises:
        ValueError: if a case cannot be measured, or no case has a voxel that counts.
        OSError: if the folder cannot be written, or memory runs out.
    """
    if lesions and (predictions.further_raters or predictions.frequency_folders):
        got = "frequencies" if predictions.frequency_folders else 1 + len(predictions.further_raters)
        raise ValueError(
            f"expected one folder of label maps with --lesions, got {got}: a lesion is found or missed for one rater, "
            f"so name one with -gt"
        )
    predictions = predictions.with_raters_counted(processes)
    with measured(predictions, calibration_folder, processes) as cases:
        fitted = None
        if given is None:
            fitted = fit_calibrator(cases, predictions.heads, predictions.model, kind=kind)
            used, without = fitted.content, fitted.without
        else:
            used, without = _judged_by_own_cases(given, predictions.cases), None
        summary = summarise(cases, predictions.missing, predictions.heads, predictions.model, used, without)
        if predictions.further_raters:
            summary["notes"].insert(0, _RATERS.format(1 + len(predictions.further_raters)))
        if predictions.frequency_folders:
            summary["notes"].insert(0, _FREQUENCIES.format(predictions.frequency_raters))
        rows = []
        if lesions:
            of_all = from_json(used)
            own = {case.name: one or of_all for case, one in zip(cases, without or [None] * len(cases), strict=True)}
            rows = found_lesions(predictions, own, processes)
            summary["lesions"] = lesion_summary(rows, predictions.heads.foreground)
        case_file(calibration_folder, "").parent.mkdir(parents=True, exist_ok=True)
        files = {case.name: case_file(case.folder, case.name) for case in cases}
        new = (None, None) if fitted is None else (fitted.temperature, fitted.calibrators)
        write_results(calibration_folder, summary, new[0], files, new[1])
        if lesions:
            write_lesions(calibration_folder, predictions.model, rows)
    return summary


def fit(
    predictions: Predictions, calibration_folder: Path, processes: int | None = None, kind: str = Temperature.kind
) -> Fitted:
    """Fit a calibrator to the cases, and write temperature.json and that of another kind in calibrators.json.

    Arguments and errors are those of `evaluate`.
    """
    predictions = predictions.with_raters_counted(processes)
    with measured(predictions, calibration_folder, processes) as cases:
        fitted = fit_calibrator(cases, predictions.heads, predictions.model, kind=kind)
    write_fits(calibration_folder, fitted)
    return fitted


@contextmanager
def measured(predictions: Predictions, calibration_folder: Path, processes: int | None) -> Iterator[list[MeasuredCase]]:
    """Measure the cases into a hidden folder, which is removed at the end; errors as for `evaluate`."""
    existing = check_output(calibration_folder)
    with hidden_folder(existing) as folder:
        case_file(folder, "").parent.mkdir()
        predictions.save_all(folder, processes)
        cases, _ = read_cases(folder, predictions.cases, predictions.heads, predictions.model, predictions.boundary_mm)
        yield cases


def _judged_by_own_cases(temperature: dict[str, Any], cases: Sequence[str]) -> dict[str, Any]:
    """Mark a temperature as in-sample if any evaluated case was used to fit it."""
    own = not set(cases).isdisjoint(temperature.get("cases", ()))
    return temperature | {"in_sample": True} if own else temperature


def check_output(calibration_folder: Path) -> Path:
    """Return the folder, or its nearest existing parent.

    Raises:
        OSError: if files cannot be written there, rather than after hours of measuring.
        ValueError: if they would replace those of a training.
    """
    existing = next(path for path in (calibration_folder, *calibration_folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise OSError(f"expected a folder that can be written, got {existing}: name another with -o")
    try:
        content = read_json(calibration_folder / "summary.json")
        of_training = content["model"]["weights_sha256"] is not None
    except FileNotFoundError:
        return existing
    except (OSError, ValueError, TypeError, KeyError):
        of_training = True  # not ours to replace
    if of_training:
        raise ValueError(
            f"expected a new folder, or that of an earlier run, found {calibration_folder / 'summary.json'} of a "
            f"training or of other software: name another folder with -o"
        )
    return existing

"""The calibration files of a fold, written from the statistics of its cases."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nnunet_calib
from nnunet_calib.io.atomic_files import forget, json_text, replaced_when_complete
from nnunet_calib.io.names import check_cases
from nnunet_calib.measuring.scopes import BOUNDARY_MM
from nnunet_calib.posthoc import from_json
from nnunet_calib.posthoc.calibrator import Calibrator
from nnunet_calib.results.error_tree import definitions
from nnunet_calib.results.heads import Heads
from nnunet_calib.results.judged_cases import CROSS_FITS, Keeper, MeasuredCase, cross_fitted, is_of, load_case, results
from nnunet_calib.results.layout import (
    CALIBRATORS,
    ENDINGS,
    EXPECTED_FIGURE,
    EXPECTED_FILE,
    FIGURES,
    PAGE,
    Fold,
    case_file,
)
from nnunet_calib.results.schemas import untrained_note
from nnunet_calib.results.training_split import Split

SUMMARY, TEMPERATURE = "summary.json", "temperature.json"

FORMAT_VERSION = 1


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


@dataclass(frozen=True)
class FittedOn:
    """Data that a calibrator was fitted on.

    Attributes:
        model: identity of the networks; None if unknown.
        cases: names of the cases.
        folds: folds that validate the cases; None if the origin of the cases is unknown.
        seen_in_training: names of the cases that the networks were trained on; None if unknown.
        in_sample: whether the networks were trained on some of the cases; None if unknown.
    """

    model: dict[str, Any] | None = None
    cases: Sequence[str] = ()
    folds: Sequence[Fold] | None = None
    seen_in_training: Sequence[str] | None = None
    in_sample: bool | None = None

    @classmethod
    def of_fold(cls, model: dict[str, Any], cases: Sequence[str], split: Split | None) -> FittedOn:
        """Describe cases predicted by one network, given the split of its training, or None if that is unknown."""
        fold = model["fold"]
        if fold is None:  # predictions of unknown origin
            return cls(model, cases)
        seen = None if split is None else [case for case in cases if case in {*split.training}]
        return cls(model, cases, [fold], seen, bool(seen) or fold == "all")  # fold all validates on its training cases


def temperature_content(
    fit: Mapping[str, Any], on: FittedOn, *, note: str | None = None, per_fold: Sequence[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """Return the content of temperature.json, with NaN and infinities where the file has null.

    Args:
        fit: values of the calibrator and their standard errors.
        on: data that it was fitted on.
        note: caveats for its users; for merged folds only.
        per_fold: fits of the single folds; for merged folds only.
    """
    version, origin = {"format_version": FORMAT_VERSION}, {"nnunet_calib": nnunet_calib.__version__}
    fitted = {
        **fit,
        "in_sample": on.in_sample,
        "seen_in_training": None if on.seen_in_training is None else [*on.seen_in_training],
        "folds": None if on.folds is None else [*on.folds],
    }
    cases, model = {"cases": [*on.cases]}, {"model": on.model}
    if per_fold is None:
        return version | fitted | cases | model | origin
    return version | origin | model | fitted | {"note": note, "per_fold": [*per_fold]} | cases


def summary_content(
    model: dict[str, Any],
    heads: Heads,
    temperature: Mapping[str, Any],
    judged: Mapping[str, Any],
    *,
    definitions: Mapping[str, Any],
    missing: Sequence[str],
    cross_fitted: bool = True,
) -> dict[str, Any]:
    """Return the content of summary.json, with NaN where the file has null.

    Args:
        model: identity of the model.
        heads: heads of the network.
        temperature: the content of temperature.json.
        judged: errors of the cases, from `results`.
        definitions: definitions of the names in the file.
        missing: names of the cases that were not measured.
        cross_fitted: whether each case is judged with a calibrator fitted without it.
    """
    per_fold = temperature.get("per_fold")
    left_out = {"format_version", "model", "cases", *(() if per_fold is None else ("per_fold", "nnunet_calib"))}
    return {
        "format_version": FORMAT_VERSION,
        "nnunet_calib": nnunet_calib.__version__,
        "model": model,
        "heads": asdict(heads),
        "definitions": dict(definitions),
        "temperature": {name: value for name, value in temperature.items() if name not in left_out}
        | {"cross_fitted": cross_fitted},
        **({} if per_fold is None else {"temperature_per_fold": per_fold}),
        "missing_cases": [*missing],
        **judged,
    }


def fitted_temperature(
    cases: Sequence[MeasuredCase], model: dict[str, Any], split: Split | None = None
) -> tuple[dict[str, Any], list[Calibrator | None]]:
    """Return the content of temperature.json, fitted to all cases, and a calibrator for each case fitted without it.

    Args:
        cases: the measured cases.
        model: identity of the model.
        split: split that the network was trained with; None if unknown.

    Raises:
        ValueError: if no case has a voxel that counts.
    """
    if not any(case.kept for case in cases):
        raise ValueError(f"expected cases to fit a temperature on, found no voxel that counts in {len(cases)} cases")
    fit, without = cross_fitted(cases)
    return temperature_content(fit.to_json(), FittedOn.of_fold(model, [case.name for case in cases], split)), without


def write_fold(
    calibration_folder: Path,
    cases: Sequence[str],
    heads: Heads,
    model: dict[str, Any],
    boundary_mm: float = BOUNDARY_MM,
    split: Split | None = None,
) -> dict[str, Any]:
    """Merge the case files of a fold into temperature.json and summary.json, and remove the files of other cases.

    Args:
        calibration_folder: the fold's `validation/calibration`.
        cases: the validation cases.
        heads: heads of the network.
        model: identity of the model; case files of other weights are not used.
        boundary_mm: half width of the boundary scope; case files of other widths are not used.
        split: split that the network was trained with; None if unknown.

    Returns:
        The content of summary.json, with NaN where the file has null.

    Raises:
        ValueError: if no case was measured.
    """
    check_cases(cases)
    measured, missing = read_cases(calibration_folder, cases, heads, model, boundary_mm)
    if not any(case.kept for case in measured):
        raise ValueError(f"expected statistics of {len(cases)} cases in {calibration_folder}, found none with a voxel")
    temperature, without = fitted_temperature(measured, model, split)
    summary = summarise(measured, missing, heads, model, temperature, without)
    summary["split"] = None if split is None else split.as_json()
    files = {case.name: case_file(calibration_folder, case.name) for case in measured}
    write_results(calibration_folder, summary, temperature, files)
    return summary


def summarise(
    cases: Sequence[MeasuredCase],
    missing: Sequence[str],
    heads: Heads,
    model: dict[str, Any],
    temperature: dict[str, Any],
    without: Sequence[Calibrator | None] | None,
) -> dict[str, Any]:
    """Measure all errors and return the content of summary.json, with NaN where the file has null.

    Args:
        cases: the measured cases.
        missing: names of the cases that were not measured.
        heads: heads of the network.
        model: identity of the model.
        temperature: the content of temperature.json.
        without: for each case the calibrator fitted without it, or None to use `temperature`. None for a given
            temperature, which all cases are judged with.
    """
    given = from_json(temperature)
    judged = results(cases, [given] * len(cases) if without is None else without, heads, given)
    if note := untrained_note(model, "This network"):
        judged["notes"].append(note)
    return summary_content(
        model,
        heads,
        temperature,
        judged,
        definitions=definitions(cases[0].boundary_mm, None if without is None else CROSS_FITS),
        missing=missing,
        cross_fitted=without is not None,
    )


def write_results(
    calibration_folder: Path,
    summary: dict[str, Any],
    temperature: dict[str, Any] | None,
    case_files: Mapping[str, Path] | None = None,
) -> None:
    """Write summary.json and temperature.json so that old and new files never stand side by side.

    No old file is removed before all new ones are complete. Then summary.json is removed first and written last:
    without it, the folder is not read as results. Figures and page stay if the numbers have not changed.

    Args:
        calibration_folder: calibration folder of a fold, of merged folds or of predictions.
        summary: the content of summary.json.
        temperature: the content of temperature.json; None leaves the file as it is.
        case_files: case name -> file with its statistics, to be moved here; files of other cases are removed. None if
            the folder has no cases of its own.
    """
    with ExitStack() as stack:  # files take their places in reverse order
        new = stack.enter_context(replaced_when_complete(calibration_folder / SUMMARY))
        new.write_text(json_text(summary), encoding="utf-8")
        if temperature is not None:
            fitted = stack.enter_context(replaced_when_complete(calibration_folder / TEMPERATURE))
            fitted.write_text(json_text(temperature), encoding="utf-8")
        others = [] if case_files is None else _other_cases(calibration_folder, case_files)
        changed = not _is_same(new, calibration_folder / SUMMARY)
        made = [*_made_from_numbers(calibration_folder)] if changed else []
        if changed or others:
            (calibration_folder / SUMMARY).unlink(missing_ok=True)
        for path in (*made, *others):
            forget(path)
        for case, path in (case_files or {}).items():
            if path != (target := case_file(calibration_folder, case)):
                os.replace(path, target)
    if made or others:
        _tell(calibration_folder, made, others)


def _is_same(new: Path, old: Path) -> bool:
    return old.is_file() and new.read_bytes() == old.read_bytes()


def _made_from_numbers(calibration_folder: Path) -> Iterator[Path]:
    """Yield the existing figures, page and comparison of calibrators."""
    drawn = (f"{name}.{ending}" for name in (*FIGURES, EXPECTED_FIGURE) for ending in ENDINGS)
    for name in (*drawn, PAGE, CALIBRATORS, EXPECTED_FILE):
        if (path := calibration_folder / name).is_file():
            yield path


def _other_cases(calibration_folder: Path, cases: Mapping[str, Path]) -> list[Path]:
    """Return the files of other cases; a folder with such a name is not ours to remove."""
    folder = case_file(calibration_folder, "").parent
    known = {case_file(calibration_folder, case) for case in cases}
    # another process is writing the hidden ones
    return sorted(path for path in folder.glob("[!.]*.npz") if path not in known and not path.is_dir())


def _tell(calibration_folder: Path, made: list[Path], others: list[Path]) -> None:
    named = [path.name for path in made if path.name in (PAGE, CALIBRATORS, EXPECTED_FILE)]
    counts = {"figure": len(made) - len(named), "case file": len(others)}
    parts = [f"{number} {what}{'s' * (number > 1)}" for what, number in counts.items() if number]
    parts += named
    print(f"removed from {calibration_folder}, since it was of other numbers: {', '.join(parts)}", file=sys.stderr)

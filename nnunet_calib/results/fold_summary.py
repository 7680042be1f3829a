"""The calibration files of a fold, written from the statistics of its cases."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nnunet_calib
from nnunet_calib.io.atomic_files import forget, json_text, replaced_when_complete
from nnunet_calib.io.json_forms import read_json
from nnunet_calib.io.names import check_cases
from nnunet_calib.io.wording import number
from nnunet_calib.measuring.scopes import BOUNDARY_MM
from nnunet_calib.posthoc import from_json
from nnunet_calib.posthoc.calibrator import Calibrator
from nnunet_calib.posthoc.temperature import Temperature
from nnunet_calib.results.error_tree import definitions
from nnunet_calib.results.heads import Heads
from nnunet_calib.results.judged_cases import CROSS_FITS, MeasuredCase, cross_fitted, mean_dice, read_cases, results
from nnunet_calib.results.layout import CALIBRATORS, ENDINGS, MADE_FROM_NUMBERS, THRESHOLDS_FILE, Fold, case_file
from nnunet_calib.results.schemas import UNCALIBRATED, untrained_note
from nnunet_calib.results.training_split import Split

SUMMARY, TEMPERATURE = "summary.json", "temperature.json"

FORMAT_VERSION = 1


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


def calibrators_content(temperature: Mapping[str, Any], compared: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of calibrators.json, with NaN where the file has null.

    Args:
        temperature: the content of temperature.json, fitted on the same cases.
        compared: the entry `calibrators`, with the fit of each kind, and what else is known of them.
    """
    about = {name: temperature[name] for name in ("format_version", "nnunet_calib", "model")}
    origin = ("in_sample", "seen_in_training", "folds", "cases", "note")
    return about | dict(compared) | {name: temperature[name] for name in origin if name in temperature}


@dataclass(frozen=True)
class Fitted:
    """A calibrator fitted to cases.

    Attributes:
        temperature: content of temperature.json, of one temperature for the same cases.
        calibrators: content of calibrators.json; None for a temperature.
        content: what summary.json tells of the calibrator: as `temperature`, with the values of the calibrator.
        without: for each case a calibrator that was fitted without it, or None.
    """

    temperature: dict[str, Any]
    calibrators: dict[str, Any] | None
    content: dict[str, Any]
    without: list[Calibrator | None]


def fit_calibrator(
    cases: Sequence[MeasuredCase],
    heads: Heads,
    model: dict[str, Any],
    split: Split | None = None,
    kind: str = Temperature.kind,
) -> Fitted:
    """Fit a calibrator to all cases, and for each case one without it.

    Args:
        cases: the measured cases.
        heads: heads of the network.
        model: identity of the model.
        split: split that the network was trained with; None if unknown.
        kind: kind from `posthoc.KINDS`.

    Raises:
        ValueError: if no case has a voxel that counts, or if the kind cannot be fitted to so many classes.
    """
    if not any(case.kept for case in cases):
        raise ValueError(f"expected cases to fit a temperature on, found no voxel that counts in {len(cases)} cases")
    fit, without = cross_fitted(cases, kind)
    on = FittedOn.of_fold(model, [case.name for case in cases], split)
    temperature = temperature_content(fit.of_all.to_json(), on)
    if kind == Temperature.kind:
        return Fitted(temperature, None, temperature, without)
    entry: dict[str, Any] = {"fit": fit.to_json()}
    if not fit.calibrator.keeps_segmentation:
        entry["dice"] = mean_dice(cases, [one or fit.calibrator for one in without], heads)
    calibrators = calibrators_content(temperature, {"definitions": _FIT_DEFINITIONS, "calibrators": {kind: entry}})
    return Fitted(temperature, calibrators, temperature_content(fit.to_json(), on), without)


_FIT_DEFINITIONS = {
    "fit": "the calibrator fitted on all cases, with standard errors that take only cases as independent",
    "dice": "of the segmentation before and after calibration, each case with a calibrator fitted without it, mean "
    "over the foreground classes and the cases, estimated from the kept voxels",
}


def write_fold(
    calibration_folder: Path,
    cases: Sequence[str],
    heads: Heads,
    model: dict[str, Any],
    boundary_mm: float = BOUNDARY_MM,
    split: Split | None = None,
    kind: str = Temperature.kind,
) -> dict[str, Any]:
    """Merge the case files of a fold into temperature.json and summary.json, and remove the files of other cases.

    Args:
        calibration_folder: the fold's `validation/calibration`.
        cases: the validation cases.
        heads: heads of the network.
        model: identity of the model; case files of other weights are not used.
        boundary_mm: half width of the boundary scope; case files of other widths are not used.
        split: split that the network was trained with; None if unknown.
        kind: kind of the calibrator that the cases are judged by; another than the temperature is also written into
            calibrators.json.

    Returns:
        The content of summary.json, with NaN where the file has null.

    Raises:
        ValueError: if no case was measured, or as for `fit_calibrator`.
    """
    check_cases(cases)
    measured, missing = read_cases(calibration_folder, cases, heads, model, boundary_mm)
    if not any(case.kept for case in measured):
        raise ValueError(f"expected statistics of {len(cases)} cases in {calibration_folder}, found none with a voxel")
    fitted = fit_calibrator(measured, heads, model, split, kind)
    summary = summarise(measured, missing, heads, model, fitted.content, fitted.without)
    summary["split"] = None if split is None else split.as_json()
    files = {case.name: case_file(calibration_folder, case.name) for case in measured}
    write_results(calibration_folder, summary, fitted.temperature, files, fitted.calibrators)
    return summary


def summarise(
    cases: Sequence[MeasuredCase],
    missing: Sequence[str],
    heads: Heads,
    model: dict[str, Any],
    fitted: dict[str, Any],
    without: Sequence[Calibrator | None] | None,
) -> dict[str, Any]:
    """Measure all errors and return the content of summary.json, with NaN where the file has null.

    Args:
        cases: the measured cases.
        missing: names of the cases that were not measured.
        heads: heads of the network.
        model: identity of the model.
        fitted: the content of temperature.json, or the same entries of another calibrator.
        without: for each case the calibrator fitted without it, or None to use `fitted`. None for a given calibrator,
            which all cases are judged with.
    """
    given = from_json(fitted)
    judged = results(cases, [given] * len(cases) if without is None else without, heads, given)
    if not given.keeps_segmentation:
        judged["notes"].append(
            dice_note(mean_dice(cases, [one or given for one in without or [None] * len(cases)], heads))
        )
    if note := untrained_note(model, "This network"):
        judged["notes"].append(note)
    return summary_content(
        model,
        heads,
        fitted,
        judged,
        definitions=definitions(cases[0].boundary_mm, None if without is None else CROSS_FITS, given),
        missing=missing,
        cross_fitted=without is not None,
    )


def dice_note(dice: Mapping[str, float]) -> str:
    """Return the note on what a calibrator does to the segmentation, given the values of `mean_dice`."""
    return (
        f"The calibrator may change the segmentation: the Dice, estimated from the kept voxels, is "
        f"{number(dice['before'])} before it and {number(dice['after'])} after it."
    )


def write_results(
    calibration_folder: Path,
    summary: dict[str, Any],
    temperature: dict[str, Any] | None,
    case_files: Mapping[str, Path] | None = None,
    calibrators: dict[str, Any] | None = None,
) -> None:
    """Write summary.json, temperature.json and calibrators.json so that old and new never stand side by side.

    No old file is removed before all new ones are complete. Then summary.json is removed first and written last:
    without it, the folder is not read as results. Figures and page stay if the numbers have not changed.

    Args:
        calibration_folder: calibration folder of a fold, of merged folds or of predictions.
        summary: the content of summary.json.
        temperature: the content of temperature.json; None leaves the file as it is.
        case_files: case name -> file with its statistics, to be moved here; files of other cases are removed. None if
            the folder has no cases of its own.
        calibrators: the content of calibrators.json; None writes none.
    """
    with ExitStack() as stack:  # files take their places in reverse order
        new = _complete(stack, calibration_folder / SUMMARY, summary)
        if temperature is not None:
            _complete(stack, calibration_folder / TEMPERATURE, temperature)
        if calibrators is not None:
            _complete(stack, calibration_folder / CALIBRATORS, calibrators)
        others = [] if case_files is None else _other_cases(calibration_folder, case_files)
        changed = not _is_same(new, calibration_folder / SUMMARY)
        made = [*_made_from_numbers(calibration_folder, calibrators is None)] if changed else []
        if _are_of_others(calibration_folder / THRESHOLDS_FILE, summary, calibration_folder / SUMMARY):
            made.append(calibration_folder / THRESHOLDS_FILE)
        if changed or others:
            (calibration_folder / SUMMARY).unlink(missing_ok=True)
        for path in (*made, *others):
            forget(path)
        for case, path in (case_files or {}).items():
            if path != (target := case_file(calibration_folder, case)):
                os.replace(path, target)
    if made or others:
        _tell(calibration_folder, made, others)


def write_fits(calibration_folder: Path, fitted: Fitted) -> None:
    """Write temperature.json and calibrators.json alone; a calibrators.json of other cases is removed.

    Args:
        calibration_folder: folder for the files, which is made if needed.
        fitted: the fitted calibrator.
    """
    calibration_folder.mkdir(parents=True, exist_ok=True)
    old: list[Path] = []
    with ExitStack() as stack:
        new = _complete(stack, calibration_folder / TEMPERATURE, fitted.temperature)
        if fitted.calibrators is not None:
            _complete(stack, calibration_folder / CALIBRATORS, fitted.calibrators)
        elif not _is_same(new, calibration_folder / TEMPERATURE) and (calibration_folder / CALIBRATORS).is_file():
            old = [calibration_folder / CALIBRATORS]
            forget(old[0])
    if old:
        _tell(calibration_folder, old, [])


def _complete(stack: ExitStack, path: Path, content: Mapping[str, Any]) -> Path:
    """Write JSON beside its place, which it takes when the stack is left, and return where."""
    temporary = stack.enter_context(replaced_when_complete(path))
    temporary.write_text(json_text(content), encoding="utf-8")
    return temporary


def _is_same(new: Path, old: Path) -> bool:
    try:
        return new.read_bytes() == old.read_bytes()
    except FileNotFoundError:  # also where another part of `validate` has just removed it
        return False


def _made_from_numbers(calibration_folder: Path, with_calibrators: bool) -> Iterator[Path]:
    """Yield the existing files that are made from the numbers; not calibrators.json where it is replaced."""
    for name in MADE_FROM_NUMBERS:
        if name == CALIBRATORS and not with_calibrators:
            continue
        if (path := calibration_folder / name).is_file():
            yield path


def _are_of_others(thresholds: Path, summary: Mapping[str, Any], old: Path) -> bool:
    """Return whether thresholds.json is of other networks, cases or numbers than the summary that replaces an old one.

    Thresholds do not depend on the calibrator, and there may be some before there is a summary.
    """
    if not thresholds.is_file():
        return False
    try:
        content = read_json(thresholds, {"model": dict, "cases": [str]})
        before = read_json(old)["metrics"][UNCALIBRATED] if old.is_file() else None
    except (OSError, ValueError, KeyError, TypeError):
        return False
    cases = {row["case"] for row in summary["metric_per_case"]}
    if content["model"].get("weights_sha256") != summary["model"]["weights_sha256"] or {*content["cases"]} != cases:
        return True
    return before is not None and before != json.loads(json_text(summary["metrics"][UNCALIBRATED]))


def _other_cases(calibration_folder: Path, cases: Mapping[str, Path]) -> list[Path]:
    """Return the files of other cases; a folder with such a name is not ours to remove."""
    folder = case_file(calibration_folder, "").parent
    known = {case_file(calibration_folder, case) for case in cases}
    # another process is writing the hidden ones
    return sorted(path for path in folder.glob("[!.]*.npz") if path not in known and not path.is_dir())


def _tell(calibration_folder: Path, made: list[Path], others: list[Path]) -> None:
    named = [path.name for path in made if path.suffix[1:] not in ENDINGS]
    counts = {"figure": len(made) - len(named), "case file": len(others)}
    parts = [f"{number} {what}{'s' * (number > 1)}" for what, number in counts.items() if number]
    parts += named
    print(f"removed from {calibration_folder}, since it was of other numbers: {', '.join(parts)}", file=sys.stderr)

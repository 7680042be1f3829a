"""Writes the numbers of a calibration folder, and removes what was made from those that they replace."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from nnunet_calib.io.atomic_files import forget, replaced_when_complete, write_json
from nnunet_calib.results.layout import case_file

SUMMARY, TEMPERATURE = "summary.json", "temperature.json"
PAGE = "report.html"
FIGURES = (
    "reliability", "dataset_reliability_histogram", "reliability_boxes", "reliability_of_cases", "confidence", "nll",
    "worst_cases",
)  # fmt: skip
ENDINGS = ("png", "svg", "pdf")


def write_results(
    calibration_folder: Path,
    summary: dict[str, Any],
    temperature: dict[str, Any] | None,
    case_files: Mapping[str, Path] | None = None,
) -> None:
    """Write summary.json and temperature.json, so that at no time old and new stand side by side.

    New files are complete before an old one goes. Then summary.json goes first and comes last: without it, what lies
    in the folder is not read as results. Numbers that have not changed leave figures and page where they are.

    Args:
        calibration_folder: of a fold, of merged folds or of predictions.
        summary: the content of summary.json.
        temperature: the content of temperature.json; None leaves the file as it is.
        case_files: by name of each case where its statistics lie, to be moved here; files of other cases are removed.
            None if the folder has no cases of its own.
    """
    with ExitStack() as stack:  # the last that is entered takes its place first
        new = stack.enter_context(replaced_when_complete(calibration_folder / SUMMARY))
        write_json(summary, new)
        if temperature is not None:
            write_json(temperature, stack.enter_context(replaced_when_complete(calibration_folder / TEMPERATURE)))
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
    """Yield the figures and the page that are there."""
    for name in (*(f"{name}.{ending}" for name in FIGURES for ending in ENDINGS), PAGE):
        if (path := calibration_folder / name).is_file():
            yield path


def _other_cases(calibration_folder: Path, cases: Mapping[str, Path]) -> list[Path]:
    folder = case_file(calibration_folder, "").parent
    known = {case_file(calibration_folder, case) for case in cases}
    # hidden ones are what another process is writing
    return sorted(path for path in folder.glob("[!.]*.npz") if path not in known)


def _tell(calibration_folder: Path, made: list[Path], others: list[Path]) -> None:
    pages = sum(path.name == PAGE for path in made)
    counts = {"figure": len(made) - pages, "case file": len(others)}
    parts = [f"{number} {what}{'s' * (number > 1)}" for what, number in counts.items() if number]
    parts += [PAGE] * pages
    print(f"removed from {calibration_folder}, since it was of other numbers: {', '.join(parts)}", file=sys.stderr)

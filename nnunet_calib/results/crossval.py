"""The folds of a cross-validation as one result: a temperature to deploy, and errors it may be judged by.

A case is judged by a temperature that was fitted on the other folds: one fitted with its own fold would know the
network that predicted it, and maybe the case itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nnunet_calib.results.error_tree import definitions
from nnunet_calib.results.fold_summary import FittedOn, summary_content, temperature_content, write_results
from nnunet_calib.results.judged_cases import results
from nnunet_calib.results.layout import ModelFolder
from nnunet_calib.results.measured_folds import (
    FoldResult,
    find_folds,
    fit_folds,
    merged_model,
    read_measured,
    versions_note,
)
from nnunet_calib.results.schemas import CALIBRATED, untrained_note

ENSEMBLE_NOTE = (
    "T was fitted on predictions of single networks; how far it is from what an ensemble of the folds needs cannot be "
    "estimated from these data, since each case was seen in training by all networks but one."
)


def merge_folds(model_folder: ModelFolder, folds: Sequence[int | str], *, allow_missing: bool = False) -> Path:
    """Merge the calibration files of folds into temperature.json and summary.json.

    Memory: that of `measured_cases`, with 0.1 MB for the errors of each case. What is not held is read about six times.

    Args:
        model_folder: of nnU-Net, with the folders `fold_X`.
        folds: at least two numbers.
        allow_missing: leave out cases without statistics, and name them, instead of refusing.

    Returns:
        The folder that was written.

    Raises:
        ValueError: in one sentence, if folds or cases are missing or do not belong together, or have no voxel.
    """
    found = find_folds(model_folder, folds, allow_missing=allow_missing)
    cases, missing = read_measured(found, allow_missing=allow_missing)
    numbers = [result.fold for result in found]
    pool = frozenset(numbers)
    own, others = {fold: frozenset({fold}) for fold in numbers}, {fold: pool - {fold} for fold in numbers}
    fits = fit_folds(cases, {folds: folds for folds in (pool, *own.values(), *others.values())})

    model, heads = merged_model(found), found[0].heads
    per_fold = [
        {
            "fold": fold,
            "cases": sum(case.fold == fold for case in cases),
            **fits[own[fold]].to_json(),
            "without_fold": fits[others[fold]].to_json(),
        }
        for fold in numbers
    ]
    temperature = temperature_content(
        fits[pool].to_json(),
        FittedOn(
            model,
            [case.name for case in cases],
            numbers,
            seen_in_training=[] if all(result.split for result in found) else None,
            in_sample=False,
        ),
        note=" ".join([ENSEMBLE_NOTE, *_differences(found, model)]),
        per_fold=per_fold,
    )
    judged = results(cases, [fits[others[case.fold]].calibrator for case in cases], heads)
    judged["metric_per_case"] = [
        {"case": case.name, "fold": case.fold} | row for case, row in zip(cases, judged["metric_per_case"], strict=True)
    ]
    summary = summary_content(
        model, heads, temperature, judged, definitions=_definitions(cases[0].boundary_mm, len(numbers)), missing=missing
    )
    target = model_folder.crossval(numbers)
    target.mkdir(parents=True, exist_ok=True)
    write_results(target, summary, temperature)
    return target


def _differences(found: Sequence[FoldResult], model: dict[str, Any]) -> Iterator[str]:
    """In what the folds differ beside what they may, and from what their trainer promises."""
    if note := untrained_note(model, "A network of these folds"):
        yield note
    if note := versions_note({f"fold {fold}": version for fold, version in model["measured_with"].items()}):
        yield note
    everything = {result.fold: {*result.split.training, *result.split.validation} for result in found if result.split}
    first = found[0].fold
    if others := [str(fold) for fold, names in everything.items() if names != everything.get(first, names)]:
        yield (
            f"The splits of fold{'s' * (len(others) > 1)} {', '.join(others)} were made of other cases than those of "
            f"fold {first}."
        )


def _definitions(boundary_mm: float, folds: int) -> dict[str, Any]:
    return definitions(boundary_mm, folds) | {
        CALIBRATED: "each case with the temperature of the other folds (without_fold), on the kept voxels of the case",
        "temperature": "fitted on all cases of all folds by minimising the mean NLL over voxels; no error in this file "
        "is computed with it",
    }

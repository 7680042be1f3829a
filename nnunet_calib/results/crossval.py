"""Merging the folds of a cross-validation: a temperature to deploy, and out-of-fold errors to judge it by.

Each case is judged with a temperature fitted on the other folds. A temperature fitted on the case's own fold would have
seen the network that predicted it, and perhaps the case itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_calib.io.atomic_files import json_text
from nnunet_calib.io.json_forms import NAME, read_json
from nnunet_calib.metrics.catalogue import HEAD_ERRORS, SCORES
from nnunet_calib.metrics.significance import paired_difference, resampling_counts
from nnunet_calib.posthoc import KINDS, from_json, kind_of
from nnunet_calib.posthoc.calibrator import Calibrator, Fit
from nnunet_calib.posthoc.temperature import Temperature
from nnunet_calib.results.error_tree import average, case_error, definitions, described, mean_of_known
from nnunet_calib.results.fold_summary import (
    FittedOn,
    calibrators_content,
    dice_note,
    summary_content,
    temperature_content,
    write_results,
)
from nnunet_calib.results.heads import Heads
from nnunet_calib.results.judged_cases import MeasuredCase, errors_after, mean_dice, results
from nnunet_calib.results.layout import CALIBRATORS, Fold, ModelFolder, find_results
from nnunet_calib.results.measured_folds import (
    FoldResult,
    find_folds,
    fit_folds,
    merged_model,
    read_measured,
    versions_note,
)
from nnunet_calib.results.schemas import CALIBRATED, CALIBRATORS_OF_FOLDS, TEMPERATURE, Summary, untrained_note
from nnunet_calib.results.uncertainty import intervals

ENSEMBLE_NOTE = (
    "T was fitted on predictions of single networks; how far it is from what an ensemble of the folds needs cannot be "
    "estimated from these data, since each case was seen in training by all networks but one."
)


# Errors compared with those of the temperature: of the foreground, of the top label, and of all classes.
_COMPARED = (
    *((metric, of) for of in ("foreground_mean", "top_label") for metric in HEAD_ERRORS),
    *((metric, None) for metric in SCORES),
)
SURE = 0.05  # p below which one calibrator's NLL is called worse than another's


def merge_folds(
    model_folder: ModelFolder,
    folds: Sequence[int | str],
    *,
    allow_missing: bool = False,
    calibrators: Sequence[str] = (),
) -> Path:
    """Merge the calibration files of folds into temperature.json and summary.json.

    The errors of a case take 0.1 MB of memory. Cases that are not held in memory are read about six times.

    Args:
        model_folder: nnU-Net's folder of the model, with the folders `fold_X`.
        folds: numbers of at least two folds.
        allow_missing: leave out cases without statistics and name them, instead of refusing.
        calibrators: kinds to compare in calibrators.json; if empty, that file is not written.

    Returns:
        The folder with the written files.

    Raises:
        ValueError: in one sentence, if folds or cases are missing or do not belong together, or have no voxel.
    """
    if unknown := [kind for kind in calibrators if kind not in KINDS]:
        raise ValueError(f"expected kinds of calibrators among {', '.join(KINDS)}, got {unknown[0]}: name one of these")
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
    judged = _of_folds(cases, [fits[others[case.fold]].calibrator for case in cases], heads)
    summary = summary_content(
        model, heads, temperature, judged, definitions=_definitions(cases[0].boundary_mm), missing=missing
    )
    target = model_folder.crossval(numbers)
    target.mkdir(parents=True, exist_ok=True)
    compared = None
    if calibrators:
        by_fold: dict[int | None, Fit] = {None: fits[pool], **{fold: fits[others[fold]] for fold in numbers}}
        compared = calibrators_content(
            temperature, compare_calibrators(cases, numbers, heads, calibrators, by_fold, judged)
        )
    write_results(target, summary, temperature, calibrators=compared)
    return target


def compare_calibrators(
    cases: Sequence[MeasuredCase],
    folds: Sequence[int],
    heads: Heads,
    kinds: Sequence[str],
    temperatures: Mapping[int | None, Fit],
    judged: Mapping[str, Any],
) -> dict[str, Any]:
    """Compare kinds of calibrators out of fold, and return their entries of calibrators.json.

    Args:
        cases: cases of all folds, each with a voxel that counts.
        folds: numbers of two or more folds.
        heads: heads of the networks.
        kinds: kinds from `KINDS`; the temperature is always added.
        temperatures: fit of the temperature to all cases (None), and for each fold to those of the other folds.
        judged: errors of the cases with these temperatures, from `results`.
    """
    pool = frozenset(folds)
    sets: dict[int | None, frozenset[int]] = {None: pool, **{fold: pool - {fold} for fold in folds}}
    counts, width = resampling_counts(len(cases)), cases[0].boundary_mm
    values: dict[str, dict[tuple[str, str | None], list[float]]] = {}
    entries: dict[str, dict[str, Any]] = {}
    for kind in [kind for kind in KINDS if kind in kinds or kind == Temperature.kind]:  # from simple to complex
        if kind == Temperature.kind:
            fits = temperatures
            errors = {name: judged[name][CALIBRATED] for name in ("metrics", "intervals")}
            after = [row[CALIBRATED] for row in judged["metric_per_case"]]
        else:
            fits = fit_folds(cases, sets, kind)
            after, _ = errors_after(cases, [fits[case.fold].calibrator for case in cases], heads)
            errors = {
                "metrics": described(average(after, heads), width),
                "intervals": described(intervals(after, heads), width),
            }
        values[kind] = {
            (metric, of): [case_error(tree["image"], metric, of) for tree in after] for metric, of in _COMPARED
        }
        entries[kind] = {
            "fit": fits[None].to_json(),
            "without_fold": {str(fold): fits[fold].to_json() for fold in folds},
            **errors,
            "differences": [
                {
                    "metric": metric,
                    "of": of,
                    **_difference(values[kind][metric, of], values[Temperature.kind][metric, of], counts),
                }
                for metric, of in _COMPARED
            ],
            "dice": mean_dice(cases, [fits[case.fold].calibrator for case in cases], heads),
        }
    return {
        "definitions": _CALIBRATOR_DEFINITIONS,
        "recommended": recommended({kind: of_kind["nll", None] for kind, of_kind in values.items()}, counts),
        "calibrators": entries,
    }


def summary_with(model_folder: ModelFolder, folds: Sequence[Fold], kind: str) -> Summary | None:
    """Return the content of summary.json of a fold or of merged folds, judged by a kind of calibrator.

    That of a fold has to be judged by it already. Of merged folds calibrators.json has the fits to judge by.

    Args:
        model_folder: nnU-Net's folder of the model, with the folders `fold_X`.
        folds: the fold, or those that were merged.
        kind: kind from `KINDS`.

    Returns:
        The content, or None if that of the file is judged by this kind.

    Raises:
        ValueError: in one sentence with the command that fits the kind, if it is not fitted; or if the cases are no
            longer those of the files.
    """
    folder = find_results(model_folder, folds)
    summary = read_json(folder / "summary.json", {"temperature": TEMPERATURE, "metric_per_case": [{"case": NAME}]})
    if kind_of(summary["temperature"]).kind == kind:
        return None
    if len(folds) == 1:
        raise ValueError(
            f"expected cases judged by a calibrator of kind {kind} in {folder}, found others: judge them with "
            f"{model_folder.validate_command(*folds)} --calibrator {kind}"
        )
    again = f"{model_folder.command('crossval', *folds)} --calibrators {kind}"
    file = folder / CALIBRATORS
    compared = read_json(file, CALIBRATORS_OF_FOLDS, f"make it again with {again}") if file.is_file() else None
    if compared is None or kind not in compared["calibrators"]:
        raise ValueError(f"expected a calibrator of kind {kind} in {file}, found none: fit it with {again}")
    found = find_folds(model_folder, folds, allow_missing=True)
    cases, _ = read_measured(found, allow_missing=True)
    named = {row["case"] for row in summary["metric_per_case"]}
    cases = [case for case in cases if case.name in named]
    entry, heads, weights = compared["calibrators"][kind], found[0].heads, merged_model(found)["weights_sha256"]
    made_of = compared["cases"], compared["model"]["weights_sha256"], {*entry["without_fold"]}
    if ([case.name for case in cases], weights, {*weights}) != made_of:
        raise ValueError(
            f"expected the cases and networks that {file} was made of, found others: make it again with {again}"
        )
    try:
        used = [from_json(entry["without_fold"][str(case.fold)]) for case in cases]
    except ValueError as error:
        raise ValueError(f"{error} in {file}: make it again with {again}") from error
    judged = _of_folds(cases, used, heads)
    if not used[0].keeps_segmentation:
        judged["notes"].append(dice_note(entry["dice"]))
    fitted = summary["temperature"] | entry["fit"]
    content = summary | judged | {"temperature": fitted, "definitions": _definitions(cases[0].boundary_mm, used[0])}
    as_read: Summary = json.loads(json_text(content))
    return as_read


def _of_folds(cases: Sequence[MeasuredCase], calibrators: Sequence[Calibrator], heads: Heads) -> dict[str, Any]:
    """Return the errors of the cases, as `results`, with the fold of each case."""
    judged = results(cases, calibrators, heads)
    judged["metric_per_case"] = [
        {"case": case.name, "fold": case.fold} | row for case, row in zip(cases, judged["metric_per_case"], strict=True)
    ]
    return judged


def recommended(nll: Mapping[str, Sequence[float]], counts: NDArray[np.float64]) -> str:
    """Return the first kind whose NLL is not worse than the smallest mean NLL by the paired test.

    Args:
        nll: kind -> NLL of each case, from the simplest kind to the most complex.
        counts: resampling counts of the cases, from `resampling_counts`.
    """
    best = min(nll.values(), key=mean_of_known)

    def is_worse(values: Sequence[float]) -> bool:
        found = paired_difference(values, best, counts)
        return found.mean > 0 and found.p < SURE

    return next(kind for kind, values in nll.items() if not is_worse(values))


def _difference(values: Sequence[float], baseline: Sequence[float], counts: NDArray[np.float64]) -> dict[str, Any]:
    found = paired_difference(values, baseline, counts)
    return {"pairs": found.pairs, "difference": found.mean, "interval": [found.low, found.high], "p": found.p}


def _differences(found: Sequence[FoldResult], model: dict[str, Any]) -> Iterator[str]:
    """Yield a note for each unexpected difference between folds, and for calibration losses that were not trained."""
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


def _definitions(boundary_mm: float, calibrator: Calibrator | type[Calibrator] = Temperature) -> dict[str, Any]:
    return definitions(boundary_mm, None) | {
        CALIBRATED: f"each case with the {calibrator.noun} of the other folds (without_fold), on the kept voxels of "
        "the case",
        "temperature": "fitted on all cases of all folds by minimising the mean NLL over voxels; no error in this file "
        "is computed with it",
    }


_CALIBRATOR_DEFINITIONS = {
    "fit": "the calibrator fitted on all cases of all folds, for deployment; no error in this file is computed with it",
    "without_fold": "by fold, the calibrator fitted on the cases of the other folds, by which its cases are judged",
    "metrics": "means over the cases, each with the calibrator of the other folds, on its kept voxels",
    "intervals": "[low, high] of these means, as in summary.json",
    "differences": "of the whole image: calibrator - temperature, mean over the cases that have both, with its "
    "bootstrap interval over cases and p of the two-sided Wilcoxon signed-rank test",
    "dice": "of the segmentation before and after calibration, mean over the foreground classes and the cases, "
    "estimated from the kept voxels; temperatures and temperatures by class leave it as it is",
    "recommended": f"the simplest calibrator whose NLL is not worse (p < {SURE}) than the smallest",
}

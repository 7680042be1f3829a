"""Compare the demo's models with the true probabilities of its data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from nnunet_calib.measuring.case_statistics import CaseStatistics
from nnunet_calib.metrics.catalogue import HEAD_ERRORS, LABELS
from nnunet_calib.metrics.errors import calibration_errors
from nnunet_calib.posthoc.temperature import apply_temperature
from nnunet_calib.results.compared_models import dice_of_cases
from nnunet_calib.results.error_tree import case_error
from nnunet_calib.results.layout import ModelFolder
from nnunet_calib.results.schemas import STAGES
from nnunet_calib.synthetic import distance_to_truth, divergence_from_truth

_DISTANCES = {"kl_to_truth": "KL to truth", "distance_to_truth": "distance to truth"}
_COLUMNS = {name: LABELS[name] for name in (*HEAD_ERRORS, "nll")} | _DISTANCES
HEADER = ("trainer", "T", "Dice", *_COLUMNS.values())


def read_probabilities(path: Path) -> NDArray[np.float32]:
    """Return the probabilities (C, *spatial) in an .npz of nnU-Net or of the true probabilities."""
    with np.load(path) as file:
        probabilities: NDArray[np.float32] = file["probabilities"]
    return probabilities


def errors_of_model(model: ModelFolder, folds: Sequence[int], truth: Path) -> dict[str, Any]:
    """Return the errors of a cross-validated model, and the distance of its probabilities to the true ones.

    Args:
        model: the model's folder, trained with --npz, its folds merged by `nnunet_calib crossval`.
        folds: the merged folds.
        truth: folder with the true probabilities of each case, CASE.npz.

    Returns:
        "dice", "temperature", and under "uncalibrated" and "calibrated" the means over the cases of ECE, ACE and MCE
        (foreground classes), NLL, and the divergence from and distance to the truth; "cases" has each case's values.
    """
    merged = model.crossval(folds) / "summary.json"
    summary = json.loads(merged.read_text(encoding="utf-8"))
    dice = dice_of_cases(model, [str(fold) for fold in folds])
    result: dict[str, Any] = {
        "dice": float(np.nanmean([*dice.values()])),
        "temperature": summary["temperature"]["temperature"],
    }
    cases = []
    for case in summary["metric_per_case"]:
        name = case["case"]
        p = read_probabilities(model.validation(case["fold"]) / f"{name}.npz")
        q = read_probabilities(truth / f"{name}.npz")
        cases.append({"case": name, "fold": case["fold"], "temperature": case["temperature"]})
        for when, temperature in zip(STAGES, (1.0, case["temperature"]), strict=True):
            image, scaled = case[when]["image"], p if temperature == 1 else apply_temperature(p, temperature)
            errors = (case_error(image, m) for m in (*HEAD_ERRORS, "nll"))
            distances = divergence_from_truth(scaled, q), distance_to_truth(scaled, q)
            cases[-1][when] = dict(zip(_COLUMNS, (*errors, *distances), strict=True))
    for when, metrics in summary["metrics"].items():
        image = metrics["image"]
        distances = np.mean([[case[when][column] for column in _DISTANCES] for case in cases], axis=0).tolist()
        errors = (image["foreground_mean"][m] for m in HEAD_ERRORS)
        result[when] = dict(zip(_COLUMNS, (*errors, image["nll"], *distances), strict=True))
    return result | {"cases": cases}


def errors_of_truth(labels: Path, truth: Path, cases: Sequence[str]) -> dict[str, float]:
    """Return the mean errors of the true probabilities themselves: what chance alone leaves of each error.

    Args:
        labels: folder with the label map of each case, CASE.nii.gz.
        truth: folder with the true probabilities of each case, CASE.npz.
        cases: names of the cases.
    """
    errors = []
    for case in cases:
        drawn = sitk.GetArrayFromImage(sitk.ReadImage(labels / f"{case}.nii.gz"))
        q = read_probabilities(truth / f"{case}.npz")
        measured = calibration_errors(CaseStatistics.from_probabilities(q, drawn))
        errors.append([*(float(np.nanmean(measured[m][1:])) for m in HEAD_ERRORS), float(measured["nll"]), 0.0, 0.0])
    return dict(zip(_COLUMNS, np.mean(errors, axis=0).tolist(), strict=True))


def table(models: dict[str, dict[str, Any]], truth: dict[str, float]) -> str:
    """Return a table in aligned columns: each model as trained and with its temperature, and the true probabilities."""

    def row(name: str, temperature: str, dice: str, values: dict[str, float]) -> tuple[str, ...]:
        return name, temperature, dice, *(f"{values[column]:.4f}" for column in _COLUMNS)

    rows: list[tuple[str, ...]] = [HEADER]
    for name, model in models.items():
        for when, temperature in zip(STAGES, (1, model["temperature"]), strict=True):
            rows.append(row(name, f"{temperature:.2f}", f"{model['dice']:.3f}", model[when]))
    rows.append(row("true probabilities", "-", "-", truth))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def findings(models: dict[str, dict[str, Any]]) -> list[str]:
    """Return a sentence on the first model, one on its temperature, and one on each other model beside it."""
    baseline, *others = models
    temperature = models[baseline]["temperature"]
    trained, scaled = (models[baseline][when] for when in STAGES)
    sure = "is too sure (T > 1)" if temperature > 1 else "is not too sure (T is not above 1)"
    columns = ("ace", "nll", "kl_to_truth")
    return [
        f"{baseline} {sure}: T = {temperature:.2f}.",
        f"Its temperature gives {_changes(trained, scaled, ('nll', 'kl_to_truth'))}.",
        *(f"{other} as trained has {_changes(trained, models[other][STAGES[0]], columns)}." for other in others),
    ]


def _changes(before: dict[str, float], after: dict[str, float], columns: Sequence[str]) -> str:
    def change(column: str) -> str:
        a, b = before[column], after[column]
        return f"{'a lower' if b < a else 'a higher' if b > a else 'the same'} {_COLUMNS[column]} ({a:.4f} -> {b:.4f})"

    return ", ".join(map(change, columns))

"""Reading the models of a comparison, and checking that they can be compared."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_calib.io.json_forms import NAME, SHARE, read_json
from nnunet_calib.io.wording import shortened
from nnunet_calib.metrics.log_odds import log_odds_counts
from nnunet_calib.metrics.pooled_errors import CaseSums
from nnunet_calib.posthoc.calibrator import Calibrator
from nnunet_calib.posthoc.temperature import Temperature
from nnunet_calib.results.error_tree import brief, mean_of_known
from nnunet_calib.results.heads import Heads
from nnunet_calib.results.judged_cases import as_json, cross_fitted, errors_after, estimated_dice, mean_of_pairs
from nnunet_calib.results.layout import Fold, ModelFolder
from nnunet_calib.results.measured_folds import find_folds, fits_without_fold, merged_model, read_measured
from nnunet_calib.results.schemas import HEADS, STAGES, Tree


@dataclass(frozen=True)
class JudgedCase:
    """One case of one model.

    Attributes:
        fold: fold whose network predicted the case.
        voxels: number of voxels that count.
        calibrator: calibrator fitted without the case; None if there is none.
        dice: nnU-Net's Dice, mean over the foreground classes that have one; NaN if none has.
        errors: errors before and after calibration, from `brief`.
        sums: sums before and after calibration, for pooled errors.
        log_odds: counts by log-odds before calibration, from `log_odds_counts`.
        estimated_dice: from `judged_cases.estimated_dice` for a calibrator that may change the segmentation; else None.
    """

    fold: int
    voxels: int
    calibrator: Calibrator | None
    dice: float
    errors: dict[str, Tree]
    sums: dict[str, CaseSums]
    log_odds: NDArray[np.float64]
    estimated_dice: dict[str, float] | None = None


@dataclass(frozen=True)
class ComparedModel:
    """A model and its cases.

    Attributes:
        name: shortest name that tells the model from the others.
        model: identity of the model, with the weights of each fold's network.
        heads: heads of its networks.
        cases: case name -> case.
        expected: names of all validation cases, measured or not.
        without_dice: folds without nnU-Net's summary.json.
        boundary_mm: half width of the boundary scope.
        trained_on: number of training cases of each fold that recorded its split.
    """

    name: str
    model: dict[str, Any]
    heads: Heads
    cases: dict[str, JudgedCase]
    expected: frozenset[str]
    without_dice: tuple[int, ...]
    boundary_mm: float
    trained_on: dict[int, int]


def read_models(
    model_folders: Sequence[ModelFolder],
    folds: Sequence[int | str],
    *,
    allow_missing: bool = False,
    kind: str = Temperature.kind,
) -> list[ComparedModel]:
    """Read the models, keep only their errors in memory, and name the models by the parts that differ.

    Raises:
        ValueError: in one sentence, if there are fewer than two models, if a model is named twice, if a fold was not
            measured, or if the models differ in labels, in cases (unless `allow_missing`) or in the voxels of a case.
    """
    names = [folder.path.name for folder in model_folders]
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise ValueError(f"expected each model once, got {twice[0]} twice: name each of -c, -tr and -p once")
    if len(names) < 2:
        raise ValueError(
            f"expected at least two models, got {' '.join(names) or 'none'}: name more with -tr, or with -c or -p"
        )
    models = []
    for folder in model_folders:
        try:
            models.append(_read_model(folder, folds, allow_missing, kind))
        except ValueError as error:
            raise ValueError(f"{folder.path.name}: {error}") from error
    parts = [
        (folder.trainer, folder.plans, folder.configuration, str(model.model["checkpoint"]))
        for folder, model in zip(model_folders, models, strict=True)
    ]
    differing = [i for i, values in enumerate(zip(*parts, strict=True)) if len({*values}) > 1]
    models = [
        replace(model, name=", ".join(part[i] for i in differing)) for model, part in zip(models, parts, strict=True)
    ]
    _check_comparable(models)
    if not allow_missing:
        _check_same_cases(models)
    return models


def _read_model(folder: ModelFolder, folds: Sequence[int | str], allow_missing: bool, kind: str) -> ComparedModel:
    found = find_folds(folder, folds, allow_missing=allow_missing, at_least=1)
    heads = found[0].heads
    cases, _ = read_measured(found, allow_missing=allow_missing)
    if len(found) > 1:
        without = fits_without_fold(cases, kind)
        calibrators: list[Calibrator | None] = [without[case.fold].calibrator for case in cases]
    else:
        _, calibrators = cross_fitted(cases, kind)
    after, sums = errors_after(cases, calibrators, heads)
    dice: dict[str, float] = {}
    without_dice = []
    for result in found:
        file = result.folder.parent / "summary.json"
        if file.is_file():
            dice |= dice_per_case(file, _file_ending(folder.path / "dataset.json"), heads)
        else:
            without_dice.append(result.fold)
    judged = {
        case.name: JudgedCase(
            case.fold,
            case.voxels,
            calibrator,
            dice.get(case.name, float("nan")),
            dict(zip(STAGES, (brief(case.uncalibrated), brief(calibrated)), strict=True)),
            dict(zip(STAGES, (case.sums, calibrated_sums), strict=True)),
            log_odds_counts(case.read().sample),
            None if calibrator is None or calibrator.keeps_segmentation else estimated_dice(case, calibrator, heads),
        )
        for case, calibrator, calibrated, calibrated_sums in zip(cases, calibrators, after, sums, strict=True)
    }
    expected = frozenset(name for result in found for name in result.cases)
    return ComparedModel(
        folder.path.name,
        merged_model(found),
        heads,
        judged,
        expected,
        tuple(without_dice),
        cases[0].boundary_mm,
        {int(result.fold): len(result.split.training) for result in found if result.split},
    )


def dice_per_case(file: Path, file_ending: str, heads: Heads) -> dict[str, float]:
    """Return the mean over the structures of each case; see `dice_per_structure`."""
    found = dice_per_structure(file, file_ending, heads)
    return {case: mean_of_known(dice.values()) for case, dice in found.items()}


def dice_per_structure(file: Path, file_ending: str, heads: Heads) -> dict[str, dict[str, float]]:
    """Read the Dice of each case and foreground structure, by its key, from nnU-Net's summary.json.

    A class has no Dice (NaN) in a case if neither the labels nor the prediction hold it.
    """
    found = {}
    form = {"metric_per_case": [{"prediction_file": str, "metrics": {str: {"Dice": SHARE}}}]}
    again = "validate again with nnUNetv2_train ... --val"
    for number, row in enumerate(read_json(file, form, again)["metric_per_case"]):
        name = PureWindowsPath(row["prediction_file"]).name  # understands both kinds of slashes
        dice = {_labels_of(key): metrics["Dice"] for key, metrics in row["metrics"].items()}
        for key, label in zip(heads.foreground, heads.foreground_labels, strict=True):
            if label not in dice:
                raise ValueError(f"expected metric_per_case[{number}].metrics.{key}, found none in {file}: {again}")
        pairs = zip(heads.foreground, heads.foreground_labels, strict=True)
        found[name.removesuffix(file_ending)] = {key: dice[label] for key, label in pairs}
    return found


def _labels_of(key: str) -> tuple[int, ...]:
    """Return the labels in a key of nnU-Net's: 1, (1, 2), or (1.0, 2.0) if dataset.json has floats."""
    return tuple(int(number) for number in re.findall(r"(\d{1,9})(?:\.\d+)?", key))


def _file_ending(dataset_json: Path) -> str:
    ending: str = read_json(dataset_json, {"file_ending": NAME}, "restore nnU-Net's")["file_ending"]
    return ending


def _check_comparable(models: Sequence[ComparedModel]) -> None:
    """Check heads, networks and the voxels of shared cases, each model against the first."""
    first = models[0]
    owner: dict[str, str] = {}
    for model in models:
        for fold, weights in model.model["weights_sha256"].items():
            ours = f"fold {fold} of {model.name}"
            if (twin := owner.setdefault(weights, ours)) != ours:
                raise ValueError(
                    f"expected networks of their own, found the same weights in {twin} and {ours}: name models that "
                    f"were trained, not copied"
                )
        for name, a in vars(first.heads).items():
            if a != (b := getattr(model.heads, name)):
                raise ValueError(
                    f"expected models of the same labels, found heads ({name}) {a!r} of {first.name} and {b!r} of "
                    f"{model.name}: train them on the same dataset.json"
                )
        if model.boundary_mm != first.boundary_mm:
            raise ValueError(
                f"expected models measured with one width of the boundary scope, found {first.boundary_mm:g} mm for "
                f"{first.name} and {model.boundary_mm:g} mm for {model.name}: measure one of them again with "
                f"nnunet_calib validate --boundary-mm"
            )
        for case in sorted({*first.cases} & {*model.cases}):
            if (a := first.cases[case].voxels) != (b := model.cases[case].voxels):
                raise ValueError(
                    f"expected cases measured on the same label maps, found {a} voxels of {case} for {first.name} and "
                    f"{b} for {model.name}: measure both again with nnunet_calib validate"
                )


def _check_same_cases(models: Sequence[ComparedModel]) -> None:
    everything = {case for model in models for case in model.cases}
    for model in models:
        if lacking := sorted(everything - {*model.cases}):
            other = next(m for m in models if lacking[0] in m.cases)
            raise ValueError(
                f"expected the same cases of each model, found {shortened(lacking)} of {other.name} and not of "
                f"{model.name}: name folds with the same cases, or compare those that all models have with --chill"
            )


def dice_of_cases(model_folder: ModelFolder, folds: Sequence[Fold]) -> dict[str, float]:
    """Return case -> nnU-Net's mean foreground Dice, without the cases of folds that lack nnU-Net's summary.json."""
    found = dice_of_structures(model_folder, folds)
    return {case: mean_of_known(dice.values()) for case, dice in found.items()}


def dice_of_structures(model_folder: ModelFolder, folds: Sequence[Fold]) -> dict[str, dict[str, float]]:
    """Return case -> key -> nnU-Net's Dice, without the cases of folds that lack nnU-Net's summary.json."""
    dice: dict[str, dict[str, float]] = {}
    description = model_folder.path / "dataset.json"
    ending = _file_ending(description) if description.is_file() else ""
    for fold in folds:
        ours = model_folder.calibration(fold) / "summary.json"
        theirs = model_folder.validation(fold) / "summary.json"
        if ending and ours.is_file() and theirs.is_file():
            dice |= dice_per_structure(theirs, ending, Heads.of_summary(read_json(ours, {"heads": HEADS})["heads"]))
    return dice


def calibrator_values(model: ComparedModel, cases: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return mean and range over the shared cases for each parameter of their calibrators.

    If the calibrators may change the segmentation, `estimated_dice` has the mean Dice before and after them.
    """
    described = [as_json(model.cases[case].calibrator) for case in cases]
    found: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(name for one in described for name, value in one.items() if isinstance(value, float)):
        values = [one[name] for one in described if not np.isnan(one.get(name, np.nan))] or [float("nan")]
        found[name] = {"mean": float(np.mean(values)), "min": min(values), "max": max(values)}
    dice = [pair for case in cases if (pair := model.cases[case].estimated_dice) is not None]
    return found | ({"estimated_dice": mean_of_pairs(dice)} if dice else {})

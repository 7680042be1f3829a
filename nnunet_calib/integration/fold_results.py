"""The measured folds of a model: where they are, and whether they may be merged."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_calib.files import one_line
from nnunet_calib.integration.folds import FORMAT_VERSION
from nnunet_calib.integration.labels import Heads
from nnunet_calib.integration.model_folder import IDENTITY, ModelFolder
from nnunet_calib.json_files import NAME, check_form, read_json
from nnunet_calib.summary_forms import FOLD

_SHOWN = 10


@dataclass(frozen=True)
class FoldResult:
    """What a fold's calibration folder says of itself.

    Attributes:
        fold: its number.
        folder: `fold_X/validation/calibration`.
        model: what identifies the model.
        heads: of the network.
        cases: the validation cases, measured or not.
    """

    fold: int
    folder: Path
    model: dict[str, Any]
    heads: Heads
    cases: tuple[str, ...]


def find_folds(
    model_folder: ModelFolder, folds: Sequence[int | str], *, allow_missing: bool = False, at_least: int = 2
) -> list[FoldResult]:
    """The folds of a model, in rising order, checked to be of one model and to share no case.

    Their cases are those of `splits_final.json` in nnUNet_preprocessed, where that is there, and those that were
    validated.

    Args:
        model_folder: of nnU-Net, with the folders `fold_X`.
        folds: numbers.
        allow_missing: take the cases that were validated, also where `splits_final.json` names others.
        at_least: how many folds there must be.

    Raises:
        ValueError: in one sentence that says what to do.
    """
    numbers = _fold_numbers(folds, at_least)
    found = [_read_fold(model_folder, fold) for fold in numbers]
    first = found[0]
    for other in found[1:]:
        _check_same_model(first, other)
    networks: dict[str, int] = {}
    for result in found:
        twin = networks.setdefault(result.model["weights_sha256"], result.fold)
        if twin != result.fold:
            raise ValueError(
                f"expected a network of its own in each fold, found the same weights in folds {twin} and "
                f"{result.fold} of {model_folder}: train the fold that was copied, or leave it out with -f"
            )
    found = [_with_split(result, allow_missing) for result in found]
    owner: dict[str, int] = {}
    for result in found:
        for case in result.cases:
            if (before := owner.setdefault(case, result.fold)) != result.fold:
                raise ValueError(
                    f"expected each case in one fold, found {case} in folds {before} and {result.fold}: no temperature "
                    f"of the other folds would be fitted without it, so name folds that share no case with -f"
                )
    return found


def _fold_numbers(folds: Sequence[int | str], at_least: int) -> list[int]:
    if "all" in folds:
        raise ValueError(
            "expected the numbers of folds, got all: fold all was trained on the cases that it validates, so that its "
            "temperature is no match for new cases and is never pooled; name the others with -f"
        )
    if not all(str(fold).isdecimal() for fold in folds):
        raise ValueError(f"expected the numbers of folds, got {' '.join(map(str, folds))}: name them as in -f 0 1 2")
    numbers = sorted(map(int, folds))
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"expected each fold once, got {' '.join(map(str, numbers))}: name each once after -f")
    if len(numbers) < at_least:
        raise ValueError(
            f"expected at least two folds, since a fold is judged by the temperature of others, got "
            f"{' '.join(map(str, numbers)) or 'none'}: name more with -f, or read the fold's own calibration folder"
        )
    return numbers


def _read_fold(model_folder: ModelFolder, fold: int) -> FoldResult:
    if not model_folder.fold(fold).is_dir():
        raise ValueError(
            f"expected fold {fold} in {model_folder}, found none: train it with {model_folder.train_command(fold)}, "
            f"or name those there are with -f"
        )
    folder = model_folder.calibration(fold)
    file = folder / "summary.json"
    again = f"measure it again with {model_folder.validate_command(fold)}"
    summary = read_json(file, dict, again) if file.is_file() else None
    if summary is None or not (folder / "cases").is_dir():
        raise ValueError(
            f"expected the calibration statistics of fold {fold} in {folder}, found none: run "
            f"{model_folder.validate_command(fold)}"
        )
    if summary.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"expected format {FORMAT_VERSION}, found {summary.get('format_version')!r:.99} in {file}: use the "
            f"nnunet-calib that wrote it, or {again}"
        )
    check_form(summary, FOLD, file, again)
    model = summary["model"]
    if str(model["fold"]) != str(fold):
        raise ValueError(
            f"expected the model of fold {fold} in {folder}, found that of fold {model['fold']!r:.99}: a fold's folder "
            f"must keep its name, since it says which cases were held out"
        )
    return FoldResult(
        fold, folder, model,
        Heads.of_summary(summary["heads"]),
        tuple(sorted([*(row["case"] for row in summary["metric_per_case"]), *summary["missing_cases"]])),
    )  # fmt: skip


def _check_same_model(first: FoldResult, other: FoldResult) -> None:
    pairs = [(name, first.model[name], other.model[name]) for name in IDENTITY]
    pairs += [(f"heads ({name})", getattr(first.heads, name), getattr(other.heads, name)) for name in vars(first.heads)]
    # a name that only one has is of another version of the trainer
    ours, theirs = (result.model.get("hyperparameters", {}) for result in (first, other))
    pairs += [(f"hyperparameter {one_line(name)}", ours[name], theirs[name]) for name in ours if name in theirs]
    for name, a, b in pairs:
        if a != b:
            raise ValueError(
                f"expected folds of one model, found {name} {a!r:.99} in fold {first.fold} and {b!r:.99} in fold "
                f"{other.fold}: name folds that were trained alike with -f"
            )


def _with_split(result: FoldResult, allow_missing: bool) -> FoldResult:
    """With the cases that splits_final.json adds; folds beyond it have a random split, which only the fold knows."""
    root = os.environ.get("nnUNet_preprocessed")
    file = Path(root, result.model["dataset"], "splits_final.json") if root else None
    again = "restore the splits that the folds were trained with"
    splits = read_json(file, [{"train": [NAME], "val": [NAME]}], again) if file is not None and file.is_file() else []
    if result.fold >= len(splits):
        return result
    split = splits[result.fold]
    if seen := sorted({*split["val"]} & {*split["train"]}):
        raise ValueError(
            f"expected fold {result.fold} to be trained without its validation cases, found {some(seen)} in both lists "
            f"of {file}: their errors would not be those of new cases, so leave the fold out with -f"
        )
    if (others := sorted({*result.cases} - {*split["val"]})) and not allow_missing:
        raise ValueError(
            f"expected fold {result.fold} to validate the cases of {file}, found {some(others)} in {result.folder} "
            f"besides: restore the splits that it was trained with, or take what was validated with --chill"
        )
    return FoldResult(
        result.fold, result.folder, result.model, result.heads, tuple(sorted({*split["val"], *result.cases}))
    )


def some(names: Sequence[str]) -> str:
    """The names, or the first of very many."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")

"""Measured folds of a model: finding them, and checking that they may be merged."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nnunet_calib.io.json_forms import NAME, check_form, read_json
from nnunet_calib.io.wording import one_line, shortened
from nnunet_calib.measuring.case_statistics import CaseStatistics
from nnunet_calib.posthoc.calibrator import Fit, Key
from nnunet_calib.posthoc.temperature import Temperature
from nnunet_calib.results.fold_summary import FORMAT_VERSION
from nnunet_calib.results.heads import Heads
from nnunet_calib.results.judged_cases import Keeper, MeasuredCase, fit_sets, is_of_network, load_case, same_plans
from nnunet_calib.results.layout import FINAL, IDENTITY, ModelFolder
from nnunet_calib.results.schemas import FOLD, UNTRAINED
from nnunet_calib.results.training_split import Split, read_split


@dataclass(frozen=True)
class FoldResult:
    """Description of a measured fold, from its calibration folder.

    Attributes:
        fold: number of the fold.
        folder: `fold_X/validation/calibration`.
        model: identity of the model.
        heads: heads of the network.
        cases: the validation cases, measured or not.
        split: split that the network was trained with; None if it was not recorded.
        version: version of nnunet_calib that measured the fold; None if the files do not say.
    """

    fold: int
    folder: Path
    model: dict[str, Any]
    heads: Heads
    cases: tuple[str, ...]
    split: Split | None = None
    version: str | None = None

    @property
    def checkpoint(self) -> str | None:
        """Name of the measured checkpoint; the final one for files from before it could be chosen."""
        checkpoint: str | None = self.model.get("checkpoint", FINAL)
        return checkpoint


def find_folds(
    model_folder: ModelFolder, folds: Sequence[int | str], *, allow_missing: bool = False, at_least: int = 2
) -> list[FoldResult]:
    """Find the folds of a model, in rising order, and check that they are of one model and share no case.

    The cases of a fold are its validated cases and those that its training recorded as held out. For a training without
    a recorded split, `splits_final.json` in nnUNet_preprocessed replaces the record, if it exists.

    Args:
        model_folder: nnU-Net's folder of the model, with the folders `fold_X`.
        folds: numbers of the folds.
        allow_missing: accept the validated cases even where `splits_final.json` names other ones.
        at_least: smallest number of folds.

    Raises:
        ValueError: in one sentence that says what to do.
    """
    numbers = _fold_numbers(folds, at_least)
    found = [_read_fold(model_folder, fold) for fold in numbers]
    first = found[0]
    for other in found[1:]:
        _check_same_model(first, other, model_folder)
    networks: dict[str, int] = {}
    for result in found:
        twin = networks.setdefault(result.model["weights_sha256"], result.fold)
        if twin != result.fold:
            raise ValueError(
                f"expected a network of its own in each fold, found the same weights in folds {twin} and "
                f"{result.fold} of {model_folder}: train the fold that was copied, or leave it out with -f"
            )
    found = [_with_split(_held_out(result), model_folder, allow_missing) for result in found]
    owner: dict[str, int] = {}
    for result in found:
        for case in result.cases:
            if (before := owner.setdefault(case, result.fold)) != result.fold:
                raise ValueError(
                    f"expected each case in one fold, found {case} in folds {before} and {result.fold}: no temperature "
                    f"of the other folds would be fitted without it, so name folds that share no case with -f"
                )
    return [replace(result, model=result.model | model_folder.identity) for result in found]


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
        fold,
        folder,
        model,
        Heads.of_summary(summary["heads"]),
        tuple(sorted([*(row["case"] for row in summary["metric_per_case"]), *summary["missing_cases"]])),
        None if (split := summary.get("split")) is None else Split.of(split["training"], split["validation"]),
        summary.get("nnunet_calib"),
    )


def merged_model(found: Sequence[FoldResult]) -> dict[str, Any]:
    """Return the identity of a model with several folds: the shared entries, and by fold those that differ."""
    first = found[0]
    hyperparameters = first.model.get("hyperparameters")
    if untrained := {term for result in found for term in result.model.get("hyperparameters", {}).get(UNTRAINED, ())}:
        hyperparameters = (hyperparameters or {}) | {UNTRAINED: sorted(untrained)}
    plans = [result.model["plans_sha256"] for result in found if "plans_sha256" in result.model]
    return {
        **{name: first.model[name] for name in IDENTITY},
        "hyperparameters": hyperparameters,
        "checkpoint": first.checkpoint,
        "plans_sha256": plans[0] if plans else None,
        "weights_sha256": {str(result.fold): result.model["weights_sha256"] for result in found},
        "split_sha256": {str(result.fold): result.split and result.split.fingerprint() for result in found},
        "measured_with": {str(result.fold): result.version for result in found},
    }


def versions_note(measured_with: Mapping[str, str | None]) -> str | None:
    """Return a note if the numbers come from several versions of this package, else None."""
    if len({*measured_with.values()}) < 2:
        return None
    named = ", ".join(f"{where} with {version or 'an unknown one'}" for where, version in measured_with.items())
    return f"Measured with several versions of nnunet_calib: {named}."


def _check_same_model(first: FoldResult, other: FoldResult, model_folder: ModelFolder) -> None:
    names = IDENTITY[1:] if same_plans(first.model, other.model) else IDENTITY  # a dataset may have been renamed
    pairs = [(name, first.model[name], other.model[name]) for name in names]
    pairs += [(f"heads ({name})", getattr(first.heads, name), getattr(other.heads, name)) for name in vars(first.heads)]
    # another version of the trainer may have other hyperparameters: compare only the shared ones
    ours, theirs = (result.model.get("hyperparameters", {}) for result in (first, other))
    pairs += [(f"hyperparameter {one_line(name)}", ours[name], theirs[name]) for name in ours if name in theirs]
    if first.checkpoint != other.checkpoint:
        raise ValueError(
            f"expected folds measured from the same checkpoint, found {first.checkpoint!r:.99} in fold {first.fold} "
            f"and {other.checkpoint!r:.99} in fold {other.fold}: measure both from {FINAL} with "
            f"{model_folder.validate_command(first.fold, other.fold)}, or from another one with -chk"
        )
    if same_plans(first.model, other.model) is False:
        raise ValueError(
            f"expected folds measured with the same plans and labels, found other ones (plans_sha256) in fold "
            f"{first.fold} than in fold {other.fold}: measure both again with "
            f"{model_folder.validate_command(first.fold, other.fold)}"
        )
    for name, a, b in pairs:
        if a != b:
            raise ValueError(
                f"expected folds of one model, found {name} {a!r:.99} in fold {first.fold} and {b!r:.99} in fold "
                f"{other.fold}: name folds that were trained alike with -f"
            )


def _held_out(result: FoldResult) -> FoldResult:
    """Return the fold, or raise ValueError if its network was trained on some of its validation cases."""
    if result.split is not None and (seen := result.split.overlap):
        raise ValueError(
            f"expected fold {result.fold} to be trained without its validation cases, found {shortened(seen)} among "
            f"its training cases in {result.folder / 'summary.json'}: their errors would not be those of new cases, so "
            f"leave the fold out with -f"
        )
    return result


def _with_split(result: FoldResult, model_folder: ModelFolder, allow_missing: bool) -> FoldResult:
    """Return the fold with the cases that its split adds.

    nnU-Net draws a random split for a fold that splits_final.json lacks; without a record, that split is unknown.
    """
    if (recorded := read_split(result.folder.parents[1])) is not None:  # even if splits_final.json has changed since
        return replace(result, cases=tuple(sorted({*recorded.validation, *result.cases})))
    file, splits = splits_of(model_folder.preprocessed(result.model["dataset"]))
    if result.fold >= len(splits):
        return result
    split = splits[result.fold]
    if seen := split.overlap:
        raise ValueError(
            f"expected fold {result.fold} to be trained without its validation cases, found {shortened(seen)} in both "
            f"lists of {file}: their errors would not be those of new cases, so leave the fold out with -f"
        )
    if (others := sorted({*result.cases} - {*split.validation})) and not allow_missing:
        raise ValueError(
            f"expected fold {result.fold} to validate the cases of {file}, found {shortened(others)} in "
            f"{result.folder} besides: restore the splits that it was trained with, or take what was validated "
            f"with --chill"
        )
    return replace(result, cases=tuple(sorted({*split.validation, *result.cases})))


def splits_of(preprocessed: Path | None) -> tuple[Path | None, list[Split]]:
    """Return the path of splits_final.json in a folder of preprocessed data, and its splits (none if it is missing).

    Raises:
        ValueError: in one sentence, if it is damaged.
    """
    file = None if preprocessed is None else preprocessed / "splits_final.json"
    if file is None or not file.is_file():
        return file, []
    again = "restore the splits that the folds were trained with"
    splits = read_json(file, [{"train": [NAME], "val": [NAME]}], again)
    return file, [Split.of(split["train"], split["val"]) for split in splits]


def read_measured(found: Sequence[FoldResult], *, allow_missing: bool) -> tuple[list[MeasuredCase], list[str]]:
    """Read the cases of all folds, by fold and name, and return them with the names of cases without statistics.

    Raises:
        ValueError: in one sentence, if cases are missing (unless `allow_missing`), do not belong together, or have no
            voxel.
    """
    cases: list[MeasuredCase] = []
    keeper = Keeper(found[0].heads)
    missing: dict[int, list[str]] = {}
    named = [(result, name) for result in found for name in result.cases]
    for result, name in tqdm(named, desc="reading cases"):
        statistics = _load(result, name)
        if statistics is None:
            missing.setdefault(result.fold, []).append(name)
            continue
        width = (cases[0] if cases else statistics).boundary_mm
        expected = (len(result.heads.keys), result.heads.regions is not None, width)
        if (ours := (statistics.num_heads, statistics.regions, statistics.boundary_mm)) != expected:
            raise ValueError(
                f"expected statistics with (heads, regions, boundary_mm) = {expected}, found {ours} for {name} in fold "
                f"{result.fold}: measure its fold again with nnunet_calib validate, all with the same --boundary-mm"
            )
        cases.append(keeper.keep(statistics, result.folder, result.fold))
    if missing and not allow_missing:
        listed = "; ".join(f"fold {fold}: {shortened(names)}" for fold, names in missing.items())
        raise ValueError(
            f"expected statistics of every validation case with its fold's network, found none for {listed}: measure "
            f"them with nnunet_calib validate, or leave these cases out with --chill"
        )
    for result in found:
        if not any(case.kept for case in cases if case.fold == result.fold):
            raise ValueError(
                f"expected cases with a voxel that counts in each fold, found none in fold {result.fold}: leave it out "
                f"with -f"
            )
    return cases, [name for names in missing.values() for name in names]


def _load(result: FoldResult, case: str) -> CaseStatistics | None:
    """Load a case; None without a file or with other weights or plans, as a running or killed validation leaves."""
    try:
        statistics = load_case(result.folder, case)
    except FileNotFoundError:
        return None
    return statistics if is_of_network(statistics, result.model) else None


def fit_folds(
    cases: Sequence[MeasuredCase], sets: Mapping[Key, Container[int]], kind: str = Temperature.kind
) -> Mapping[Key, Fit]:
    """Fit a calibrator to each set of folds."""
    members = {key: {number for number, case in enumerate(cases) if case.fold in sets[key]} for key in sets}
    return fit_sets(cases, members, kind)


def fits_without_fold(cases: Sequence[MeasuredCase], kind: str = Temperature.kind) -> Mapping[int, Fit]:
    """Fit a calibrator for each fold to all cases of the other folds, to judge its own cases with."""
    folds = {case.fold for case in cases}
    return fit_folds(cases, {fold: folds - {fold} for fold in sorted(folds)}, kind)

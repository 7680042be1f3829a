"""Measuring of a fold that was trained earlier, with any trainer; it writes the files of the validation hook.

It reads nnU-Net's checkpoint, plans and preprocessed data, and writes only the fold's `validation/calibration`. A case
is measured from the .npz that nnU-Net wrote after the training (--npz), else from the logits that nnU-Net's own
validation computes from the checkpoint (`predict_cases`). A case file appears when it is complete, and names the
weights: a killed run can be continued, and several runs can share a fold.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nnunet_calib.io.names import check_cases
from nnunet_calib.io.wording import shortened
from nnunet_calib.nnunet.boundary_width import width_of_trainer
from nnunet_calib.nnunet.checkpoints import TrainedWeights, find_checkpoint, read_weights, state_fingerprint
from nnunet_calib.nnunet.predictions import Predictions
from nnunet_calib.nnunet.saved_probabilities import describe_npz
from nnunet_calib.nnunet.trained_model import describe_model
from nnunet_calib.nnunet.validation.export_worker import ExportAndMeasure
from nnunet_calib.nnunet.validation.predict_cases import check_inputs, export_for, predict
from nnunet_calib.nnunet.validation.remade_trainer import preprocess_command, remade_trainer
from nnunet_calib.posthoc.temperature import Temperature
from nnunet_calib.results.fold_summary import write_fold
from nnunet_calib.results.heads import Heads
from nnunet_calib.results.judged_cases import is_measured, is_of_network, load_case
from nnunet_calib.results.layout import CALIBRATION_FOLDER, FINAL, Fold, ModelFolder, case_file, failure_file
from nnunet_calib.results.training_split import Split, read_split

_CLOCKS_DIFFER = 3600  # seconds, between machines that share a disk


@dataclass(frozen=True)
class Options:
    """How folds are measured.

    Attributes:
        checkpoint: file name of the checkpoint; nnU-Net's .npz belong to that of the finished training.
        device: "cuda", "cpu" or "mps".
        processes: number of processes that measure; None means nnU-Net's default.
        part: which part of the cases to measure, from 0.
        parts: number of parts that the cases are split into.
        use_npz: whether nnU-Net's .npz are measured where they exist.
        boundary_mm: half width of the boundary scope; None means that of the trainer.
        trust: load the checkpoint as nnU-Net does, which can run code in it.
        calibrator: kind of the calibrator that the cases are judged by, from `posthoc.KINDS`.
    """

    checkpoint: str = FINAL
    device: str = "cuda"
    processes: int | None = None
    part: int = 0
    parts: int = 1
    use_npz: bool = True
    trust: bool = False
    boundary_mm: float | None = None
    calibrator: str = Temperature.kind

    def __post_init__(self) -> None:
        """Raise ValueError for a part that does not exist."""
        if not 0 <= self.part < self.parts:
            raise ValueError(
                f"expected -part_id from 0 to -num_parts - 1 = {self.parts - 1}, got {self.part}: parts are counted "
                f"from 0"
            )


def fold_numbers(model_folder: ModelFolder, folds: Sequence[Fold] | None, checkpoint: str = FINAL) -> list[Fold]:
    """Return the folds without repeats, checked to have the checkpoint; None means all folds that have it.

    Raises:
        ValueError: for a fold without the checkpoint, or if no fold has it.
    """
    if folds is None:
        names = [path.parent.name.removeprefix("fold_") for path in model_folder.path.glob(f"fold_*/{checkpoint}")]
        folds = [name if name == "all" else int(name) for name in sorted(names) if name == "all" or name.isdecimal()]
        if not folds:
            raise ValueError(
                f"expected a fold with {checkpoint} in {model_folder}, found none: train one, or name a fold with -f "
                f"to see which checkpoints it has"
            )
    numbers = [*dict.fromkeys(folds)]
    for fold in numbers:
        find_checkpoint(model_folder, fold, checkpoint)
    return numbers


def validate_fold(model_folder: ModelFolder, fold: int | str, options: Options) -> dict[str, Any] | None:
    """Measure the cases of a fold that are not measured yet, and write its calibration folder.

    Args:
        model_folder: nnU-Net's folder of the model, with `fold_X`.
        fold: number of the fold, or "all".
        options: how to measure.

    Returns:
        The content of summary.json, with NaN where the file has null; None if other parts are not measured yet.

    Raises:
        ValueError: if files are missing or do not belong together, or if a case cannot be measured.
        OSError: if the folder cannot be written, or memory runs out.
    """
    checkpoint = find_checkpoint(model_folder, fold, options.checkpoint)
    weights = read_weights(checkpoint, trust=options.trust)
    with remade_trainer(model_folder, fold, torch.device(options.device)) as trainer:
        _check_origin(weights, trainer, checkpoint)
        identity = describe_model(trainer, checkpoint.parent, state_fingerprint(weights.state), options.checkpoint)
        model = identity | model_folder.identity
        heads = Heads.of(trainer.label_manager)
        width = width_of_trainer(trainer) if options.boundary_mm is None else options.boundary_mm
        split = _split_of_training(trainer, checkpoint)
        cases = [*split.validation]
        check_cases(cases)
        labels = Path(trainer.preprocessed_dataset_folder_base) / "gt_segmentations"
        _check_labels(trainer, labels, cases)

        folder = checkpoint.parent / "validation" / CALIBRATION_FOLDER
        share = cases[options.part :: options.parts]
        remaining = [case for case in share if not is_measured(folder, case, model, width)]
        usable = options.use_npz and options.checkpoint == FINAL
        saved = [case for case in remaining if usable and _has_npz(folder.parent, case, checkpoint, heads, model)]
        others = [case for case in remaining if case not in saved]
        print(
            f"fold {fold}: {len(share)} of {len(cases)} cases, {len(share) - len(remaining)} measured before, "
            f"{len(saved)} with .npz, {len(others)} to predict with {options.checkpoint}",
            file=sys.stderr,
        )
        if others:
            check_inputs(trainer, others)
        _make_folder(folder)
        if saved:
            ending, reader = trainer.dataset_json["file_ending"], trainer.plans_manager.image_reader_writer_class()
            Predictions(folder.parent, labels, ending, reader, heads, model, tuple(saved), boundary_mm=width).save_all(
                folder, options.processes
            )
        if others:
            for case in others:
                failure_file(case_file(folder, case)).unlink(missing_ok=True)
            measure = ExportAndMeasure(export_for(trainer), folder, labels, heads, model, width)
            predict(trainer, weights, others, measure, options.processes)
            _check_results(folder, others, type(trainer).__name__)
    if not all(is_measured(folder, case, model, width) for case in cases if case not in share):
        return None
    return write_fold(folder, cases, heads, model, width, split, options.calibrator)


def _check_origin(weights: TrainedWeights, trainer: Any, checkpoint: Path) -> None:
    """Raise ValueError for a checkpoint of another fold, which would be judged by cases that it was trained on."""
    for what, found, wanted in (
        ("fold", weights.fold, trainer.fold),
        ("configuration", weights.configuration, trainer.configuration_name),
    ):
        if found is not None and str(found) != str(wanted):
            raise ValueError(
                f"expected a checkpoint of {what} {wanted} in {checkpoint}, found one of {what} {found}: put it back "
                f"into the folder that nnU-Net gave it, since that says which cases were held out"
            )


def _split_of_training(trainer: Any, checkpoint: Path) -> Split:
    """Return the split that the training recorded, or else that of splits_final.json."""
    prepared = Path(trainer.preprocessed_dataset_folder)
    if not prepared.is_dir() or not any(prepared.iterdir()):
        raise ValueError(f"expected preprocessed images in {prepared}, found none: {preprocess_command(trainer)}")
    if (recorded := read_split(checkpoint.parent)) is not None:
        return recorded
    split = Split.of(*trainer.do_split())
    folder, ending = checkpoint.parent / "validation", trainer.dataset_json["file_ending"]
    final = checkpoint.with_name(FINAL)
    trained = (final if final.is_file() else checkpoint).stat().st_mtime
    # nnU-Net has segmented the cases held out at that time; older files come from an earlier training in this folder
    known = [
        case
        for case in split.training
        if case not in split.validation and _is_newer(folder / f"{case}{ending}", trained)
    ]
    if known:
        raise ValueError(
            f"expected the splits that fold {trainer.fold} was trained with, found its training cases "
            f"{shortened(known)} among those validated in {folder} after the training: restore splits_final.json in "
            f"{trainer.preprocessed_dataset_folder_base}"
        )
    return split


def _is_newer(file: Path, time: float) -> bool:
    try:
        return file.stat().st_mtime >= time
    except OSError:
        return False


def _check_labels(trainer: Any, folder: Path, cases: list[str]) -> None:
    ending = trainer.dataset_json["file_ending"]
    if missing := [case for case in cases if not (folder / f"{case}{ending}").is_file()]:
        raise ValueError(
            f"expected a label map that ends with {ending} for each validation case in {folder}, found none of "
            f"{shortened(missing)}: {preprocess_command(trainer)}, or copy those of nnUNet_raw"
        )


def _has_npz(validation_folder: Path, case: str, checkpoint: Path, heads: Heads, model: dict[str, Any]) -> bool:
    """Return whether nnU-Net has completely written the probabilities of a case with the checkpoint's weights."""
    path = validation_folder / f"{case}.npz"
    try:
        written = path.stat().st_mtime
        # a time in the future shows a wrong clock: the file could be older than the checkpoint
        newer = checkpoint.stat().st_mtime <= written <= time.time() + _CLOCKS_DIFFER
        found = describe_npz(path)
        usable = found.shape[:1] == (len(heads.keys),) and found.dtype.kind == "f"  # integers are too coarse
        return newer and usable and not _measured_with_others(path, case, model)
    except (FileNotFoundError, ValueError):
        return False


def _measured_with_others(npz: Path, case: str, model: dict[str, Any]) -> bool:
    """Return whether the hook measured other weights with the .npz, as after nnUNetv2_train --val_best --npz."""
    folder = npz.parent / CALIBRATION_FOLDER
    measured = case_file(folder, case)
    if not _is_newer(measured, npz.stat().st_mtime):
        return False
    try:
        return not is_of_network(load_case(folder, case), model)
    except (FileNotFoundError, ValueError):  # ValueError: damaged, or in another format
        return False


def _make_folder(folder: Path) -> None:
    try:
        case_file(folder, "").parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"expected a folder that can be written, got {error.strerror} for {error.filename}: make room for the "
            f"results in {folder}"
        ) from error


def _check_results(folder: Path, cases: list[str], trainer: str) -> None:
    """Raise ValueError for cases that could not be measured, or were not exported."""
    failures = {}
    for case in cases:
        failed = failure_file(case_file(folder, case))
        if failed.is_file():
            reason = failed.read_text(encoding="utf-8").strip().splitlines()[-1].partition(": ")[2]
            failed.unlink()
            # a worker that outlived a killed run may have left the failure file
            if not case_file(folder, case).is_file():
                failures[case] = reason
    if failures:
        reasons = "; ".join(f"{case} ({reason})" for case, reason in list(failures.items())[:3])
        raise ValueError(
            f"expected to measure {len(cases)} cases, failed for {shortened(list(failures))}: {reasons}; fix this "
            f"and run the same command again, which keeps the measured cases"
        )
    if missing := [case for case in cases if not case_file(folder, case).is_file()]:
        raise ValueError(
            f"expected the validation of {trainer} to export each case as nnU-Net's does, found nothing of "
            f"{shortened(missing)}: predict them with nnUNetv2_predict --save_probabilities and use nnunet_calib "
            f"evaluate"
        )

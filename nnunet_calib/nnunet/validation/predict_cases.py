"""Prediction and measuring of validation cases with the validation of nnU-Net's trainer, without other output.

The cases go through the hook of the training (`ExportAndMeasure`), in the same worker processes and from the same
logits. nnU-Net's export is replaced by its conversion alone: it resamples to the image's grid, where the hook taps the
logits, and writes no file. A trainer with its own validation may read its exports, so it exports everything, into the
folder of `remade_trainer`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from nnunetv2.configuration import default_num_processes
from nnunetv2.inference.export_prediction import (
    convert_predicted_logits_to_segmentation_with_correct_shape,
    export_prediction_from_logits,
)
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from tqdm import tqdm

from nnunet_calib.io.processes import workers_end_with_us
from nnunet_calib.io.wording import shortened
from nnunet_calib.nnunet.checkpoints import TrainedWeights, unwrapped
from nnunet_calib.nnunet.validation.export_worker import ExportAndMeasure
from nnunet_calib.nnunet.validation.remade_trainer import preprocess_command
from nnunet_calib.nnunet.validation.replaced_names import EXPORT_NAME, replaced, validates_as_nnunet, watched_workers


def convert_only(
    predicted_array_or_file: Any,
    properties_dict: dict[str, Any],
    configuration_manager: Any,
    plans_manager: Any,
    dataset_json_dict_or_file: dict[str, Any],
    output_file_truncated: str,
    save_probabilities: bool = False,
    num_threads_torch: int = default_num_processes,
) -> None:
    """Convert logits as nnU-Net's `export_prediction_from_logits` does, with its arguments, but write no file."""
    convert_predicted_logits_to_segmentation_with_correct_shape(
        predicted_array_or_file,
        plans_manager,
        configuration_manager,
        plans_manager.get_label_manager(dataset_json_dict_or_file),
        properties_dict,
        num_threads_torch=num_threads_torch,
    )


def export_for(trainer: Any) -> Callable[..., None]:
    """Return the function that exports a case of this trainer before it is measured."""
    return convert_only if validates_as_nnunet(trainer) else export_prediction_from_logits


def check_inputs(trainer: Any, cases: list[str]) -> None:
    """Raise ValueError if a device or a file is missing that is needed to predict the cases."""
    if trainer.device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"expected a CUDA device to predict {len(cases)} cases with, found none: predict on another with -device "
            f"cpu or -device mps"
        )
    images = trainer.preprocessed_dataset_folder
    prepared = (trainer.dataset_class or infer_dataset_class(images)).get_identifiers(images)
    if missing := sorted({*cases} - {*prepared}):
        raise ValueError(
            f"expected preprocessed images in {images}, found none of {shortened(missing)}: "
            f"{preprocess_command(trainer)}"
        )
    if not trainer.is_cascaded:
        return
    stage = trainer.configuration_manager.previous_stage_name
    folder = Path(trainer.folder_with_segs_from_previous_stage)
    predicted = {path.stem for path in folder.iterdir()} if folder.is_dir() else set()
    if missing := sorted({*cases} - predicted):
        raise ValueError(
            f"expected segmentations of {stage} in {folder}, found none of {shortened(missing)}: train all folds of "
            f"{stage}, or write them again with nnUNetv2_train {trainer.plans_manager.dataset_name} {stage} FOLD -tr "
            f"{type(trainer).__name__} -p {trainer.plans_manager.plans_name} --val"
        )


def predict(
    trainer: Any, weights: TrainedWeights, cases: list[str], measure: ExportAndMeasure, processes: int | None = None
) -> None:
    """Predict and measure cases; afterwards each has a case file or a failure file.

    Args:
        trainer: from `remade_trainer`, not initialised.
        weights: weights of its network.
        cases: at least one case, sorted.
        measure: the function that measures them.
        processes: number of processes that export and measure; None means nnU-Net's default.

    Raises:
        ValueError: if the weights do not fit the network.
        OSError: if a process or the device ran out of memory.
    """
    _initialize(trainer, weights)
    trainer.do_split = lambda: ([], list(cases))
    trainer.dataset_class = _with_progress(trainer.dataset_class)
    trainer.print_to_log_file = lambda *args, **kwargs: None  # it would report segmentations that are not written
    trainer.measure_validation = False  # `measure` does
    names: dict[str, Any] = {
        EXPORT_NAME: measure,
        "default_num_processes": min(processes or default_num_processes, len(cases)),
        **watched_workers(),
    }
    if measure.export is convert_only:
        names["compute_metrics_on_folder"] = _no_metrics
    try:
        with workers_end_with_us(), replaced(trainer, **names):
            trainer.perform_actual_validation()
    except RuntimeError as error:
        if "background workers are no longer alive" in str(error) or isinstance(error, torch.cuda.OutOfMemoryError):
            raise OSError(
                f"expected memory to predict with and to measure {names['default_num_processes']} cases at once, ran "
                f"out of it or lost a process: use fewer processes with -np, and run the same command again, which "
                f"keeps the measured cases"
            ) from error
        raise


def _initialize(trainer: Any, weights: TrainedWeights) -> None:
    """Build the network with the checkpoint's weights, as nnUNetv2_predict does."""
    # otherwise nnU-Net would also predict the training cases for a cascade's next stage
    trainer.configuration_manager.configuration.pop("next_stage", None)
    trainer.initialize()
    trainer.inference_allowed_mirroring_axes = weights.mirroring_axes
    try:
        unwrapped(trainer.network).load_state_dict(weights.state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise ValueError(
            f"expected a checkpoint that fits the plans and the {trainer.label_manager.num_segmentation_heads} labels "
            f"or regions of the model's folder, found another network in it ({lines[-1].rstrip('.')}): restore the "
            f"plans.json and the dataset.json that it was trained with"
        ) from error


def _with_progress(dataset_class: Any) -> Any:
    """Return a subclass that shows a progress bar while its cases are iterated."""

    class Shown(dataset_class):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.identifiers: Any = tqdm(self.identifiers, desc="predicting", unit="case")

    return Shown


def _no_metrics(*args: Any, **kwargs: Any) -> dict[str, Any]:
    """Return an empty result in the form of nnU-Net's evaluation: there are no segmentations to evaluate."""
    return {"mean": {}, "foreground_mean": {"Dice": float("nan")}, "metric_per_case": []}

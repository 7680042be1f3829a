"""The validation hook: measures each case in the worker that exports it.

nnU-Net's `perform_actual_validation` hands the logits of each case to a pool of workers as a call of
`export_prediction_from_logits`. While it runs, `ExportAndMeasure` stands in for that function: it lets nnU-Net export
the case, keeps the logits that nnU-Net has resampled to the image's own grid, and measures them afterwards. So there is
no second inference, no second resampling and no .npz, and nnU-Net writes its own files.

A failure to measure never ends a training: it is logged with its traceback and with the command that repeats the
measurement, and nnU-Net continues. If it also stops nnU-Net's validation, for example when a worker runs out of memory
while it measures, the validation is run once more without measuring.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.training.logging import nnunet_logger

from nnunet_calib.io.wording import shortened
from nnunet_calib.metrics.catalogue import SCORES
from nnunet_calib.nnunet.boundary_width import width_of_trainer
from nnunet_calib.nnunet.checkpoints import weights_fingerprint
from nnunet_calib.nnunet.trained_model import describe_model, folder_of
from nnunet_calib.nnunet.training.ranks import is_first_process
from nnunet_calib.nnunet.training.recorded_split import collected_splits
from nnunet_calib.nnunet.validation.export_worker import ExportAndMeasure
from nnunet_calib.nnunet.validation.replaced_names import EXPORT_NAME, replaced, watched_workers
from nnunet_calib.results.fold_summary import write_fold
from nnunet_calib.results.heads import Heads
from nnunet_calib.results.layout import CALIBRATION_FOLDER, case_file, failure_file
from nnunet_calib.results.schemas import STAGES
from nnunet_calib.results.training_split import Split, read_split


def measured_validation(trainer: Any, validate: Callable[[], None]) -> None:
    """Run nnU-Net's validation and measure its cases; see the module's description.

    Args:
        trainer: an nnU-Net trainer with `CalibrationMixin`.
        validate: nnU-Net's own `perform_actual_validation`, with its arguments.
    """
    splits: list[Split] = []
    measure: ExportAndMeasure | None = None
    started = False
    try:
        with ExitStack() as stack:
            measure = _measure_for(trainer)
            splits = stack.enter_context(collected_splits(trainer))
            stack.enter_context(replaced(trainer, **{EXPORT_NAME: measure}, **watched_workers()))
            started = True
            validate()
    except Exception:
        if started and trainer.is_ddp:  # the other ranks would wait for this one forever
            raise
        reason = "it stopped while cases were measured" if started else "measuring cannot start"
        _log_failure(trainer, f"{traceback.format_exc()}nnU-Net's validation is run without measuring, since {reason}.")
        validate()
    if not is_first_process(trainer) or measure is None or not started:
        return
    folder = measure.calibration_folder
    try:
        split = _validated_split(trainer, splits)
        cases = split.validation
        failures = [case for case in cases if failure_file(case_file(folder, case)).is_file()]
        for case in failures:
            failed = failure_file(case_file(folder, case))
            _log_failure(trainer, f"case {case}:\n{failed.read_text(encoding='utf-8')}")
            failed.unlink()
        if lost := [case for case in cases if case not in failures and not case_file(folder, case).is_file()]:
            _log_failure(trainer, f"nothing was written for {shortened(lost)}: see the messages of the workers above")
        summary = write_fold(folder, cases, measure.heads, measure.model, measure.boundary_mm, split)
        _print_headline(trainer, summary, folder)
        with _loggers_that_may_fail(trainer, folder):
            _tell_loggers(trainer, summary)
        if trainer.draw_figures is not None:
            trainer.draw_figures(folder)
            with _loggers_that_may_fail(trainer, folder):
                _show_figures(trainer, folder)
    except Exception:
        _log_failure(trainer, traceback.format_exc())


def _validated_split(trainer: Any, splits: list[Split]) -> Split:
    """Return the validated cases with the recorded training cases: the splits may have changed in between."""
    split = splits[-1] if splits else Split((), ())
    recorded = read_split(Path(trainer.output_folder))
    return split if recorded is None else Split(recorded.training, split.validation)


def _measure_for(trainer: Any) -> ExportAndMeasure:
    """Return the function that exports and measures the cases of a trainer; create the folder it writes to."""
    folder = Path(trainer.output_folder) / "validation" / CALIBRATION_FOLDER
    case_file(folder, "").parent.mkdir(parents=True, exist_ok=True)
    return ExportAndMeasure(
        export=export_prediction_from_logits,
        calibration_folder=folder,
        labels_folder=Path(trainer.preprocessed_dataset_folder_base) / "gt_segmentations",
        heads=Heads.of(trainer.label_manager),
        model=describe_model(
            trainer, Path(trainer.output_folder), weights_fingerprint(trainer.network), trainer.loaded_checkpoint
        ),
        boundary_mm=width_of_trainer(trainer),
    )


def _print_headline(trainer: Any, summary: dict[str, Any], folder: Path) -> None:
    """Write the headline into nnU-Net's log."""
    temperature = summary["temperature"]["temperature"]
    before, after = (summary["metrics"][name]["image"] for name in STAGES)
    trainer.print_to_log_file(
        f"Mean Validation Calibration: ACE {before['foreground_mean']['ace']:.4f}, NLL {before['nll']:.4f}; with "
        f"temperature {temperature:.3f}: ACE {after['foreground_mean']['ace']:.4f}, NLL {after['nll']:.4f} ({folder})",
        also_print_to_console=True,
    )
    for note in summary["notes"]:
        trainer.print_to_log_file(note, also_print_to_console=True)
    if seen := summary["temperature"]["seen_in_training"]:
        trainer.print_to_log_file(
            f"WARNING: this network was trained on {len(seen)} of these {len(summary['metric_per_case'])} cases "
            f"({shortened(seen)}). Their errors, and the temperature, do not hold for new cases.",
            also_print_to_console=True,
        )


def _tell_loggers(trainer: Any, summary: dict[str, Any]) -> None:
    """Pass the headline's numbers to the trainer's other loggers."""
    for name, metrics in summary["metrics"].items():
        image = metrics["image"]
        for metric, value in (image["foreground_mean"] | {score: image[score] for score in SCORES}).items():
            trainer.logger.log_summary(f"final_val/calibration/{name}_{metric}", value)
    trainer.logger.log_summary("final_val/calibration/temperature", summary["temperature"]["temperature"])


def _show_figures(trainer: Any, folder: Path) -> None:
    """Show the figures of the fold and of its training in the run at Weights & Biases, if there is one."""
    for logger in getattr(trainer.logger, "loggers", ()):
        if isinstance(logger, nnunet_logger.WandbLogger):
            image = nnunet_logger.wandb.Image
            pictures = [*sorted(folder.glob("*.png")), *sorted(Path(trainer.output_folder).glob("progress_*.png"))]
            logger.run.log({f"calibration/{path.stem}": image(str(path)) for path in pictures})


@contextmanager
def _loggers_that_may_fail(trainer: Any, folder: Path) -> Iterator[None]:
    """Log that one of the trainer's loggers failed; the written results are complete."""
    try:
        yield
    except Exception:
        trainer.print_to_log_file(
            f"{folder} is complete, but one of the trainer's loggers failed. Reason:\n{traceback.format_exc()}"
        )


def _log_failure(trainer: Any, details: str) -> None:
    """Log that measuring failed, why, and how to repeat it."""
    with suppress(Exception):  # logging may fail too, as where a console cannot show a file's name
        device = "" if trainer.device.type == "cuda" else f" -device {trainer.device.type}"
        trainer.print_to_log_file(
            f"Calibration was not measured; nnU-Net's own results are complete. Reason:\n"
            f"{details}\n"
            f"To measure again: {folder_of(trainer).validate_command(trainer.fold)}{device}",
            also_print_to_console=True,
        )

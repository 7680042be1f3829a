"""Prediction of a folder of images: nnU-Net's segmentations, and maps of calibrated probabilities."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from nnunetv2.inference import predict_from_raw_data
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_calib.io.atomic_files import forget_leftovers
from nnunet_calib.io.processes import workers_end_with_us
from nnunet_calib.io.wording import reason
from nnunet_calib.nnunet.checkpoints import find_checkpoint, load_checkpoint, unwrapped, weights_fingerprint
from nnunet_calib.nnunet.deployment.bake import ENTRY
from nnunet_calib.nnunet.deployment.input_images import check_images
from nnunet_calib.nnunet.deployment.map_folder import MAPS_FOLDER, MapFolder
from nnunet_calib.nnunet.deployment.map_values import MapOptions
from nnunet_calib.nnunet.deployment.maps_of_logits import LOGITS, ExportWithMaps
from nnunet_calib.nnunet.validation.replaced_names import EXPORT_NAME
from nnunet_calib.posthoc.calibrator import Calibrator
from nnunet_calib.results.deployed_temperature import find_temperatures
from nnunet_calib.results.heads import Heads
from nnunet_calib.results.layout import FINAL, Fold, ModelFolder
from nnunet_calib.results.schemas import in_sample_note


def predict(
    model_folder: ModelFolder,
    folds: Sequence[Fold],
    images: Path,
    output: Path,
    options: MapOptions,
    *,
    temperature: str | None = None,
    average: str = LOGITS,
    checkpoint: str = FINAL,
    trust: bool = False,
    predictor: dict[str, Any] | None = None,
    previous_stage: Path | None = None,
    save_probabilities: bool = False,
    continued: bool = False,
    processes: tuple[int, int] = (3, 3),
    part: tuple[int, int] = (0, 1),
) -> Path:
    """Predict as nnUNetv2_predict does, and write the maps of each case into `output`/maps.

    Args:
        model_folder: of nnU-Net, with the folders `fold_X`.
        folds: whose networks are averaged.
        images: named as nnU-Net wants them, CASE_0000 and so on.
        output: for what nnU-Net writes.
        options: which maps, and how.
        temperature: as `find_temperatures`.
        average: of `predicted_maps.AVERAGES`.
        checkpoint: name of the file in each fold.
        trust: also read checkpoints that bring objects whose code then runs.
        predictor: arguments of nnU-Net's `nnUNetPredictor`.
        previous_stage: segmentations of the previous stage, for a cascade.
        save_probabilities: let nnU-Net write its .npz too; without a temperature, as always.
        continued: predict the cases that lack a segmentation or a map.
        processes: for preprocessing and for export; (0, 0) predicts without further processes.
        part: `part_id` and `num_parts`.

    Returns:
        The folder of the maps.

    Raises:
        ValueError: in one sentence, if the model, its temperature or an argument is not what is needed.
        OSError: if something cannot be read or written, or if nnU-Net stops.
    """
    check_images(model_folder, images, previous_stage)
    checkpoints = [load_checkpoint(find_checkpoint(model_folder, fold, checkpoint), trust=trust) for fold in folds]
    _refuse_baked(checkpoints, checkpoint, temperature)
    del checkpoints  # nnU-Net reads them itself
    temperatures = find_temperatures(model_folder, folds, temperature)
    for note in {in_sample_note(deployed.content): None for deployed in temperatures}:
        if note is not None:
            print(note, file=sys.stderr)
    nnunet = _load(model_folder, folds, checkpoint, predictor or {})
    weights = _fingerprints(nnunet, folds)
    for fold, deployed in zip(folds, temperatures, strict=True):
        deployed.check(model_folder, fold, weights[str(fold)])

    maps = MapFolder(
        output / MAPS_FOLDER,
        options,
        Heads.of(nnunet.label_manager),
        nnunet.plans_manager.image_reader_writer_class(),
        nnunet.dataset_json["file_ending"],
    )
    maps.claim(
        {
            "model": {**model_folder.identity, "checkpoint": checkpoint, "weights_sha256": weights},
            "step_size": nnunet.tile_step_size,
            "mirroring": nnunet.use_mirroring,
            "average": average if len(folds) > 1 else None,
            **_by_fold(folds, [deployed.calibrator for deployed in temperatures]),
            "temperature_from": {str(f): d.source for f, d in zip(folds, temperatures, strict=True)},
        }
    )
    nnunet.export = ExportWithMaps(
        export_prediction_from_logits, maps, tuple(deployed.calibrator for deployed in temperatures), average
    )
    previous = None if previous_stage is None else str(previous_stage)
    try:
        with workers_end_with_us(), exporting_through(nnunet.export):
            if processes == (0, 0):
                nnunet.predict_from_files_sequential(
                    str(images), str(output), save_probabilities, not continued, previous
                )
            else:
                nnunet.predict_from_files(
                    str(images), str(output), save_probabilities, not continued, *processes, previous, part[1], part[0]
                )
    except (RuntimeError, AssertionError, ValueError) as error:  # ValueError: a map without a meaning
        raise OSError(
            f"nnU-Net stopped ({reason(error)}): once that is mended, --continue_prediction predicts what is missing"
        ) from error
    return maps.folder


def _by_fold(folds: Sequence[Fold], calibrators: Sequence[Calibrator]) -> dict[str, dict[str, Any]]:
    """Return each value of the calibrators, by fold."""
    values: dict[str, dict[str, Any]] = {}
    for fold, calibrator in zip(folds, calibrators, strict=True):
        for name, value in calibrator.to_json().items():
            values.setdefault(name, {})[str(fold)] = value
    return values


def _refuse_baked(checkpoints: Sequence[dict[str, Any]], name: str, temperature: str | None) -> None:
    try:
        if float(temperature or "nan") == 1:
            return
    except ValueError:  # a file
        pass
    for checkpoint in checkpoints:
        if ENTRY in checkpoint:
            raise ValueError(
                f"expected checkpoints without a temperature, found {name} with one in its weights: use them as they "
                f"are with --temperature 1, or name the original with -chk, as in -chk {FINAL}"
            )


def _load(model_folder: ModelFolder, folds: Sequence[Fold], checkpoint: str, options: dict[str, Any]) -> MapPredictor:
    """nnU-Net's predictor with the networks of the folds."""
    nnunet = MapPredictor(**options)
    try:
        nnunet.initialize_from_trained_model_folder(str(model_folder), tuple(folds), checkpoint)
    except (RuntimeError, AssertionError, KeyError, ValueError) as error:  # ValueError: damaged JSON
        raise ValueError(
            f"expected a model that nnU-Net can load in {model_folder}, found one that it cannot ({reason(error)})"
        ) from error
    return nnunet


def _fingerprints(nnunet: MapPredictor, folds: Sequence[Fold]) -> dict[str, str]:
    """SHA-256 of the weights of each fold."""
    network = unwrapped(nnunet.network)  # of torch.compile
    found = {}
    for fold, weights in zip(folds, nnunet.list_of_parameters, strict=True):
        network.load_state_dict(weights)
        found[str(fold)] = weights_fingerprint(network)
    return found


def set_threads(device: str) -> torch.device:
    """The device, with PyTorch's threads as nnUNetv2_predict sets them for it; ValueError if there is no such GPU."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("expected a CUDA device to predict with, found none: predict with -device cpu or -device mps")
    if device == "cpu":
        torch.set_num_threads(os.cpu_count() or 1)
    elif device == "cuda":
        torch.set_num_threads(1)
        torch.set_num_interop_threads(1)
    return torch.device(device)


class MapPredictor(nnUNetPredictor):
    """nnU-Net's predictor; `export` must be set before it predicts."""

    export: ExportWithMaps
    list_of_parameters: Any

    def predict_logits_from_preprocessed_data(self, data: torch.Tensor) -> torch.Tensor:
        """nnU-Net's; (folds * C, *spatial) instead of the mean if the logits of each fold are wanted."""
        if not self.export.wants_folds:
            return super().predict_logits_from_preprocessed_data(data)
        networks = self.list_of_parameters
        try:
            logits = []
            for weights in networks:
                self.list_of_parameters = [weights]
                logits.append(super().predict_logits_from_preprocessed_data(data))
        finally:
            self.list_of_parameters = networks
        return torch.cat(logits)

    def _manage_input_and_output_lists(
        self,
        inputs: Any,
        output: Any,
        previous: Any = None,
        overwrite: bool = True,
        part_id: int = 0,
        num_parts: int = 1,
        save_probabilities: bool = False,
    ) -> tuple[list, list, list]:
        """nnU-Net's, but a case is finished only if its maps are there, which are written last."""
        every = super()._manage_input_and_output_lists(inputs, output, previous, True, part_id, num_parts)
        maps = self.export.maps
        endings = [maps.file_ending, *([".npz"] if save_probabilities else [])]
        pending = []
        for case in zip(*every, strict=True):
            name = Path(case[1]).name
            if overwrite or not (maps.complete(name) and all(Path(case[1] + e).is_file() for e in endings)):
                maps.forget(name)  # what is there afterwards is of this prediction
                forget_leftovers(Path(case[1]))
                pending.append(case)
        if not overwrite:
            print(f"{len(pending)} of {len(every[0])} cases are not finished")
        inputs, outputs, previous = ([case[i] for case in pending] for i in range(3))
        return inputs, outputs, previous


@contextmanager
def exporting_through(export: ExportWithMaps) -> Iterator[None]:
    """While this lasts, nnU-Net's predictors export through it: they look the function up at each call."""
    space = vars(predict_from_raw_data)
    space[EXPORT_NAME] = export
    try:
        yield
    finally:
        space[EXPORT_NAME] = export.export

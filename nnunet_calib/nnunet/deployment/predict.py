"""Prediction of a folder of images: nnU-Net's segmentations, and maps of calibrated probabilities."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.inference import predict_from_raw_data
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnunet_calib.decisions.conformal import LogInterval
from nnunet_calib.decisions.expected_of_folds import volume_limits
from nnunet_calib.decisions.promised_masks import Promises, read_promises
from nnunet_calib.io.atomic_files import forget_leftovers
from nnunet_calib.io.processes import workers_end_with_us
from nnunet_calib.io.wording import reason
from nnunet_calib.nnunet.checkpoints import find_checkpoint, load_checkpoint, unwrapped, weights_fingerprint
from nnunet_calib.nnunet.deployment.bake import ENTRY
from nnunet_calib.nnunet.deployment.case_table import CaseTable
from nnunet_calib.nnunet.deployment.input_images import check_images
from nnunet_calib.nnunet.deployment.map_folder import MAPS_FOLDER, MapFolder
from nnunet_calib.nnunet.deployment.map_values import FOLD_KINDS, MapOptions
from nnunet_calib.nnunet.deployment.maps_of_logits import LOGITS, ExportWithMaps
from nnunet_calib.nnunet.deployment.mask_folder import MASKS_FOLDER, MaskFolder
from nnunet_calib.nnunet.validation.replaced_names import EXPORT_NAME
from nnunet_calib.posthoc.calibrator import Calibrator
from nnunet_calib.results.deployed_temperature import Deployed, find_temperatures, model_difference
from nnunet_calib.results.heads import Heads
from nnunet_calib.results.layout import FINAL, Fold, ModelFolder
from nnunet_calib.results.schemas import in_sample_note


@dataclass(frozen=True)
class PredictionOptions:
    """How images are predicted.

    Attributes:
        maps: which maps are written, and how.
        temperature: see `find_temperatures`.
        calibrator: kind of calibrator, see `find_temperatures`.
        thresholds: a thresholds.json whose masks are written; None writes none.
        lesions: whether a table of lesions is written.
        average: what is averaged over the folds for the maps, one of `AVERAGES`.
        checkpoint: file name of the checkpoint in each fold.
        trust: also read checkpoints that hold objects whose code then runs.
        device: "cuda", "cpu" or "mps".
        step_size: step of nnU-Net's sliding window, as a fraction of the patch.
        mirroring: whether nnU-Net also averages over mirrored images.
        on_device: whether the logits of a case are kept on the GPU.
        previous_stage: segmentations of the previous stage, for a cascade.
        save_probabilities: whether nnU-Net also writes its .npz, without a temperature.
        continued: predict only the cases that lack a segmentation, a map or a mask.
        preprocessing_processes: number of processes that preprocess.
        export_processes: number of processes that export; with 0 for both, everything runs in one process.
        part: which part of the cases to predict, from 0.
        parts: number of parts that the cases are split into.
        verbose: whether nnU-Net prints details.
        progress: whether nnU-Net shows progress bars.
    """

    maps: MapOptions
    temperature: str | None = None
    calibrator: str | None = None
    thresholds: Path | None = None
    lesions: bool = False
    average: str = LOGITS
    checkpoint: str = FINAL
    trust: bool = False
    device: str = "cuda"
    step_size: float = 0.5
    mirroring: bool = True
    on_device: bool = True
    previous_stage: Path | None = None
    save_probabilities: bool = False
    continued: bool = False
    preprocessing_processes: int = 3
    export_processes: int = 3
    part: int = 0
    parts: int = 1
    verbose: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        """Raise ValueError for numbers out of range, or that do not go together."""
        if not 0 <= self.part < self.parts:
            raise ValueError(
                f"expected -part_id from 0 to {self.parts - 1} with -num_parts {self.parts}, got {self.part}: count "
                f"from 0"
            )
        if not 0 < self.step_size <= 1:
            raise ValueError(f"expected -step_size above 0 and at most 1, got {self.step_size}: nnU-Net's own is 0.5")
        if not self.one_process and min(self.preprocessing_processes, self.export_processes) < 1:
            raise ValueError(
                f"expected -npp and -nps of at least 1, or 0 for both, got {self.preprocessing_processes} and "
                f"{self.export_processes}"
            )
        if self.one_process and self.parts > 1:
            raise ValueError(
                "expected processes for a part of the cases, got -npp 0 -nps 0, with which nnU-Net predicts all of "
                "them: give more, or leave out -num_parts"
            )

    @property
    def one_process(self) -> bool:
        """Whether everything runs in one process."""
        return self.preprocessing_processes == self.export_processes == 0


def predict(
    model_folder: ModelFolder, folds: Sequence[Fold], images: Path, output: Path, options: PredictionOptions
) -> Path:
    """Predict as nnUNetv2_predict does, and write the maps of each case into `output`/maps, its masks beside them.

    Args:
        model_folder: nnU-Net's folder of the model, with `fold_X`.
        folds: folds whose networks are averaged.
        images: folder of images with nnU-Net's names, CASE_0000 and so on.
        output: folder for nnU-Net's files.
        options: how to predict.

    Returns:
        The folder of the maps.

    Raises:
        ValueError: if the model, its temperature or an argument is unfit.
        OSError: if a file cannot be read or written, or if nnU-Net stops.
    """
    if len(folds) == 1 and (of_folds := [kind for kind in options.maps.kinds if kind in FOLD_KINDS]):
        raise ValueError(
            f"expected several folds for --maps {' '.join(of_folds)}, got fold {folds[0]} alone: name more with -f, or "
            f"leave out these maps"
        )
    device = set_threads(options.device)
    check_images(model_folder, images, options.previous_stage)
    _check_checkpoints(model_folder, folds, options)
    temperatures = find_temperatures(model_folder, folds, options.temperature, options.calibrator)
    for note in {in_sample_note(deployed.content): None for deployed in temperatures}:
        if note is not None:
            print(note, file=sys.stderr)
    nnunet = _load(model_folder, folds, options, device)
    weights = _fingerprints(nnunet, folds)
    for fold, deployed in zip(folds, temperatures, strict=True):
        deployed.check(model_folder, fold, weights[str(fold)])

    calibrators = tuple(deployed.calibrator for deployed in temperatures)
    heads, reader = Heads.of(nnunet.label_manager), nnunet.plans_manager.image_reader_writer_class()
    ending = nnunet.dataset_json["file_ending"]
    limits, limits_from = _volume_limits(model_folder, temperatures)
    cases = CaseTable(output / MAPS_FOLDER, heads, reader, limits, limits_from, options.lesions)
    maps = MapFolder(output / MAPS_FOLDER, options.maps, heads, reader, ending, cases)
    masks = None
    if options.thresholds is not None:
        promises = read_promises(options.thresholds, heads)
        for fold in folds:
            _check_promises(promises, model_folder, fold, weights[str(fold)])
        masks = MaskFolder(output / MASKS_FOLDER, promises, heads, reader, ending)
    predictor = {
        "model": {**model_folder.identity, "checkpoint": options.checkpoint, "weights_sha256": weights},
        "step_size": nnunet.tile_step_size,
        "mirroring": nnunet.use_mirroring,
    }
    maps.claim(
        {
            **predictor,
            "average": options.average if len(folds) > 1 else None,
            **_by_fold(folds, calibrators),
            "temperature_from": {str(f): d.source for f, d in zip(folds, temperatures, strict=True)},
        }
    )
    if masks is not None:
        masks.claim(predictor)
    nnunet.export = ExportWithMaps(export_prediction_from_logits, maps, calibrators, options.average, masks)
    try:
        with workers_end_with_us(), exporting_through(nnunet.export):
            _run(nnunet, images, output, options)
    except (RuntimeError, AssertionError, ValueError) as error:  # ValueError: a map without a meaning
        raise OSError(
            f"nnU-Net stopped ({reason(error)}): fix this and rerun with --continue_prediction, which predicts what is "
            f"missing"
        ) from error
    cases.assemble()
    return maps.folder


def _volume_limits(
    model_folder: ModelFolder, temperatures: Sequence[Deployed]
) -> tuple[dict[str, LogInterval], str | None]:
    """Return the intervals beside the one temperature of the cross-validation, and that temperature's file."""
    sources = {deployed.source for deployed in temperatures}
    source, *others = sources
    if source is not None and not others and Path(source).name == "temperature.json":
        limits = volume_limits((model_folder.path / source).parent)
        return limits, source if limits else None
    return {}, None


def _run(nnunet: MapPredictor, images: Path, output: Path, options: PredictionOptions) -> None:
    """Let nnU-Net predict the images."""
    previous = None if options.previous_stage is None else str(options.previous_stage)
    overwrite = not options.continued
    if options.one_process:
        nnunet.predict_from_files_sequential(
            str(images), str(output), options.save_probabilities, overwrite, folder_with_segs_from_prev_stage=previous
        )
        return
    nnunet.predict_from_files(
        str(images),
        str(output),
        options.save_probabilities,
        overwrite,
        num_processes_preprocessing=options.preprocessing_processes,
        num_processes_segmentation_export=options.export_processes,
        folder_with_segs_from_prev_stage=previous,
        num_parts=options.parts,
        part_id=options.part,
    )


def _by_fold(folds: Sequence[Fold], calibrators: Sequence[Calibrator]) -> dict[str, dict[str, Any]]:
    """Return each JSON value of the calibrators, by fold."""
    values: dict[str, dict[str, Any]] = {}
    for fold, calibrator in zip(folds, calibrators, strict=True):
        for name, value in calibrator.to_json().items():
            values.setdefault(name, {})[str(fold)] = value
    return values


def _check_promises(promises: Promises, model_folder: ModelFolder, fold: Fold, weights_sha256: str) -> None:
    """Raise ValueError, in one sentence, for thresholds that were chosen for another model."""
    if difference := model_difference(promises.model, model_folder, fold, weights_sha256):
        raise ValueError(
            f"expected thresholds of {difference.expected}, found those of {difference.found} in {promises.file}: "
            f"choose them for this model with nnunet_calib thresholds"
        )


def _check_checkpoints(model_folder: ModelFolder, folds: Sequence[Fold], options: PredictionOptions) -> None:
    """Read the checkpoints safely, before nnU-Net does, and refuse a second temperature for those that hold one."""
    files = [find_checkpoint(model_folder, fold, options.checkpoint) for fold in folds]
    checkpoints = [load_checkpoint(file, trust=options.trust) for file in files]
    with suppress(ValueError):  # the temperature may be the name of a file
        if float(options.temperature or "nan") == 1:
            return
    if any(ENTRY in checkpoint for checkpoint in checkpoints):
        raise ValueError(
            f"expected checkpoints without a temperature, found {options.checkpoint} with one in its weights: use them "
            f"as they are with --temperature 1, or name the original with -chk, as in -chk {FINAL}"
        )


def _load(
    model_folder: ModelFolder, folds: Sequence[Fold], options: PredictionOptions, device: torch.device
) -> MapPredictor:
    """Return nnU-Net's predictor with the networks of the folds."""
    nnunet = MapPredictor(
        tile_step_size=options.step_size,
        use_mirroring=options.mirroring,
        perform_everything_on_device=options.on_device,
        device=device,
        verbose=options.verbose,
        verbose_preprocessing=options.verbose,
        allow_tqdm=options.progress,
    )
    try:
        nnunet.initialize_from_trained_model_folder(str(model_folder), tuple(folds), options.checkpoint)
    except (RuntimeError, AssertionError, KeyError, ValueError) as error:  # ValueError: damaged JSON
        raise ValueError(
            f"expected a model that nnU-Net can load in {model_folder}, found one that it cannot ({reason(error)})"
        ) from error
    return nnunet


def _fingerprints(nnunet: MapPredictor, folds: Sequence[Fold]) -> dict[str, str]:
    """Return the SHA-256 of the weights of each fold."""
    network = unwrapped(nnunet.network)  # it may be compiled
    found = {}
    for fold, weights in zip(folds, nnunet.list_of_parameters, strict=True):
        network.load_state_dict(weights)
        found[str(fold)] = weights_fingerprint(network)
    return found


def set_threads(device: str) -> torch.device:
    """Set PyTorch's threads as nnUNetv2_predict does, and return the device; ValueError without a GPU for "cuda"."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("expected a CUDA device to predict with, found none: predict with -device cpu or -device mps")
    if device == "cpu":
        torch.set_num_threads(os.cpu_count() or 1)
    elif device == "cuda":
        torch.set_num_threads(1)
        torch.set_num_interop_threads(1)
    return torch.device(device)


class MapPredictor(nnUNetPredictor):
    """nnU-Net's predictor, with maps; set `export` before it predicts."""

    export: ExportWithMaps
    list_of_parameters: Any

    def predict_logits_from_preprocessed_data(self, data: torch.Tensor) -> torch.Tensor:
        """Return nnU-Net's mean logits, or those of each fold, (folds * C, *spatial), if the maps need them."""
        if not self.export.wants_folds:
            mean: torch.Tensor = super().predict_logits_from_preprocessed_data(data)
            return mean
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
    ) -> tuple[list[Any], list[Any], list[Any]]:
        """Return nnU-Net's lists of the cases to predict.

        A case is finished only if its masks and maps, which are written last, exist.
        """
        every = super()._manage_input_and_output_lists(inputs, output, previous, True, part_id, num_parts)
        endings = [self.export.maps.file_ending, *([".npz"] if save_probabilities else [])]
        pending = []
        for case in zip(*every, strict=True):
            name = Path(case[1]).name
            if overwrite or not (self.export.complete(name) and all(Path(case[1] + e).is_file() for e in endings)):
                self.export.forget(name)  # whatever exists afterwards comes from this prediction
                forget_leftovers(Path(case[1]))
                pending.append(case)
        if not overwrite:
            print(f"{len(pending)} of {len(every[0])} cases are not finished")
        inputs, outputs, previous = ([case[i] for case in pending] for i in range(3))
        return inputs, outputs, previous


@contextmanager
def exporting_through(export: ExportWithMaps) -> Iterator[None]:
    """Let nnU-Net's predictors export through `export`: they look the function up at each call."""
    space = vars(predict_from_raw_data)
    space[EXPORT_NAME] = export
    try:
        yield
    finally:
        space[EXPORT_NAME] = export.export

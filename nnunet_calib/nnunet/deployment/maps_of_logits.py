"""The work of nnU-Net's export worker at prediction: the export itself, then the masks and maps of the case.

With z_f the calibrated logits of fold f on the image's grid, z / T for a temperature, the maps show

    average "logits"           softmax(mean over f of z_f)
    average "probabilities"    mean over f of softmax(z_f)

(sigmoid for regions). Either way the segmentation is nnU-Net's, of the mean of the uncalibrated logits.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_calib.io.atomic_files import hidden_folder
from nnunet_calib.measuring.volume import Probabilities, slab_slices
from nnunet_calib.nnunet.deployment.map_folder import MapFolder
from nnunet_calib.nnunet.deployment.mask_folder import MaskFolder
from nnunet_calib.nnunet.export_tap import LazyProbabilities, TappedConfiguration, on_image_axes
from nnunet_calib.posthoc import IDENTITY
from nnunet_calib.posthoc.calibrator import Calibrator

LOGITS, MEAN_PROBABILITIES = AVERAGES = ("logits", "probabilities")


@dataclass(frozen=True)
class ExportWithMaps:
    """Picklable stand-in for nnU-Net's `export_prediction_from_logits`.

    Attributes:
        export: the function it stands in for.
        maps: folder of the maps.
        calibrators: calibrators of the folds.
        average: one of `AVERAGES`.
        masks: folder of the masks; None writes none.
    """

    export: Callable[..., None]
    maps: MapFolder
    calibrators: tuple[Calibrator, ...]
    average: str = LOGITS
    masks: MaskFolder | None = None

    def complete(self, case: str) -> bool:
        """Return whether all maps and masks of a case exist."""
        return self.maps.complete(case) and (self.masks is None or self.masks.complete(case))

    def forget(self, case: str) -> None:
        """Remove the maps and masks of a case."""
        self.maps.forget(case)
        if self.masks is not None:
            self.masks.forget(case)

    @property
    def wants_folds(self) -> bool:
        """Whether the logits of each fold are needed, (folds * C, *spatial), rather than their mean (C, *spatial)."""
        if self.average == MEAN_PROBABILITIES:
            return len(self.calibrators) > 1
        return len({*self.calibrators}) > 1

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Export as nnU-Net does, then write masks and maps: if these are complete, so are nnU-Net's files."""
        call = inspect.signature(self.export).bind(*args, **kwargs)
        arguments = call.arguments
        tapped = arguments["configuration_manager"] = TappedConfiguration(arguments["configuration_manager"])
        logits: list[Any] = [arguments["predicted_array_or_file"]]
        if self.wants_folds:
            logits = _split(logits[0], len(self.calibrators))
            arguments["predicted_array_or_file"] = mean_as_nnunet(logits)
        output = Path(arguments["output_file_truncated"])
        with hidden_folder(output.parent, output.name) as folder:  # a kill could leave nnU-Net's files half written
            arguments["output_file_truncated"] = str(folder / output.name)
            self.export(*call.args, **call.kwargs)
            for file in sorted(folder.iterdir()):
                os.replace(file, output.with_name(file.name))
        dataset = arguments["dataset_json_dict_or_file"]
        segmentation = output.with_name(f"{output.name}{dataset['file_ending']}")
        labels = arguments["plans_manager"].get_label_manager(dataset)
        nonlinearity, regions = labels.apply_inference_nonlin, labels.has_regions

        def on_image(resampled: Any, calibrator: Calibrator) -> tuple[LazyProbabilities, Any, Any]:
            on_axes, shape, crop = on_image_axes(resampled, arguments)
            calibrated = partial(calibrator.logits, regions=regions)
            return LazyProbabilities(on_axes, lambda z: nonlinearity(calibrated(z.float()))), shape, crop

        if self.masks is not None:  # of the mean logits in any case, like the segmentation
            uncalibrated, shape, crop = on_image(tapped.logits, IDENTITY)
            self.masks.write(output.name, uncalibrated, segmentation, shape, crop)
            del uncalibrated
        if not self.wants_folds:
            logits = [tapped.logits]
        tapped.logits = arguments["predicted_array_or_file"] = None  # memory

        probabilities: Probabilities
        if not self.wants_folds:
            probabilities, shape, crop = on_image(logits[0], self.calibrators[0])
        elif self.average == LOGITS:
            probabilities, shape, crop = on_image(tapped.resample_alike(self._mean(logits, regions)), IDENTITY)
        else:
            probabilities, shape, crop = on_image(tapped.resample_alike(logits[0]), self.calibrators[0])
            mean = np.zeros(probabilities.shape, np.float32)
            _add(mean, probabilities, 1 / len(logits))
            for z, calibrator in zip(logits[1:], self.calibrators[1:], strict=True):
                _add(mean, on_image(tapped.resample_alike(z), calibrator)[0], 1 / len(logits))
            probabilities = mean
        self.maps.write(output.name, probabilities, segmentation, shape=shape, crop=crop)

    def _mean(self, logits: Sequence[Any], regions: bool) -> Any:
        """Return the float32 mean of the calibrated logits over folds, as a tensor or array like nnU-Net's."""
        mean = torch.zeros(tuple(logits[0].shape))
        for z, calibrator in zip(logits, self.calibrators, strict=True):
            mean += calibrator.logits(torch.as_tensor(z).float(), regions=regions)
        mean /= len(logits)
        return mean if isinstance(logits[0], torch.Tensor) else mean.numpy()


def mean_as_nnunet(logits: Sequence[Any]) -> Any:
    """Return the mean over folds in nnU-Net's own steps and the logits' own precision: the same bits."""
    mean = torch.as_tensor(logits[0]).clone()
    for z in logits[1:]:
        mean += torch.as_tensor(z)
    mean /= len(logits)
    return mean if isinstance(logits[0], torch.Tensor) else mean.numpy()


def _split(logits: Any, folds: int) -> list[Any]:
    channels = len(logits) // folds
    return [logits[start : start + channels] for start in range(0, len(logits), channels)]


def _add(total: np.ndarray, probabilities: Probabilities, weight: float) -> None:
    """Add weighted probabilities in place, slab by slab."""
    for slab in slab_slices(total.shape[1:], len(total)):
        total[:, slab] += np.float32(weight) * probabilities[:, slab]

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

import torch

from nnunet_calib.io.atomic_files import hidden_folder
from nnunet_calib.measuring.volume import Probabilities
from nnunet_calib.nnunet.deployment.fold_statistics import FoldStatistics
from nnunet_calib.nnunet.deployment.map_folder import MapFolder
from nnunet_calib.nnunet.deployment.map_values import FOLD_KINDS, MUTUAL_INFORMATION, VARIANCE
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
        return not self._takes_nnunets_mean or (len(self.calibrators) > 1 and self._shows(*FOLD_KINDS))

    @property
    def _takes_nnunets_mean(self) -> bool:
        """Whether the maps are of nnU-Net's own mean of the logits, with one calibrator."""
        return len({*self.calibrators}) == 1 and (self.average == LOGITS or len(self.calibrators) == 1)

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

        _, shape, crop = on_image_axes(tapped.logits, arguments)

        def on_image(resampled: Any, calibrator: Calibrator) -> LazyProbabilities:
            on_axes, *_ = on_image_axes(resampled, arguments)
            calibrated = partial(calibrator.logits, regions=regions)
            return LazyProbabilities(on_axes, lambda z: nonlinearity(calibrated(z.float())))

        if self.masks is not None:  # of the mean logits in any case, like the segmentation
            self.masks.write(output.name, on_image(tapped.logits, IDENTITY), segmentation, shape, crop)
        mean_logits = tapped.logits if self._takes_nnunets_mean else None
        tapped.logits = arguments["predicted_array_or_file"] = None  # memory
        logits = logits if self.wants_folds else []
        statistics = self._statistics([*zip(logits, self.calibrators, strict=False)], tapped, on_image, regions)
        probabilities: Probabilities
        if self._takes_nnunets_mean:
            probabilities = on_image(mean_logits, self.calibrators[0])
        elif statistics is not None and self.average == MEAN_PROBABILITIES:
            probabilities = statistics.mean
        else:
            probabilities = on_image(tapped.resample_alike(self._mean(logits, regions)), IDENTITY)
        self.maps.write(output.name, probabilities, segmentation, shape=shape, crop=crop, folds=statistics)

    def _statistics(
        self,
        folds: Sequence[tuple[Any, Calibrator]],
        tapped: TappedConfiguration,
        on_image: Callable[[Any, Calibrator], Probabilities],
        regions: bool,
    ) -> FoldStatistics | None:
        """Return mean and disagreement of the folds, resampled one after the other; None if no map needs them.

        Args:
            folds: logits and calibrator of each fold; empty where nnU-Net's mean is enough.
            tapped: knows how nnU-Net resamples.
            on_image: returns the probabilities of resampled logits.
            regions: whether each channel is a region.
        """
        if not folds or not (self.average == MEAN_PROBABILITIES or self._shows(*FOLD_KINDS)):
            return None
        variance, entropies = self._shows(VARIANCE), self._shows(MUTUAL_INFORMATION)
        statistics = FoldStatistics(regions=regions, variance=variance, entropies=entropies)
        for z, calibrator in folds:
            statistics.add(on_image(tapped.resample_alike(z), calibrator))
        return statistics

    def _shows(self, *kinds: str) -> bool:
        """Return whether a map of one of these kinds is written."""
        return any(kind in self.maps.options.kinds for kind in kinds)

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

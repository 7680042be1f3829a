"""What runs in nnU-Net's export worker: the export itself, then the measuring of the case."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_calib.io.atomic_files import forget, replaced_when_complete
from nnunet_calib.nnunet.saved_probabilities import measure_case
from nnunet_calib.nnunet.labels import Heads
from nnunet_calib.results.layout import case_file, failure_file
from nnunet_calib.measuring.scopes import BOUNDARY_MM
from nnunet_calib.measuring.case_statistics import CaseStatistics
from nnunet_calib.threads import one_thread


class TappedConfiguration:
    """nnU-Net's configuration manager, which keeps the logits that it resamples to the image's grid.

    Attributes:
        logits: the last that were resampled.
        resample_alike: resamples other logits as nnU-Net has resampled those.
    """

    def __init__(self, configuration: Any) -> None:
        self._configuration = configuration
        self.logits: Any = None
        self.resample_alike: Callable[[Any], Any]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._configuration, name)

    def resampling_fn_probabilities(self, logits: Any, *args: Any, **kwargs: Any) -> Any:
        """nnU-Net's."""
        resample = self._configuration.resampling_fn_probabilities
        self.resample_alike = lambda other: resample(other, *args, **kwargs)
        self.logits = self.resample_alike(logits)
        return self.logits


class LazyProbabilities:
    """Probabilities of logits, computed where they are asked for, so that they never exist for the whole volume."""

    def __init__(self, logits: torch.Tensor, nonlinearity: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._logits = logits
        self._nonlinearity = nonlinearity
        self.shape = tuple(logits.shape)

    def __getitem__(self, key: Any) -> np.ndarray:
        return self._nonlinearity(self._logits[key]).numpy()


@dataclass(frozen=True)
class ExportAndMeasure:
    """Picklable stand-in for nnU-Net's `export_prediction_from_logits`.

    Attributes:
        export: the function it stands for.
        calibration_folder: where the case files go.
        labels_folder: the ground truth, one file per case.
        heads: of the network.
        model: what identifies the network.
        boundary_mm: half width of the boundary scope.
    """

    export: Callable[..., None]
    calibration_folder: Path
    labels_folder: Path
    heads: Heads
    model: dict[str, Any]
    boundary_mm: float = BOUNDARY_MM

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """Export as nnU-Net does, then measure; only the export can raise."""
        call = inspect.signature(self.export).bind(*args, **kwargs)
        tapped = TappedConfiguration(call.arguments["configuration_manager"])
        call.arguments["configuration_manager"] = tapped
        self.export(*call.args, **call.kwargs)
        case = Path(call.arguments["output_file_truncated"]).name
        target = case_file(self.calibration_folder, case)
        try:
            # an old file must not be taken for this case's if measuring fails
            forget(target)
            self.measure(case, tapped.logits, call.arguments).save(target)
        except Exception:
            try:
                with replaced_when_complete(failure_file(target)) as temporary:
                    # names of files that are no text in this system's encoding cannot be written as they are
                    temporary.write_text(traceback.format_exc(), encoding="utf-8", errors="backslashreplace")
            except OSError:  # the folder itself cannot be written: the missing case file says enough
                traceback.print_exc()

    @one_thread()
    def measure(self, case: str, logits: Any, arguments: dict[str, Any]) -> CaseStatistics:
        """Statistics of one case from the logits on the grid of the cropped image."""
        plans, dataset = arguments["plans_manager"], arguments["dataset_json_dict_or_file"]
        logits, _, crop = on_image_axes(logits, arguments)
        return measure_case(
            LazyProbabilities(logits, plans.get_label_manager(dataset).apply_inference_nonlin),
            self.labels_folder / f"{case}{dataset['file_ending']}",
            plans.image_reader_writer_class(),
            self.heads,
            spacing=arguments["properties_dict"]["spacing"],
            boundary_mm=self.boundary_mm,
            crop=crop,
            case=case,
            model=self.model,
        )


def on_image_axes(
    array: Any, arguments: dict[str, Any]
) -> tuple[torch.Tensor, tuple[int, ...], tuple[slice, ...]]:
    """Revert nnU-Net's transposition.

    Args:
        array: (C, *spatial) on the grid of the cropped image, as nnU-Net's network has its axes.
        arguments: of `export_prediction_from_logits`, by name.

    Returns:
        A view of the array on the axes of nnU-Net's reader, the shape of the whole image, and where the array lies in
        it.
    """
    properties, back = arguments["properties_dict"], arguments["plans_manager"].transpose_backward
    shape, box = properties["shape_before_cropping"], properties["bbox_used_for_cropping"]
    return (
        torch.as_tensor(array).permute(0, *(axis + 1 for axis in back)),
        tuple(int(shape[axis]) for axis in back),
        tuple(slice(*map(int, box[axis])) for axis in back),
    )

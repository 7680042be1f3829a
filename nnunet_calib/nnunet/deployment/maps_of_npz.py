"""Maps of predictions that nnU-Net has already made: from their .npz, in the geometry of the segmentation beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_calib.io.wording import last_line
from nnunet_calib.measuring.volume import Probabilities, check_range, check_sums
from nnunet_calib.nnunet.deployment.map_folder import MapFolder
from nnunet_calib.nnunet.deployment.map_values import MapOptions
from nnunet_calib.nnunet.predictions import Predictions, for_each_case
from nnunet_calib.nnunet.saved_probabilities import SavedProbabilities
from nnunet_calib.posthoc.temperature import apply_temperature


class _Calibrated:
    """Probabilities with a temperature, computed where they are asked for.

    Zeros stay zeros. Nearly all lie outside nnU-Net's crop, where no logits were divided by the temperature either.
    """

    def __init__(self, probabilities: Probabilities, temperature: float, *, regions: bool) -> None:
        self._probabilities, self._temperature, self._regions = probabilities, temperature, regions
        self.shape = probabilities.shape

    def __getitem__(self, key: Any) -> np.ndarray:
        p = self._probabilities[key]
        check_range(p)  # a temperature would make numbers in [0, 1] of others
        if not self._regions:
            check_sums(p)
        if self._temperature == 1:
            return p
        calibrated = apply_temperature(p, self._temperature, regions=self._regions)
        if (impossible := p == 0).any():
            calibrated[impossible] = 0
            if not self._regions:
                calibrated /= calibrated.sum(0)
        return calibrated


@dataclass(frozen=True)
class _Export:
    """Writes the maps of one case; picklable."""

    predictions: Predictions
    maps: MapFolder
    temperature: float

    def __call__(self, case: str) -> None:
        predictions = self.predictions
        npz = predictions.folder / f"{case}.npz"
        segmentation = predictions.labels_folder / f"{case}{predictions.file_ending}"
        regions = predictions.heads.regions is not None
        probabilities = SavedProbabilities(npz, regions=regions)
        try:
            size = predictions.reader.read_seg(str(segmentation))[0].shape[1:]
        except Exception as error:  # each reader has its own
            raise ValueError(
                f"case {case}: expected a segmentation that nnU-Net's {type(predictions.reader).__name__} can read, "
                f"found {segmentation} unreadable ({last_line(error)})"
            ) from error
        if probabilities.shape[1:] != size:
            raise ValueError(
                f"case {case}: expected probabilities (C, *spatial) on the grid {size} of {segmentation}, found shape "
                f"{probabilities.shape} in {npz}: predict the case again with --save_probabilities"
            )
        self.maps.write(case, _Calibrated(probabilities, self.temperature, regions=regions), segmentation)


def export_maps(
    predictions: Predictions,
    folder: Path,
    options: MapOptions,
    temperature: dict[str, Any] | None = None,
    processes: int | None = None,
) -> None:
    """Write the maps of all cases, with a progress bar; each file is complete or not there.

    Args:
        predictions: with the segmentations as labels: `find_predictions(folder, None)`. No .pkl is read.
        folder: for the maps.
        options: which maps, and how.
        temperature: from `given_temperature`; None leaves the probabilities as they are.
        processes: how many cases are exported at once; None means nnU-Net's default.

    Raises:
        ValueError: if a case's files are damaged or do not belong together, or as `MapFolder.claim`.
        OSError: if the folder cannot be written, or memory runs out.
    """
    maps = MapFolder(folder, options, predictions.heads, predictions.reader, predictions.file_ending)
    value = 1.0 if temperature is None else temperature["temperature"]
    maps.claim({"model": predictions.model, "temperature": value})
    for_each_case(_Export(predictions, maps, value), predictions.cases, processes, "exporting")

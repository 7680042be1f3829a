"""Maps and masks of existing predictions: from their .npz, in the geometry of the segmentation beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_calib.decisions.promised_masks import read_promises
from nnunet_calib.io.wording import last_line
from nnunet_calib.nnunet.deployment.map_folder import MapFolder
from nnunet_calib.nnunet.deployment.map_values import MapOptions
from nnunet_calib.nnunet.deployment.mask_folder import MaskFolder
from nnunet_calib.nnunet.predictions import Predictions, for_each_case
from nnunet_calib.nnunet.saved_probabilities import CalibratedProbabilities, SavedProbabilities
from nnunet_calib.posthoc import IDENTITY, from_json
from nnunet_calib.posthoc.calibrator import Calibrator


@dataclass(frozen=True)
class _Export:
    """Picklable function that writes the maps of one case, and its masks if there are any."""

    predictions: Predictions
    maps: MapFolder
    calibrator: Calibrator
    masks: MaskFolder | None

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
        if self.masks is not None:
            uncalibrated = CalibratedProbabilities(probabilities, IDENTITY, regions=regions)
            self.masks.write(case, uncalibrated, segmentation, size, tuple(slice(0, n) for n in size))
        self.maps.write(case, CalibratedProbabilities(probabilities, self.calibrator, regions=regions), segmentation)


def export_maps(
    predictions: Predictions,
    folder: Path,
    options: MapOptions,
    temperature: dict[str, Any] | None = None,
    processes: int | None = None,
    masks: tuple[Path, Path] | None = None,
) -> None:
    """Write the maps of all cases, and masks, with a progress bar; each file is either complete or absent.

    Args:
        predictions: predictions with the segmentations as labels: `find_predictions(folder, None)`. No .pkl is read.
        folder: folder for the maps.
        options: which maps are written, and how.
        temperature: from `given_temperature`; None leaves the probabilities unchanged.
        processes: number of cases exported at once; None means nnU-Net's default.
        masks: a thresholds.json, and the folder for the masks that keep its promises; None writes none.

    Raises:
        ValueError: if a case's files are damaged or do not belong together, or as for `MapFolder.claim` and
            `read_promises`.
        OSError: if the folder cannot be written, or memory runs out.
    """
    maps = MapFolder(folder, options, predictions.heads, predictions.reader, predictions.file_ending)
    calibrator = IDENTITY if temperature is None else from_json(temperature)
    of_masks = None
    if masks is not None:
        promises = read_promises(masks[0], predictions.heads)
        of_masks = MaskFolder(masks[1], promises, predictions.heads, predictions.reader, predictions.file_ending)
    maps.claim({"model": predictions.model, **calibrator.to_json()})
    if of_masks is not None:
        of_masks.claim({"model": predictions.model})
    for_each_case(_Export(predictions, maps, calibrator, of_masks), predictions.cases, processes, "exporting")

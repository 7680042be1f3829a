"""The folder of masks: one for each promise and structure, and masks.json, which says what they promise.

    masks/
      masks.json
      recall_0.95/STRUCTURE/CASE.nii.gz    0 and 1

The files have the names of the segmentations.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import nnunet_calib
from nnunet_calib.decisions.promised_masks import Promises
from nnunet_calib.io.atomic_files import forget
from nnunet_calib.measuring.volume import Probabilities, slab_slices
from nnunet_calib.nnunet.deployment.map_folder import FORMAT_VERSION, claim_folder
from nnunet_calib.nnunet.deployment.map_images import write_map
from nnunet_calib.results.heads import Heads

MASKS_FOLDER = "masks"


@dataclass(frozen=True)
class MaskFolder:
    """Folder with the masks of the cases of one model; picklable.

    Attributes:
        folder: its path.
        promises: the masks to write.
        heads: heads of the model.
        reader: nnU-Net's reader for the segmentations.
        file_ending: file ending of the segmentations and of the masks.
    """

    folder: Path
    promises: Promises
    heads: Heads
    reader: Any
    file_ending: str

    def paths(self, case: str) -> list[Path]:
        """Return the files of a case, in the order of the masks."""
        structures = self.heads.folders
        name = f"{case}{self.file_ending}"
        return [self.folder / mask.level / structures[mask.head] / name for mask in self.promises.masks]

    def complete(self, case: str) -> bool:
        """Return whether all masks of a case exist."""
        return all(path.is_file() for path in self.paths(case))

    def forget(self, case: str) -> None:
        """Remove the masks of a case, and files that a killed process left half written."""
        for path in self.paths(case):
            forget(path)

    def write(
        self,
        case: str,
        probabilities: Probabilities,
        segmentation: Path,
        shape: tuple[int, ...],
        crop: tuple[slice, ...],
    ) -> None:
        """Write the masks of a case.

        Args:
            case: name of the case.
            probabilities: uncalibrated probabilities (C, *spatial) of the crop.
            segmentation: nnU-Net's segmentation of the case, whose geometry the masks have.
            shape: shape of the whole image.
            crop: box of the probabilities in the image; outside, the probability of every structure is 0.
        """
        # a threshold of 0 takes every voxel
        arrays = [np.full(shape, mask.threshold <= 0, np.uint8) for mask in self.promises.masks]
        inside = [array[crop] for array in arrays]
        for slab in slab_slices(probabilities.shape[1:], probabilities.shape[0]):
            p = probabilities[:, slab]
            for mask, view in zip(self.promises.masks, inside, strict=True):
                view[slab] = mask.of(p)
        for path, array in zip(self.paths(case), arrays, strict=True):
            write_map(array, segmentation, path, self.reader)

    def claim(self, about: dict[str, Any]) -> None:
        """Write masks.json, before the first mask; arguments and errors as for `MapFolder.claim`.

        Structures without a threshold are named on stderr.
        """
        content = {
            "format_version": FORMAT_VERSION,
            "nnunet_calib": nnunet_calib.__version__,
            **about,
            "thresholds_of": self.promises.model,
            **self.promises.about,
            "heads": asdict(self.heads),
            "folders": self.heads.folders,
            "value": "1 in the mask, 0 outside",
        }
        claim_folder(self.folder / "masks.json", content, "masks")
        if self.promises.without_threshold:
            without = ", ".join(self.promises.without_threshold)
            print(f"no mask, since the file has no threshold for it: {without}", file=sys.stderr)

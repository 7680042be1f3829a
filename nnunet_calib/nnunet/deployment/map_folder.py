"""The folder of maps: paths of the maps of each case, and maps.json, which says how to read them.

    maps/
      maps.json
      probabilities/CLASS/CASE.nii.gz    layout "4d": probabilities/CASE.nii.gz
      entropy/CASE.nii.gz
      confidence/CASE.nii.gz             regions: as probabilities
      mutual_information/CASE.nii.gz     of several folds
      variance/CLASS/CASE.nii.gz         of several folds; layout "4d": variance/CASE.nii.gz
      cases.csv, cases/CASE.json         after a prediction: volumes and expected Dice
      lesions.csv                        after one with lesions

The files have the names of the segmentations.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nnunet_calib
from nnunet_calib.io.atomic_files import forget, write_json
from nnunet_calib.io.json_forms import read_json
from nnunet_calib.measuring.volume import Probabilities
from nnunet_calib.nnunet.deployment.case_table import CaseTable
from nnunet_calib.nnunet.deployment.map_images import check_format, write_map
from nnunet_calib.nnunet.deployment.map_values import (
    CONFIDENCE,
    PROBABILITIES,
    VARIANCE,
    Disagreement,
    MapOptions,
    compute_maps,
    describe_maps,
)
from nnunet_calib.results.heads import Heads

FORMAT_VERSION = 1
MAPS_FOLDER = "maps"


@dataclass(frozen=True)
class MapFolder:
    """Folder with the maps of the cases of one model; picklable.

    Attributes:
        folder: its path.
        options: which maps are written, and how.
        heads: heads of the model.
        reader: nnU-Net's reader for the segmentations.
        file_ending: file ending of the segmentations and of the maps.
        cases: tables of volumes, expected Dice and lesions; None writes none.
    """

    folder: Path
    options: MapOptions
    heads: Heads
    reader: Any
    file_ending: str
    cases: CaseTable | None = None

    def paths(self, case: str) -> dict[str, list[Path]]:
        """Return the files of a case by kind of map: one file, or one for each class or region."""
        name = f"{case}{self.file_ending}"
        several = {PROBABILITIES, VARIANCE} | ({CONFIDENCE} if self.heads.regions is not None else set())
        several = several if self.options.layout == "files" else set()
        return {
            kind: [self.folder / kind / channel / name for channel in self.heads.folders]
            if kind in several
            else [self.folder / kind / name]
            for kind in self.options.kinds
        }

    def complete(self, case: str) -> bool:
        """Return whether all maps of a case exist, and what the table needs of it."""
        if self.cases is not None and not self.cases.file(case).is_file():
            return False
        return all(path.is_file() for paths in self.paths(case).values() for path in paths)

    def forget(self, case: str) -> None:
        """Remove the maps of a case, and files that a killed process left half written."""
        for paths in self.paths(case).values():
            for path in paths:
                forget(path)
        if self.cases is not None:
            self.cases.forget(case)

    def write(
        self,
        case: str,
        probabilities: Probabilities,
        segmentation: Path,
        *,
        shape: tuple[int, ...] | None = None,
        crop: tuple[slice, ...] | None = None,
        folds: Disagreement | None = None,
    ) -> None:
        """Write the maps of a case; arguments and errors as for `compute_maps` and `write_map`."""
        regions, sums = self.heads.regions is not None, None
        if self.cases is not None:
            sums, geometry = self.cases.start(segmentation, crop)
        also = None if sums is None else sums.add
        try:
            maps = compute_maps(
                probabilities, self.options, regions=regions, shape=shape, crop=crop, also=also, folds=folds
            )
        except ValueError as error:
            raise ValueError(f"case {case}: {error}; look at its image, or leave the case out") from error
        for kind, paths in self.paths(case).items():
            array = maps.pop(kind)
            images = array if len(array) == len(paths) else [array]
            for image, path in zip(images, paths, strict=True):
                write_map(image, segmentation, path, self.reader)
        if self.cases is not None and sums is not None:
            self.cases.write(case, sums, geometry)

    def claim(self, about: dict[str, Any]) -> None:
        """Write maps.json, before the first map.

        Args:
            about: source of the maps and how they were made, as JSON values.

        Raises:
            ValueError: if files of this ending cannot hold the maps, or if the folder holds maps that were made in
                another way: a reader could not distinguish them.
            OSError: if the folder cannot be written.
        """
        check_format(self.reader, self.file_ending, self.options)
        claim_folder(self.folder / "maps.json", self._content(about), "maps")

    def _content(self, about: dict[str, Any]) -> dict[str, Any]:
        regions = self.heads.regions is not None
        options = self.options
        return {
            "format_version": FORMAT_VERSION,
            "nnunet_calib": nnunet_calib.__version__,
            **about,
            "heads": asdict(self.heads),
            "folders": self.heads.folders,
            "dtype": options.dtype,
            "layout": options.layout,
            "maps": describe_maps(options, len(self.heads.keys), regions=regions),
            **({} if self.cases is None else {"cases": self.cases.about}),
        }


def claim_folder(file: Path, content: dict[str, Any], what: str) -> None:
    """Write the file that says how the images in its folder were made.

    Args:
        file: its path.
        content: its content, as JSON values.
        what: what the folder holds, for a message.

    Raises:
        ValueError: if the file is there with another content but for the version, so that the folder may hold images
            made in another way.
        OSError: if the folder cannot be written.
    """
    content = json.loads(json.dumps(content))
    if file.is_file():
        try:
            found = read_json(file, dict)
            differing = [key for key in content if key != "nnunet_calib" and found.get(key) != content[key]]
        except ValueError:
            differing = ["no JSON of this command"]
        if differing:
            raise ValueError(
                f"expected {what} made in the same way, or none, in {file.parent}, found others "
                f"({', '.join(differing)}): name another folder with -o, or remove this one"
            )
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(content, file)

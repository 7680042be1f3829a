"""cases.csv and lesions.csv: volumes, expected Dice and lesions of each predicted case and structure.

Each case has a file of its own, cases/CASE.json, which the process writes that exports it. The tables are made of those
that exist, so that the parts of a prediction on several machines do not overwrite each other.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_calib.decisions.conformal import LogInterval
from nnunet_calib.decisions.expected_of_folds import LEVEL, PROMISE
from nnunet_calib.decisions.expected_sums import ExpectedSums
from nnunet_calib.decisions.lesions import Lesions, LesionSums
from nnunet_calib.io.atomic_files import forget, replaced_when_complete, write_json
from nnunet_calib.io.json_forms import NAME, read_json
from nnunet_calib.measuring.volume import region_members
from nnunet_calib.nnunet.deployment.map_images import in_physical_space
from nnunet_calib.results.heads import Heads

COLUMNS = {
    "case": "name of the case",
    "structure": "key of the structure in dataset.json",
    "name": "its name",
    "segmented_voxels": "voxels of the segmentation",
    "expected_voxels": "sum of the calibrated p over all voxels",
    "segmented_ml": "the same in millilitres; empty for images without a third dimension",
    "expected_ml": "likewise",
    "low_ml": f"lower limit of the {LEVEL:.0%} interval of the true volume; empty without one from a cross-validation",
    "high_ml": "its upper limit",
    "expected_dice": "2 sum of p over the segmentation / (segmented voxels + expected voxels)",
    "mean_entropy": "mean entropy over the segmentation of the structure, in nats",
}
LESION_COLUMNS = {
    "case": "name of the case",
    "structure": "key of the structure in dataset.json",
    "name": "its name",
    "lesion": "number of the lesion, a connected component (26 neighbours, 8 in 2D) of the segmentation of the "
    "structure; from 1, by falling mean_p",
    "voxels": "its voxels",
    "expected_voxels": "sum of the calibrated p of the structure over its voxels",
    "ml": "the voxels in millilitres; empty for images without a third dimension",
    "expected_ml": "the expected voxels likewise",
    "mean_p": "mean calibrated p over its voxels",
    "max_p": "the largest",
    "x_mm": "mean position of its voxels in the coordinates of the image, to the patient's left (ITK's and DICOM's); "
    "empty for formats without such coordinates",
    "y_mm": "likewise, to the back",
    "z_mm": "likewise, to the head; empty for images without a third dimension",
}
_NUMBER = (float, None)
_NAMES = {"case": NAME, "structure": str, "name": str}
_ROWS = {"rows": [_NAMES | dict.fromkeys([*COLUMNS][3:], _NUMBER)]}
_LESIONS = {"lesions": [_NAMES | dict.fromkeys([*LESION_COLUMNS][3:], _NUMBER)]}
_FLAT = 999  # nnU-Net's spacing along the axis that it adds to 2D images, as a multiple of the others


class SegmentedSums:
    """Sums over a case, added slab by slab.

    Attributes:
        sums: of each structure.
        lesions: the lesions of the segmentation, with their sums; None if they are not wanted.
    """

    def __init__(self, segmentation: NDArray[Any], heads: Heads, *, lesions: bool = False) -> None:
        """Start without voxels.

        Args:
            segmentation: (*spatial) labels on the grid of the probabilities.
            heads: heads of the model.
            lesions: whether lesions are wanted.
        """
        self.sums, self._segmentation, self._heads = ExpectedSums(len(heads.keys)), segmentation, heads
        largest = int(segmentation.max(initial=0))
        self._members = None if heads.regions is None else region_members(heads.regions, largest)
        self.lesions: tuple[Lesions, LesionSums] | None = None
        if lesions:
            found = Lesions.of_labels(segmentation, heads)
            self.lesions = found, LesionSums(found)

    def add(self, slab: slice, p: NDArray[np.float32]) -> None:
        """Add the calibrated probabilities (C, *spatial) of a range of the first axis."""
        if self.lesions is not None:
            self.lesions[1].add(slab, p)
        p, labels = p.reshape(len(p), -1), self._segmentation[slab].ravel()
        self.sums.add(p)
        some = np.flatnonzero(labels)  # mostly few
        labels = labels[some].astype(np.int64)
        heads = np.arange(len(p))[:, None]
        segmented = labels == heads if self._members is None else self._members[:, labels]
        self.sums.add_segmented(p[:, some], segmented, regions=self._members is not None)


@dataclass(frozen=True)
class CaseGeometry:
    """Size and place of the voxels of a case.

    Attributes:
        voxel_ml: volume of a voxel in millilitres; NaN for images without a third dimension.
        start: position in the image of the first voxel of the probabilities, (axes,).
        properties: what nnU-Net's reader tells of the image.
    """

    voxel_ml: float
    start: tuple[int, ...]
    properties: dict[str, Any]


@dataclass(frozen=True)
class CaseTable:
    """The tables of the cases of one model; picklable.

    Attributes:
        folder: folder of the table.
        heads: heads of the model.
        reader: nnU-Net's reader for the segmentations.
        limits: interval of the volume by the key of a structure, from `volume_limits`.
        limits_from: the file that they are from; None without limits.
        lesions: whether there is a table of lesions.
    """

    folder: Path
    heads: Heads
    reader: Any
    limits: Mapping[str, LogInterval]
    limits_from: str | None
    lesions: bool = False

    @property
    def about(self) -> dict[str, Any]:
        """Meaning of the columns, and what the interval promises, as JSON values."""
        lesions = {"lesion_columns": LESION_COLUMNS} if self.lesions else {}
        promise = PROMISE if self.limits else None
        return {"columns": COLUMNS, **lesions, "interval_from": self.limits_from, "promise": promise}

    def file(self, case: str) -> Path:
        """Return the file of a case."""
        return self.folder / "cases" / f"{case}.json"

    def forget(self, case: str) -> None:
        """Remove the file of a case."""
        forget(self.file(case))

    def start(self, segmentation: Path, crop: tuple[slice, ...] | None) -> tuple[SegmentedSums, CaseGeometry]:
        """Return empty sums for a case, and its geometry.

        Args:
            segmentation: nnU-Net's segmentation.
            crop: box of the probabilities in it; None means all of it.
        """
        labels, properties = self.reader.read_seg(str(segmentation))
        spacing = [float(size) for size in properties["spacing"]]
        flat = labels.shape[1] == 1 and spacing[0] > 0.99 * _FLAT * max(spacing[1:])
        crop = crop or (slice(0, None),) * (labels.ndim - 1)
        start = tuple(s.start for s in crop)
        geometry = CaseGeometry(math.nan if flat else math.prod(spacing) / 1000, start, properties)
        return SegmentedSums(labels[0][crop], self.heads, lesions=self.lesions), geometry

    def write(self, case: str, sums: SegmentedSums, geometry: CaseGeometry) -> None:
        """Write the file of a case."""
        content = {"rows": [*self._rows(case, sums.sums, geometry.voxel_ml)]}
        if sums.lesions is not None:
            content["lesions"] = [*self._lesions(case, *sums.lesions, geometry)]
        self.file(case).parent.mkdir(parents=True, exist_ok=True)
        write_json(content, self.file(case))

    def _rows(self, case: str, sums: ExpectedSums, ml: float) -> Iterator[dict[str, Any]]:
        for head, (key, name) in enumerate(zip(self.heads.keys, self.heads.names, strict=True)):
            if head == self.heads.background:
                continue
            segmented, expected = float(sums.segmented[head]), float(sums.expected[head])
            low, high = (expected * ml * f for f in self.limits[key].factors) if key in self.limits else (math.nan,) * 2
            numbers = (segmented, expected, segmented * ml, expected * ml, low, high)
            values = (*numbers, float(sums.dice[head]), float(sums.mean_entropy[head]))
            yield dict(zip(COLUMNS, (case, key, name, *values), strict=True))

    def _lesions(
        self, case: str, lesions: Lesions, sums: LesionSums, geometry: CaseGeometry
    ) -> Iterator[dict[str, Any]]:
        places = in_physical_space(lesions.centroids + geometry.start, geometry.properties)
        voxels, ml = lesions.voxels, geometry.voxel_ml
        columns = [voxels, sums.expected, voxels * ml, sums.expected * ml, sums.mean_p, sums.max_p, *places.T]
        numbers = np.stack(columns, axis=1).astype(float)
        for head in np.unique(lesions.structures):
            own = np.flatnonzero(lesions.structures == head)
            own = own[np.argsort(-sums.mean_p[own], kind="stable")]
            for number, lesion in enumerate(own, 1):
                named = (case, self.heads.keys[head], self.heads.names[head], number)
                yield dict(zip(LESION_COLUMNS, (*named, *numbers[lesion].tolist()), strict=True))

    def assemble(self) -> Path:
        """Write cases.csv, and lesions.csv if there is one, from the files of the cases; return the former's path.

        Raises:
            ValueError: if one of them is damaged.
            OSError: if a file cannot be read or written.
        """
        target, names = self.folder / "cases.csv", None
        tables, form = {"rows": (target, COLUMNS)}, _ROWS
        if self.lesions:
            form = _ROWS | _LESIONS
            tables["lesions"] = self.folder / "lesions.csv", LESION_COLUMNS
        while names != (found := sorted(path.name for path in (self.folder / "cases").glob("[!.]*.json"))):
            names = found  # read again what another part has written in the meantime
            texts = {entry: io.StringIO() for entry in tables}
            writers = {entry: csv.writer(text, lineterminator="\n") for entry, text in texts.items()}
            for entry, (_, columns) in tables.items():
                writers[entry].writerow(columns)
            for name in names:
                content = read_json(self.folder / "cases" / name, form, "predict the case again")
                for entry, (_, columns) in tables.items():
                    writers[entry].writerows([_shown(row[column]) for column in columns] for row in content[entry])
            for entry, (path, _) in tables.items():
                with replaced_when_complete(path) as temporary:
                    temporary.write_text(texts[entry].getvalue(), encoding="utf-8")
        return target


def _shown(value: float | str | None) -> str:
    return value if isinstance(value, str) else "" if value is None else f"{value:.6g}"

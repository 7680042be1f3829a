"""cases.csv: volumes and expected Dice of each predicted case and structure.

Each case has a file of its own, cases/CASE.json, which the process writes that exports it. The table is made of those
that exist, so that the parts of a prediction on several machines do not overwrite each other.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_calib.decisions.conformal import LogInterval
from nnunet_calib.decisions.expected_of_folds import LEVEL, PROMISE
from nnunet_calib.decisions.expected_sums import ExpectedSums
from nnunet_calib.io.atomic_files import forget, replaced_when_complete, write_json
from nnunet_calib.io.json_forms import NAME, read_json
from nnunet_calib.measuring.volume import region_members
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
_NUMBER = (float, None)
_ROWS = {"rows": [{"case": NAME, "structure": str, "name": str, **dict.fromkeys([*COLUMNS][3:], _NUMBER)}]}
_FLAT = 999  # nnU-Net's spacing along the axis that it adds to 2D images, as a multiple of the others


class SegmentedSums:
    """Sums over a case, added slab by slab."""

    def __init__(self, segmentation: NDArray[Any], heads: Heads) -> None:
        """Start without voxels.

        Args:
            segmentation: (*spatial) labels on the grid of the probabilities.
            heads: heads of the model.
        """
        self.sums, self._segmentation, self._heads = ExpectedSums(len(heads.keys)), segmentation, heads
        largest = int(segmentation.max(initial=0))
        self._members = None if heads.regions is None else region_members(heads.regions, largest)

    def add(self, slab: slice, p: NDArray[np.float32]) -> None:
        """Add the calibrated probabilities (C, *spatial) of a range of the first axis."""
        p, labels = p.reshape(len(p), -1), self._segmentation[slab].ravel()
        self.sums.add(p)
        some = np.flatnonzero(labels)  # mostly few
        labels = labels[some].astype(np.int64)
        heads = np.arange(len(p))[:, None]
        segmented = labels == heads if self._members is None else self._members[:, labels]
        self.sums.add_segmented(p[:, some], segmented, regions=self._members is not None)


@dataclass(frozen=True)
class CaseTable:
    """The table of the cases of one model; picklable.

    Attributes:
        folder: folder of the table.
        heads: heads of the model.
        reader: nnU-Net's reader for the segmentations.
        limits: interval of the volume by the key of a structure, from `volume_limits`.
        limits_from: the file that they are from; None without limits.
    """

    folder: Path
    heads: Heads
    reader: Any
    limits: Mapping[str, LogInterval]
    limits_from: str | None

    @property
    def about(self) -> dict[str, Any]:
        """Meaning of the columns, and what the interval promises, as JSON values."""
        return {"columns": COLUMNS, "interval_from": self.limits_from, "promise": PROMISE if self.limits else None}

    def file(self, case: str) -> Path:
        """Return the file of a case."""
        return self.folder / "cases" / f"{case}.json"

    def forget(self, case: str) -> None:
        """Remove the file of a case."""
        forget(self.file(case))

    def start(self, segmentation: Path, crop: tuple[slice, ...] | None) -> tuple[SegmentedSums, float | None]:
        """Return empty sums for a case, and the volume of a voxel in ml, None for 2D images.

        Args:
            segmentation: nnU-Net's segmentation.
            crop: box of the probabilities in it; None means all of it.
        """
        labels, properties = self.reader.read_seg(str(segmentation))
        spacing = [float(size) for size in properties["spacing"]]
        flat = labels.shape[1] == 1 and spacing[0] > 0.99 * _FLAT * max(spacing[1:])
        sums = SegmentedSums(labels[0] if crop is None else labels[0][crop], self.heads)
        return sums, None if flat else math.prod(spacing) / 1000

    def write(self, case: str, sums: ExpectedSums, voxel_ml: float | None) -> None:
        """Write the file of a case."""
        rows = []
        for head, (key, name) in enumerate(zip(self.heads.keys, self.heads.names, strict=True)):
            if head == self.heads.background:
                continue
            ml = math.nan if voxel_ml is None else voxel_ml
            segmented, expected = float(sums.segmented[head]), float(sums.expected[head])
            low, high = (expected * ml * f for f in self.limits[key].factors) if key in self.limits else (math.nan,) * 2
            numbers = (segmented, expected, segmented * ml, expected * ml, low, high)
            values = (*numbers, float(sums.dice[head]), float(sums.mean_entropy[head]))
            rows.append(dict(zip(COLUMNS, (case, key, name, *values), strict=True)))
        self.file(case).parent.mkdir(parents=True, exist_ok=True)
        write_json({"rows": rows}, self.file(case))

    def assemble(self) -> Path:
        """Write cases.csv from the files of the cases, and return its path.

        Raises:
            ValueError: if one of them is damaged.
            OSError: if a file cannot be read or written.
        """
        target, names = self.folder / "cases.csv", None
        while names != (found := sorted(path.name for path in (self.folder / "cases").glob("[!.]*.json"))):
            names = found  # read again what another part has written in the meantime
            text = io.StringIO()
            table = csv.writer(text, lineterminator="\n")
            table.writerow(COLUMNS)
            for name in names:
                for row in read_json(self.folder / "cases" / name, _ROWS, "predict the case again")["rows"]:
                    table.writerow([_shown(row[column]) for column in COLUMNS])
            with replaced_when_complete(target) as temporary:
                temporary.write_text(text.getvalue(), encoding="utf-8")
        return target


def _shown(value: float | str | None) -> str:
    return value if isinstance(value, str) else "" if value is None else f"{value:.6g}"

"""Which cases a fold was trained on and which it held out, written down by the training itself.

`splits_final.json` may change afterwards, and its two lists may share cases, which nnU-Net allows. So a training of a
trainer of this package leaves `calibration_split.json` in the fold's folder, and everything that is said of training
cases comes from there. Other trainers leave none: their split is that of `splits_final.json`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from nnunet_calib.io.json_forms import read_json
from nnunet_calib.results.schemas import SPLIT

FILE = "calibration_split.json"


@dataclass(frozen=True)
class Split:
    """Names of the cases of a fold, sorted.

    Attributes:
        training: those that its network was trained on.
        validation: those that it is validated on.
    """

    training: tuple[str, ...]
    validation: tuple[str, ...]

    @classmethod
    def of(cls, training: Iterable[str], validation: Iterable[str]) -> Split:
        """Make a split of two lists in any order."""
        return cls(tuple(sorted({*map(str, training)})), tuple(sorted({*map(str, validation)})))

    @property
    def overlap(self) -> list[str]:
        """The validation cases that the network was trained on."""
        return sorted({*self.training} & {*self.validation})

    def as_json(self) -> dict[str, list[str]]:
        """Return both lists by name."""
        return {"training": [*self.training], "validation": [*self.validation]}

    def fingerprint(self) -> str:
        """Return the SHA-256 of both lists."""
        return hashlib.sha256(json.dumps(self.as_json(), sort_keys=True).encode()).hexdigest()


def read_split(fold_folder: Path) -> Split | None:
    """Return what the training of a fold has written down, or None if it left nothing.

    Raises:
        ValueError: in one sentence, if the file is damaged.
    """
    file = fold_folder / FILE
    if not file.is_file():
        return None
    again = "remove it, and restore the splits_final.json that the fold was trained with"
    content = read_json(file, SPLIT, again)
    return Split.of(content["training"], content["validation"])

"""The training and validation cases of a fold, as recorded by the training itself.

`splits_final.json` may change after the training, and nnU-Net allows its two lists to share cases. The trainers of this
package therefore write `calibration_split.json` to the fold's folder, and every statement about training cases relies
on that file. Other trainers write none; for them, the split is that of `splits_final.json`.
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
    """Training and validation cases of a fold.

    Attributes:
        training: sorted names of the training cases.
        validation: sorted names of the validation cases.
    """

    training: tuple[str, ...]
    validation: tuple[str, ...]

    @classmethod
    def of(cls, training: Iterable[str], validation: Iterable[str]) -> Split:
        """Make a split from two lists in any order."""
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
    """Return the split that the training of a fold recorded, or None if it recorded none.

    Raises:
        ValueError: in one sentence, if the file is damaged.
    """
    file = fold_folder / FILE
    if not file.is_file():
        return None
    again = "remove it, and restore the splits_final.json that the fold was trained with"
    content = read_json(file, SPLIT, again)
    return Split.of(content["training"], content["validation"])

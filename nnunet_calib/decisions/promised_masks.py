"""The masks that a thresholds.json promises something about."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_calib.io.json_forms import read_json
from nnunet_calib.io.wording import missing
from nnunet_calib.results.heads import Heads
from nnunet_calib.results.schemas import THRESHOLDS

_CHOOSE = "choose thresholds with nnunet_calib thresholds"


@dataclass(frozen=True)
class PromisedMask:
    """A mask of a structure, the voxels with p >= threshold.

    Attributes:
        level: what is promised, as in "recall_0.95".
        head: channel of the structure.
        threshold: the threshold of the uncalibrated probability.
    """

    level: str
    head: int
    threshold: float

    def of(self, probabilities: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return the mask (*spatial) of uncalibrated probabilities (C, *spatial)."""
        # thresholds are compared in float64 where they are chosen; this is the same, without a copy of p
        smallest = np.float32(self.threshold)
        if float(smallest) < self.threshold:
            smallest = np.nextafter(smallest, np.float32(2))
        mask: NDArray[np.bool_] = probabilities[self.head] >= smallest
        return mask


@dataclass(frozen=True)
class Promises:
    """The content of a thresholds.json that masks need.

    Attributes:
        file: its path.
        masks: a mask for each threshold.
        without_threshold: level and name of each structure that has none, as in "recall 0.95 of tumour".
        model: recorded identity of the model.
        about: what the masks promise, as JSON values in the words of the file.
    """

    file: Path
    masks: tuple[PromisedMask, ...]
    without_threshold: tuple[str, ...]
    model: dict[str, Any]
    about: dict[str, Any]


def read_promises(file: Path, heads: Heads) -> Promises:
    """Read a thresholds.json.

    Args:
        file: its path.
        heads: heads of the model that is deployed.

    Raises:
        ValueError: in one sentence, if the file is missing, damaged, of other heads, or has no threshold.
    """
    try:
        content = read_json(file, THRESHOLDS, _CHOOSE)
    except OSError as error:
        raise ValueError(f"expected a thresholds.json, found none at {file}: {_CHOOSE}") from error
    found = Heads.of_summary(content["heads"])
    if found != heads:
        raise ValueError(
            f"expected thresholds of {', '.join(heads.names)}, as the model segments them, found those of "
            f"{', '.join(found.names)!s:.200} in {file}: {_CHOOSE} of this model"
        )
    masks, lacking = [], []
    for row in content["levels"]:
        for key, structure in row["structures"].items():
            if key not in heads.keys:
                raise ValueError(f"expected structures {', '.join(heads.keys)}, found {key!r:.99} in {file}: {_CHOOSE}")
            head = heads.keys.index(key)
            if missing(structure["threshold"]):
                lacking.append(f"{row['of']} {row['level']:g} of {heads.names[head]}")
            else:
                masks.append(PromisedMask(f"{row['of']}_{row['level']:g}", head, structure["threshold"]))
    if not masks:
        raise ValueError(f"expected a threshold to make masks with, found none in {file}: {_CHOOSE} from more cases")
    about = {
        "promise": content["promise"],
        "definitions": {
            name: content["definitions"][name]
            for name in ("mask", "recall", "precision", "threshold")
            if name in content["definitions"]
        },
        "levels": [
            {
                "of": row["of"],
                "level": row["level"],
                "structures": {
                    key: {name: structure[name] for name in ("threshold", "cases")}
                    for key, structure in row["structures"].items()
                },
            }
            for row in content["levels"]
        ],
    }
    return Promises(file, tuple(masks), tuple(lacking), content["model"], about)

"""Which cases a fold was trained on and which it held out, written down by the training itself.

`splits_final.json` may change afterwards, and its two lists may share cases, which nnU-Net allows. So a training of a
trainer of this package leaves `calibration_split.json` in the fold's folder, and everything that is said of training
cases comes from there. Other trainers leave none: their split is that of `splits_final.json`.
"""

from __future__ import annotations

import hashlib
import json
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunet_calib.io.atomic_files import write_json
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


@contextmanager
def collected_splits(trainer: Any) -> Iterator[list[Split]]:
    """Collect the splits that a trainer asks for while this lasts."""
    found: list[Split] = []
    own, do_split = vars(trainer).get("do_split"), trainer.do_split

    def collect(*args: Any, **kwargs: Any) -> Any:
        result = do_split(*args, **kwargs)
        with suppress(Exception):  # a trainer may return what nnU-Net alone takes
            found.append(Split.of(result[0], result[1]))
        return result

    trainer.do_split = collect
    try:
        yield found
    finally:
        if own is None:
            del trainer.do_split
        else:
            trainer.do_split = own


@contextmanager
def recorded_training(trainer: Any) -> Iterator[None]:
    """Write down the split that a training starts with; a failure of ours is logged and costs it nothing."""
    with collected_splits(trainer) as found:
        yield
    if trainer.local_rank != 0:
        return
    file = Path(trainer.output_folder) / FILE
    try:
        _record(found, file, continued=trainer.current_epoch > 0)
    except Exception:
        with suppress(Exception):
            file.unlink(missing_ok=True)  # that of an earlier training would be taken for this one's
        with suppress(Exception):
            trainer.print_to_log_file(
                f"The cases of this training could not be written into {file}, which costs nnU-Net nothing; "
                f"nnunet_calib will take them from splits_final.json. The reason:\n{traceback.format_exc()}"
            )


def _record(found: list[Split], file: Path, *, continued: bool) -> None:
    earlier = read_split(file.parent) if continued else None
    if not found:  # the trainer has a way of its own to choose cases
        file.unlink(missing_ok=True)
        return
    split = found[-1]
    if earlier is not None:  # the network has seen the cases of both
        split = Split.of([*earlier.training, *split.training], split.validation)
    write_json(split.as_json(), file)


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

"""Calibration losses that a trainer promises and a training did without, written down by the training itself.

A training that has begun is never ended for it. So it leaves `calibration_untrained.json` in the fold's folder, and
every summary of the fold names these losses among the hyperparameters.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from nnunet_calib.io.atomic_files import write_json
from nnunet_calib.io.json_forms import NAME, read_json
from nnunet_calib.results.schemas import UNTRAINED

FILE = "calibration_untrained.json"


def untrained_terms(fold_folder: Path) -> list[str]:
    """Return the names of the losses that the training of a fold did without.

    Raises:
        ValueError: in one sentence, if the file is damaged.
    """
    file = fold_folder / FILE
    if not file.is_file():
        return []
    again = "remove it if the training log does not say that the network was trained without a calibration loss"
    return list(read_json(file, {UNTRAINED: [NAME]}, again)[UNTRAINED])


def record_untrained(fold_folder: Path, terms: Collection[str]) -> None:
    """Write down which losses a training does without; nothing is left of an earlier record if it has all."""
    if terms:
        write_json({UNTRAINED: [*terms]}, fold_folder / FILE)
    else:
        (fold_folder / FILE).unlink(missing_ok=True)

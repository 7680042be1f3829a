"""Which calibration folder of a model is reported, and what nnU-Net itself says of its cases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nnunet_calib.results.compared_models import dice_per_case
from nnunet_calib.nnunet.labels import Heads
from nnunet_calib.results.layout import ModelFolder
from nnunet_calib.io.json_forms import NAME, read_json
from nnunet_calib.results.schemas import HEADS


def find_results(model_folder: ModelFolder, folds: Sequence[str]) -> Path:
    """The calibration folder of one fold, or of several that were merged.

    Raises:
        ValueError: if it has no summary.json; the sentence names the command that makes it, and what there is.
    """
    if len(folds) == 1:
        folder = model_folder.calibration(folds[0])
        command = "nnunet_calib validate"
    else:
        if not all(fold.isdecimal() for fold in folds):
            raise ValueError(f"expected one fold or the numbers of several, got {' '.join(folds)}: fold all is never "
                             f"merged, report it by itself")  # fmt: skip
        folder = model_folder.crossval(sorted(map(int, folds)))
        command = "nnunet_calib crossval"
    if not (folder / "summary.json").is_file():
        there = [str(path.parent.relative_to(model_folder.path)) for path in model_folder.results()]
        raise ValueError(
            f"expected {folder / 'summary.json'}, found none: make it with {command} -f {' '.join(folds)}, or name "
            f"with -f what there is ({', '.join(there) or 'nothing yet'})"
        )
    return folder


def dice_of_cases(model_folder: ModelFolder, folds: Sequence[str]) -> dict[str, float]:
    """Case -> nnU-Net's Dice, mean over the foreground classes; without those of folds that lack its summary.json."""
    dice: dict[str, float] = {}
    description = model_folder.path / "dataset.json"
    restore = "restore nnU-Net's"
    ending = read_json(description, {"file_ending": NAME}, restore)["file_ending"] if description.is_file() else ""
    for fold in folds:
        ours = model_folder.calibration(fold) / "summary.json"
        theirs = model_folder.validation(fold) / "summary.json"
        if ending and ours.is_file() and theirs.is_file():
            dice |= dice_per_case(theirs, ending, Heads.of_summary(read_json(ours, {"heads": HEADS})["heads"]))
    return dice

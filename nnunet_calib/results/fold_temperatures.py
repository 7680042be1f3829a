"""The temperature of each network of an ensemble of folds."""

from __future__ import annotations

from collections.abc import Sequence

from nnunet_calib.results.deployed_temperature import Deployed, find_temperature, merged_temperature, read_temperature
from nnunet_calib.results.layout import Fold, ModelFolder

OWN = "folds"


def find_temperatures(
    model_folder: ModelFolder, folds: Sequence[Fold], given: str | None = None
) -> tuple[Deployed, ...]:
    """A temperature for each fold.

    Args:
        model_folder: of nnU-Net, with the folders `fold_X`.
        folds: whose networks predict.
        given: a number or a temperature.json for all of them; "folds" for that of each fold's own validation cases;
            None takes that of the merged folds, and where they were not merged that of each fold.

    Raises:
        ValueError: in one sentence, if there is none, or if it was not determined by data the model had not seen.
    """
    if given is None and merged_temperature(model_folder, folds) is None:
        given = OWN
    if given != OWN:
        return (find_temperature(model_folder, folds, given),) * len(folds)
    files = [model_folder.calibration(fold) / "temperature.json" for fold in folds]
    missing = [fold for fold, file in zip(folds, files, strict=True) if not file.is_file()]
    if missing:
        find_temperature(model_folder, missing)  # tells what makes them
    return tuple(read_temperature(file, model_folder) for file in files)

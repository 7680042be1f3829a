"""Where nnU-Net finds the trainers, and what it finds."""

from __future__ import annotations

import os
from pathlib import Path

MODULE = "nnunet_calib_trainers.py"


def trainers_folder() -> Path:
    """The folder for nnU-Net's environment variable nnUNet_extTrainer.

    An installed wheel has it inside the package, a checkout beside it. It is not importable as a package of ours, and
    holds nothing but the module that imports the trainers.

    Raises:
        FileNotFoundError: if neither is there.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "_trainers", package.parent / "trainers"):
        if (folder / MODULE).is_file():
            return folder
    raise FileNotFoundError(
        f"expected the trainers folder in {package} or beside it, found none: reinstall nnunet-calib"
    )


def find_trainer(name: str) -> type:
    """The trainer class of this name, as nnU-Net finds it.

    Raises:
        ValueError: in one sentence, if there is none.
    """
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    try:
        return recursive_find_trainer_class_by_name(name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"expected a trainer that nnU-Net finds, got {name}: set nnUNet_extTrainer (now "
            f"{os.environ.get('nnUNet_extTrainer') or 'unset'}) as it was for the training; nnunet_calib trainers "
            f"--path prints the folder of this package's trainers"
        ) from error

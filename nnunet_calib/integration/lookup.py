"""Where nnU-Net finds the trainers."""

from __future__ import annotations

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

"""A case that is measured from files, and what a refusal says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnunet_calib import cli
from tests.worlds.command_line import sentence
from tests.worlds.predicted_folder import arguments


def write_case(folder: Path, name: str, probabilities: np.ndarray, labels: np.ndarray) -> None:
    """Replace a case of `write_world`."""
    np.savez_compressed(folder / "pred" / f"{name}.npz", probabilities=probabilities)
    for where in ("pred", "labels"):
        sitk.WriteImage(sitk.GetImageFromArray(labels), folder / where / f"{name}.nii.gz")


def refusal(folder: Path, capsys, command=None) -> str:
    """The sentence that is said; nothing is written."""
    assert cli.main(command or arguments(folder, "evaluate", "--no-figures")) == 2
    assert not (folder / "pred" / "calibration").exists()
    return sentence(capsys.readouterr().err.splitlines()[-1])

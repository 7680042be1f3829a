"""Images of nnUNet_raw on the grid of their label maps, for pictures."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from nnunet_calib.io.json_forms import read_json


def raw_images(model_folder: Path) -> Callable[[str], NDArray[Any] | None]:
    """What reads the training images of a model's dataset.

    Args:
        model_folder: of nnU-Net, with plans.json and dataset.json; its parent is named after the dataset.

    Returns:
        A function of a case's name that gives its image (channels, *spatial), or None where it cannot be had: nnU-Net
        needs `nnUNet_raw` only for planning, so that it may be gone.
    """
    files = _files(model_folder)
    reader: list[Any] = []

    def image(case: str) -> NDArray[Any] | None:
        names = files.get(case)
        if not names or not all(os.path.isfile(name) for name in names):
            return None
        if not reader:
            from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

            reader.append(PlansManager(str(model_folder / "plans.json")).image_reader_writer_class())
        try:
            pixels: NDArray[Any] = reader[0].read_images(names)[0]
        except Exception:  # each format has its own errors; a picture does without the image
            return None
        return pixels

    return image


def _files(model_folder: Path) -> dict[str, list[str]]:
    """Case -> its image files, where nnU-Net reads them: those that dataset.json names, else those of imagesTr."""
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    description = model_folder / "dataset.json"
    if not (description.is_file() and (model_folder / "plans.json").is_file()):
        return {}
    raw = Path(os.environ.get("nnUNet_raw") or "", model_folder.parent.name)
    try:
        dataset = read_json(description)
        # named with their folders they need neither the variable nor imagesTr
        if "dataset" not in dataset and not (os.environ.get("nnUNet_raw") and (raw / "imagesTr").is_dir()):
            return {}
        found = get_filenames_of_train_images_and_targets(str(raw), dataset)
        return {case: [str(name) for name in of_case["images"]] for case, of_case in found.items()}
    except Exception:  # nnU-Net's checks are assertions
        return {}

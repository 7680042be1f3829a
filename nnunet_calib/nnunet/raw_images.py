"""Training images of nnUNet_raw, for pictures."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from nnunet_calib.io.json_forms import read_json


def raw_images(model_folder: Path) -> Callable[[str], NDArray[Any] | None]:
    """Return a reader of the training images of a model's dataset.

    Args:
        model_folder: nnU-Net's folder of the model, with plans.json and dataset.json, in a folder named after the
            dataset.

    Returns:
        A function that returns the image (channels, *spatial) of a case by its name, or None if it is not available:
        nnU-Net needs `nnUNet_raw` only for planning.
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
        except Exception:  # each format has its own errors; the picture is drawn without the image
            return None
        return pixels

    return image


def _files(model_folder: Path) -> dict[str, list[str]]:
    """Return the image files of each case, as nnU-Net finds them: named in dataset.json, else those in imagesTr."""
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    description = model_folder / "dataset.json"
    if not (description.is_file() and (model_folder / "plans.json").is_file()):
        return {}
    raw = Path(os.environ.get("nnUNet_raw") or "", model_folder.parent.name)
    try:
        dataset = read_json(description)
        # a dataset.json that lists the files needs neither the variable nor imagesTr
        if "dataset" not in dataset and not (os.environ.get("nnUNet_raw") and (raw / "imagesTr").is_dir()):
            return {}
        found = get_filenames_of_train_images_and_targets(str(raw), dataset)
        return {case: [str(name) for name in of_case["images"]] for case, of_case in found.items()}
    except Exception:  # nnU-Net's checks are assertions
        return {}

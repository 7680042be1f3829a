"""Checks of a dataset's labels, and the neighbourhood size that fits its plans."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_calib.results.heads import IGNORE

if TYPE_CHECKING:
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager


def check_dataset(dataset_json: dict[str, Any], file: Path | str = "dataset.json") -> None:
    """Raise ValueError, in one sentence, for labels that nnU-Net refuses with a message that is hard to read.

    Labels that nnU-Net trains on pass.
    """
    labels = dataset_json["labels"]
    if not isinstance(labels, dict):
        raise ValueError(f"expected the labels in {file} to be an object, found {labels!r:.60}: name each label")
    for name, value in labels.items():
        if name == IGNORE and value is not None and not isinstance(value, int):
            raise ValueError(f"expected a whole number for the ignore label in {file}, found {value!r:.60}: correct it")
        if name != IGNORE and not _is_converted(value):
            swapped = name.isdecimal() and isinstance(value, str)
            advice = f"write the name first, as in {value!r:.60}: {name}" if swapped else "correct it"
            raise ValueError(
                f"expected a whole number, or a list of them, for each name in the labels of {file}, found "
                f"{value!r:.60} for {name!r:.60}: {advice}"
            )
    regions = {name: value for name, value in labels.items() if name != IGNORE and not _is_background(value)}
    if not any(isinstance(value, tuple | list) and len(value) > 1 for value in labels.values()):
        return
    order = dataset_json.get("regions_class_order")
    if not isinstance(order, tuple | list) or len(order) != len(regions):
        raise ValueError(
            f"expected dataset.json to give regions_class_order with {len(regions)} labels, one for each region "
            f"({', '.join(regions)}), found {order}: add it, in the order in which regions overwrite each other, to "
            f"dataset.json in nnUNet_raw and nnUNet_preprocessed"
        )


def _is_converted(value: Any) -> bool:
    """Return whether nnU-Net can convert a value to a label or a region."""
    try:
        _is_background(value)
    except (ValueError, TypeError, OverflowError):
        return False
    return True


def _is_background(value: Any) -> bool:
    return {int(v) for v in (value if isinstance(value, tuple | list) else [value])} == {0}


def plan_kernel_size(kernel_size: int, configuration: ConfigurationManager) -> int | tuple[int, ...]:
    """Return the neighbourhood size for a plan: 1 along the axes that the network's first stage does not convolve.

    nnU-Net plans (1, 3, 3) for anisotropic spacing, where the next slice is not a neighbour. Plans without kernel sizes
    (transformers) or without an architecture (trainers that build their own network) get the same size on every axis.
    """
    try:
        stages = configuration.network_arch_init_kwargs.get("kernel_sizes")
    except KeyError:
        return kernel_size
    if not stages or isinstance(stages, int) or isinstance(stages[0], int):
        return kernel_size
    return tuple(kernel_size if k > 1 else 1 for k in stages[0])

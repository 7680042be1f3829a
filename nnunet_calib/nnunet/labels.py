"""What a dataset and its plans say about the network's heads."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_calib.io.names import shown

if TYPE_CHECKING:
    from nnunetv2.utilities.label_handling.label_handling import LabelManager
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

Region = tuple[int, ...]
_IGNORE = "ignore"  # a name in dataset.json


@dataclass(frozen=True)
class Heads:
    """The segmentation heads of a model, in the order of its channels.

    Attributes:
        keys: as nnU-Net's summary.json names them: "0", "1", ..., or "(1, 2)" for a region; each of them once, with
            "#2" behind that of a region that dataset.json has twice.
        names: as dataset.json names them, `shown`, each of them once; a class with two names has both.
        regions: label values of each region for region-based training, else None.
        ignore_label: label of voxels without annotation, or None.
    """

    keys: tuple[str, ...]
    names: tuple[str, ...]
    regions: tuple[Region, ...] | None
    ignore_label: int | None

    @classmethod
    def of(cls, label_manager: LabelManager) -> Heads:
        """The heads that nnU-Net's label manager describes."""
        regions = label_manager.foreground_regions if label_manager.has_regions else None
        labels = [_as_region(label) for label in regions or label_manager.all_labels]
        names: dict[Region, list[str]] = {label: [] for label in labels}
        for name, value in label_manager.label_dict.items():
            if name != _IGNORE:
                names.setdefault(_as_region(value), []).append(name)
        return cls(
            keys=_each_once(
                str(label if isinstance(i, tuple | list) else label[0])
                for i, label in zip(regions or label_manager.all_labels, labels, strict=True)
            ),
            names=_each_once(
                shown(names[label].pop(0) if regions else ", ".join(names[label])) for label in labels
            ),
            regions=tuple(labels) if regions else None,
            ignore_label=label_manager.ignore_label,
        )

    @classmethod
    def of_summary(cls, content: dict[str, Any]) -> Heads:
        """The entry `heads` of a summary.json.

        Raises:
            ValueError: if there are not as many names and regions as keys, or one of these is there twice.
        """
        regions, number = content["regions"], len(content["keys"])
        numbers = {len({*content["keys"]}), len(content["names"]), len({*content["names"]})}
        if not number or numbers | {number if regions is None else len(regions)} != {number}:
            raise ValueError(
                f"expected a name (and region) for each of some keys, all of them once, found keys "
                f"{content['keys']!r:.99} and names {content['names']!r:.99} of heads: measure again with nnunet_calib "
                f"validate"
            )
        return cls(
            tuple(content["keys"]), tuple(map(shown, content["names"])),
            None if regions is None else tuple(map(tuple, regions)),
            content["ignore_label"],
        )

    @property
    def background(self) -> int | None:
        """Channel of the background, None for regions."""
        return 0 if self.regions is None else None

    @property
    def foreground_labels(self) -> tuple[Region, ...]:
        """Label values of all heads but the background."""
        return self.regions or tuple((int(key),) for key in self.foreground)

    @property
    def foreground(self) -> tuple[str, ...]:
        """Keys of all heads but the background."""
        return tuple(key for i, key in enumerate(self.keys) if i != self.background)


def _as_region(value: Any) -> Region:
    """The numbers of a label or region, which nnU-Net converts likewise: text and whole floats become integers."""
    return tuple(map(_whole, value)) if isinstance(value, tuple | list) else (_whole(value),)


def _whole(value: Any) -> int:
    number = int(value)
    if not isinstance(value, str) and number != value:
        raise ValueError(f"expected whole numbers as labels in dataset.json, found {value}: correct it")
    return number


def _each_once(names: Iterable[str]) -> tuple[str, ...]:
    """The names, with a number behind those that were there before."""
    found: list[str] = []
    for name in names:
        numbered = (f"{name} #{number}" for number in itertools.count(2))
        found.append(next(one for one in itertools.chain([name], numbered) if one not in found))
    return tuple(found)


def check_dataset(dataset_json: dict, file: Path | str = "dataset.json") -> None:
    """Raise ValueError, in one sentence, for labels that nnU-Net refuses too, which says in other words what is wrong.

    What nnU-Net trains on passes.
    """
    labels = dataset_json["labels"]
    if not isinstance(labels, dict):
        raise ValueError(f"expected the labels in {file} to be an object, found {labels!r:.60}: name each label")
    for name, value in labels.items():
        if name == _IGNORE and value is not None and not isinstance(value, int):
            raise ValueError(f"expected a whole number for the ignore label in {file}, found {value!r:.60}: correct it")
        if name != _IGNORE and not _is_converted(value):
            swapped = name.isdecimal() and isinstance(value, str)
            advice = f"write the name first, as in {value!r:.60}: {name}" if swapped else "correct it"
            raise ValueError(
                f"expected a whole number, or a list of them, for each name in the labels of {file}, found "
                f"{value!r:.60} for {name!r:.60}: {advice}"
            )
    regions = {name: value for name, value in labels.items() if name != _IGNORE and not _is_background(value)}
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
    """Whether nnU-Net can make a label or a region of a value."""
    try:
        _is_background(value)
    except (ValueError, TypeError, OverflowError):
        return False
    return True


def _is_background(value: Any) -> bool:
    return {int(v) for v in (value if isinstance(value, tuple | list) else [value])} == {0}


def plan_kernel_size(kernel_size: int, configuration: ConfigurationManager) -> int | tuple[int, ...]:
    """The neighbourhood that fits a plan: 1 along the axes that the network's first stage does not convolve.

    nnU-Net plans (1, 3, 3) for anisotropic spacing, where the next slice is no neighbour. Plans that name no kernel
    sizes (transformers), or no architecture (trainers that build a network of their own), get the same size on every
    axis.
    """
    try:
        stages = configuration.network_arch_init_kwargs.get("kernel_sizes")
    except KeyError:
        return kernel_size
    if not stages or isinstance(stages, int) or isinstance(stages[0], int):
        return kernel_size
    return tuple(kernel_size if k > 1 else 1 for k in stages[0])

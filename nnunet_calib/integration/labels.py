"""What a dataset and its plans say about the network's heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnunetv2.utilities.label_handling.label_handling import LabelManager
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

Region = tuple[int, ...]
LABEL = (int, [int])  # of dataset.json, see `json_files`


@dataclass(frozen=True)
class Heads:
    """The segmentation heads of a model, in the order of its channels.

    Attributes:
        keys: as nnU-Net's summary.json names them: "0", "1", ..., or "(1, 2)" for a region.
        names: as dataset.json names them.
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
        ids = label_manager.foreground_regions if label_manager.has_regions else label_manager.all_labels
        names = {_as_region(value): name for name, value in label_manager.label_dict.items()}
        return cls(
            keys=tuple(str(tuple(map(int, i)) if isinstance(i, tuple | list) else int(i)) for i in ids),
            names=tuple(names[_as_region(i)] for i in ids),
            regions=tuple(_as_region(i) for i in ids) if label_manager.has_regions else None,
            ignore_label=label_manager.ignore_label,
        )

    @classmethod
    def of_summary(cls, content: dict[str, Any]) -> Heads:
        """The entry `heads` of a summary.json.

        Raises:
            ValueError: if there are not as many names and regions as keys.
        """
        regions = content["regions"]
        numbers = [len(content["names"]), len(content["keys"]) if regions is None else len(regions)]
        if not content["keys"] or numbers != [len({*content["keys"]})] * 2:
            raise ValueError(
                f"expected a name (and region) for each of some keys, each of them once, found keys "
                f"{content['keys']!r:.99} and names {content['names']!r:.99} of heads: measure again with nnunet_calib "
                f"validate"
            )
        return cls(
            tuple(content["keys"]), tuple(content["names"]), None if regions is None else tuple(map(tuple, regions)),
            content["ignore_label"],
        )

    @property
    def background(self) -> int | None:
        """Channel of the background, None for regions."""
        return 0 if self.regions is None else None

    @property
    def foreground(self) -> tuple[str, ...]:
        """Keys of all heads but the background."""
        return tuple(key for i, key in enumerate(self.keys) if i != self.background)


def _as_region(value: Any) -> Region:
    return tuple(int(v) for v in value) if isinstance(value, tuple | list) else (int(value),)


def check_dataset(dataset_json: dict) -> None:
    """Raise ValueError, in one sentence, for a region-based dataset that nnU-Net cannot turn into a segmentation."""
    regions = [
        name
        for name, value in dataset_json["labels"].items()
        if name != "ignore" and _as_region(value) != (0,)
    ]
    if not any(len(_as_region(dataset_json["labels"][name])) > 1 for name in regions):
        return
    order = dataset_json.get("regions_class_order")
    if order is None or len(order) != len(regions):
        raise ValueError(
            f"expected dataset.json to give regions_class_order with {len(regions)} labels, one for each region "
            f"({', '.join(regions)}), found {order}: add it, in the order in which regions overwrite each other, to "
            f"dataset.json in nnUNet_raw and nnUNet_preprocessed"
        )


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

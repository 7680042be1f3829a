"""The heads of a model: the classes or regions that it segments."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nnunet_calib.io.names import shown

Region = tuple[int, ...]
IGNORE = "ignore"  # name in dataset.json
BACKGROUND = "0"  # key of its head; models of regions have none, but keys like "(1, 2)" or "1"


@dataclass(frozen=True)
class Heads:
    """The segmentation heads of a model, in the order of its channels.

    Attributes:
        keys: unique keys as in nnU-Net's summary.json: "0", "1", ..., or "(1, 2)" for a region. A region that
            dataset.json has twice gets "#2" appended to its second key.
        names: unique names from dataset.json, as `shown` prints them; a class with two names has both.
        regions: label values of each region for region-based training, else None.
        ignore_label: label of voxels without annotation, or None.
    """

    keys: tuple[str, ...]
    names: tuple[str, ...]
    regions: tuple[Region, ...] | None
    ignore_label: int | None

    @classmethod
    def of(cls, label_manager: Any) -> Heads:
        """Return the heads that nnU-Net's label manager describes."""
        regions = label_manager.foreground_regions if label_manager.has_regions else None
        labels = [as_region(label) for label in regions or label_manager.all_labels]
        names: dict[Region, list[str]] = {label: [] for label in labels}
        for name, value in label_manager.label_dict.items():
            if name != IGNORE:
                names.setdefault(as_region(value), []).append(name)
        return cls(
            keys=_each_once(
                str(label if isinstance(i, tuple | list) else label[0])
                for i, label in zip(regions or label_manager.all_labels, labels, strict=True)
            ),
            names=_each_once(shown(names[label].pop(0) if regions else ", ".join(names[label])) for label in labels),
            regions=tuple(labels) if regions else None,
            ignore_label=label_manager.ignore_label,
        )

    @classmethod
    def of_summary(cls, content: Mapping[str, Any]) -> Heads:
        """Return the heads in the entry `heads` of a summary.json.

        Raises:
            ValueError: if the numbers of keys, names and regions differ, or if a key or name is there twice.
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
            tuple(content["keys"]),
            tuple(map(shown, content["names"])),
            None if regions is None else tuple(map(tuple, regions)),
            content["ignore_label"],
        )

    @property
    def names_by_key(self) -> dict[str, str]:
        """Name of each head by its key."""
        return dict(zip(self.keys, self.names, strict=True))

    @property
    def folders(self) -> list[str]:
        """Name of a folder for each head: its name, with _ for characters that file systems may refuse.

        Where two names would be equal, also on systems that ignore case, each begins with the number of its channel.
        """
        names = [re.sub(r"[^\w+-]+", "_", name) for name in self.names]
        if len({name.casefold() for name in names}) == len(names):
            return names
        return [f"{channel}_{name}" for channel, name in enumerate(names)]

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


def as_region(value: Any) -> Region:
    """Return the label values of a label or region, with text and whole floats as integers, as nnU-Net does."""
    return tuple(map(_whole, value)) if isinstance(value, tuple | list) else (_whole(value),)


def _whole(value: Any) -> int:
    number = int(value)
    if not isinstance(value, str) and number != value:
        raise ValueError(f"expected whole numbers as labels in dataset.json, found {value}: correct it")
    return number


def _each_once(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names with a number appended to repeated ones."""
    found: list[str] = []
    for name in names:
        numbered = (f"{name} #{number}" for number in itertools.count(2))
        found.append(next(one for one in itertools.chain([name], numbered) if one not in found))
    return tuple(found)

"""Lesions: the connected components of a structure, and how sure the probabilities are of each.

Voxels are connected across faces, edges and corners (26 neighbours, 8 in two dimensions).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cc3d
import numpy as np
from numpy.typing import NDArray

from nnunet_calib.decisions.risk_control import ratio
from nnunet_calib.measuring.volume import region_members
from nnunet_calib.results.heads import Heads

FOUND_BY_VOXELS = 1  # a true lesion is found by a predicted one that shares at least as many voxels with it


@dataclass(frozen=True)
class Lesions:
    """Connected components of the structures in a label map.

    Only voxels of a lesion are kept, so that their memory is that of the lesions.

    Attributes:
        shape: shape of the label map.
        structures: (lesions,) head of each lesion.
        positions: (n,) flat positions of the voxels of all lesions, rising.
        lesions: (n,) number of the lesion that each of these voxels belongs to.
    """

    shape: tuple[int, ...]
    structures: NDArray[np.int64]
    positions: NDArray[np.int64]
    lesions: NDArray[np.int64]

    @classmethod
    def of_labels(cls, labels: NDArray[Any], heads: Heads) -> Lesions:
        """Return the lesions in a label map (*spatial); labels without a head belong to none."""
        largest = int(labels.max(initial=0))
        classes: NDArray[Any] = labels.astype(np.uint8 if largest < 256 else np.uint16)  # readers return float32
        if heads.regions is not None:
            return cls.of_masks([member[classes] for member in region_members(heads.regions, largest)])
        if largest >= len(heads.keys):
            classes[classes >= len(heads.keys)] = 0
        return cls._joined([_components(classes)], [None])

    @classmethod
    def of_masks(cls, masks: Sequence[NDArray[np.bool_]]) -> Lesions:
        """Return the lesions in the masks (*spatial) of regions, which may overlap."""
        return cls._joined([_components(mask.astype(np.uint8)) for mask in masks], range(len(masks)))

    @classmethod
    def _joined(cls, parts: Sequence[_Components], heads: Sequence[int | None]) -> Lesions:
        """Return the lesions of parts, each of one head, or with the heads as labels where that is None."""
        structures, positions, lesions = [], [], []
        before = 0
        for part, head in zip(parts, heads, strict=True):
            structures.append(part.labels if head is None else np.full(len(part.labels), head))
            positions.append(part.positions)
            lesions.append(part.numbers + before)
            before += len(part.labels)
        at = np.concatenate(positions)
        order = np.argsort(at, kind="stable")
        return cls(parts[0].shape, np.concatenate(structures), at[order], np.concatenate(lesions)[order])

    def __len__(self) -> int:
        return len(self.structures)

    @property
    def voxels(self) -> NDArray[np.int64]:
        """Number of voxels of each lesion."""
        return np.bincount(self.lesions, minlength=len(self))

    @property
    def centroids(self) -> NDArray[np.float64]:
        """Mean position (lesions, axes) of the voxels of each lesion, in voxels."""
        axes = np.unravel_index(self.positions, self.shape)
        sums = [np.bincount(self.lesions, axis, minlength=len(self)) for axis in axes]
        return np.stack(sums, axis=1) / self.voxels[:, None]

    def meeting(self, others: Lesions) -> NDArray[np.int64]:
        """Return the pairs (2, n) of a lesion of these and one of others that share `FOUND_BY_VOXELS` or more.

        Only lesions of the same structure meet.
        """
        heads = 1 + max(int(of.structures.max(initial=0)) for of in (self, others))
        ours, theirs = (of.positions * heads + of.structures[of.lesions] for of in (self, others))
        _, here, there = np.intersect1d(ours, theirs, assume_unique=True, return_indices=True)
        pairs = np.stack([self.lesions[here], others.lesions[there]])
        pairs, shared = np.unique(pairs, axis=1, return_counts=True)
        return np.asarray(pairs[:, shared >= FOUND_BY_VOXELS], np.int64)


@dataclass(frozen=True)
class _Components:
    """Connected components of equal labels other than 0.

    Attributes:
        shape: shape of the labels.
        labels: (components,) label of each.
        positions: (n,) flat positions of their voxels, rising.
        numbers: (n,) number of the component of each voxel, from 0.
    """

    shape: tuple[int, ...]
    labels: NDArray[np.int64]
    positions: NDArray[np.int64]
    numbers: NDArray[np.int64]


def _components(labels: NDArray[Any]) -> _Components:
    found = cc3d.connected_components(labels, connectivity=26 if labels.ndim == 3 else 8).ravel()
    positions = np.flatnonzero(found)
    numbers = found[positions].astype(np.int64) - 1
    labels_of = np.zeros(int(numbers.max(initial=-1)) + 1, np.int64)
    labels_of[numbers] = labels.ravel()[positions]
    return _Components(labels.shape, labels_of, positions, numbers)


class LesionSums:
    r"""Sums over the voxels of each lesion, added slab by slab.

    With p the probability of the structure and L the voxels of a lesion, :math:`\sum_{i \in L} p_i` is its expected
    volume in voxels, and the mean and the largest p are its confidences.

    Attributes:
        expected: (lesions,) sum of p.
        max_p: (lesions,) largest p.
    """

    def __init__(self, lesions: Lesions) -> None:
        """Start without voxels."""
        self._lesions, self._row = lesions, int(np.prod(lesions.shape[1:]))
        self.expected, self.max_p = np.zeros((2, len(lesions)))

    def add(self, slab: slice, p: NDArray[np.float32]) -> None:
        """Add the probabilities (C, *spatial) of a range of the first axis."""
        of, start = self._lesions, slab.start * self._row
        here = slice(*np.searchsorted(of.positions, (start, start + p[0].size)))
        which = of.lesions[here]
        values = p.reshape(len(p), -1)[of.structures[which], of.positions[here] - start]
        self.expected += np.bincount(which, values, minlength=len(of))
        np.maximum.at(self.max_p, which, values)

    @property
    def mean_p(self) -> NDArray[np.float64]:
        """Mean p (lesions,) of each lesion."""
        return ratio(self.expected, self._lesions.voxels)

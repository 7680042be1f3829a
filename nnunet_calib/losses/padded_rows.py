"""Sums over neighbourhoods of a map that is padded and laid out as one long row.

Each neighbour then lies a fixed number of entries away, along every axis and in every image, so that a sum over
neighbours is a sum of a few shifted copies of the row.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache, reduce
from itertools import product

import torch
from torch import Tensor


class PaddedRow:
    """A label map (B, *spatial), padded by replicating its border and laid out as one row."""

    def __init__(self, labels: Tensor, sizes: Sequence[int]) -> None:
        self.shape, self.sizes = labels.shape, sizes
        around = [size // 2 for size in sizes]
        padded = labels.new_empty([len(labels), *(n + 2 * r for n, r in zip(labels.shape[1:], around, strict=True))])
        inside = padded
        for axis, (n, r) in enumerate(zip(labels.shape[1:], around, strict=True), start=1):
            inside = inside.narrow(axis, r, n)
        inside.copy_(labels)
        for axis, (n, r) in enumerate(zip(labels.shape[1:], around, strict=True), start=1):
            for start, edge in ((0, r), (r + n, r + n - 1)):
                padded.narrow(axis, start, r).copy_(padded.narrow(axis, edge, 1))
        self.strides, self.labels = padded.stride(), padded.view(-1)

    def combine(
        self, x: Tensor, operation: Callable[..., Tensor] = torch.add, *, by_distance: bool = False
    ) -> dict[int, Tensor]:
        """Combine the entries of x, a row like the labels, over each voxel's neighbourhood.

        Returns:
            Rows by the neighbours' squared distance, or one row of all neighbours under the key 0. They hold an entry
            for each voxel from the first to the last, the padding between them included.
        """
        combined = {0: x}
        for size, step in zip(self.sizes, self.strides[1:], strict=True):
            parts: dict[int, list[Tensor]] = {}
            for key, row in combined.items():
                for position in range(size):
                    there = key + (position - size // 2) ** 2 * by_distance
                    parts.setdefault(there, []).append(row.narrow(0, position * step, len(row) - (size - 1) * step))
            combined = {}
            for key, (first, *others) in parts.items():
                result = first
                for other in others:
                    result = operation(result, other, out=None if result is first else result)
                combined[key] = result
        return combined

    def inside(self, x: Tensor) -> Tensor:
        """Return the entries of the voxels (n,) in a row returned by `combine`, without the padding."""
        return x.as_strided(self.shape, self.strides).reshape(-1)

    def places(self, voxels: Tensor) -> Tensor:
        """Return the positions, in a row returned by `combine`, of voxels given by their index (k,) into all voxels."""
        along = (torch.arange(n, dtype=torch.int32) * step for n, step in zip(self.shape, self.strides, strict=True))
        return reduce(lambda outer, inner: outer[..., None] + inner, along).view(-1).index_select(0, voxels)


@lru_cache(maxsize=16)
def distance_weights(sizes: tuple[int, ...], sigma: float | None) -> dict[int, tuple[float, int]]:
    """Return the unnormalised weight of a neighbour and the number of such neighbours, by squared distance.

    Without sigma all neighbours weigh the same and are under the key 0. The voxel itself counts as a neighbour.
    """
    if sigma is None:
        return {0: (1.0, math.prod(sizes))}
    squared = Counter(sum(d**2 for d in offset) for offset in product(*(range(-(k // 2), k // 2 + 1) for k in sizes)))
    weights = {distance: (math.exp(-0.5 * distance / sigma**2), number) for distance, number in squared.items()}
    # the voxel itself weighs as much as all its neighbours together
    return weights | {0: (sum(weight * number for distance, (weight, number) in weights.items() if distance), 1)}

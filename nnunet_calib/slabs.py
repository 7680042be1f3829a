"""Probabilities of a volume read slab by slab, so that no second copy of the whole volume is ever made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

_SLAB_VOXELS = 1 << 20


class Probabilities(Protocol):
    """What is asked of probabilities: a shape (C, *spatial), and slabs along the first spatial axis."""

    @property
    def shape(self) -> Sequence[int]: ...  # noqa: D102

    def __getitem__(self, key: Any) -> Any: ...


def slab_slices(shape: tuple[int, ...]) -> Iterator[slice]:
    """Slices along the first axis, each of about a million voxels."""
    rows = max(1, _SLAB_VOXELS // max(1, int(np.prod(shape[1:]))))
    return (slice(start, min(start + rows, shape[0])) for start in range(0, max(shape[0], 1), rows))


def probability_slab(
    probabilities: Probabilities,
    shape: tuple[int, ...],
    crop: tuple[slice, ...],
    where: slice,
    *,
    fill_background: bool,
) -> NDArray:
    """The probabilities of a slab of the whole grid; outside the crop the background is certain."""
    low, high = max(where.start, crop[0].start), min(where.stop, crop[0].stop)
    rows = slice(low - crop[0].start, max(high, low) - crop[0].start)
    if crop == tuple(slice(0, n) for n in shape):
        return np.asarray(probabilities[:, rows])
    p = np.zeros((probabilities.shape[0], where.stop - where.start, *shape[1:]), np.float32)
    if fill_background:
        p[0] = 1
    if high > low:
        p[(slice(None), slice(low - where.start, high - where.start), *crop[1:])] = np.asarray(probabilities[:, rows])
    return p

"""Slabs of a volume, so that no second copy of the whole volume is ever made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

_SLAB_VALUES = 1 << 19
# What the sum over the classes may differ from 1. float16 rounds each p by up to 2**-11 of it, and so the sum, however
# many classes there are; bfloat16 by 2**-9. The rest is for arithmetic in such types.
_SUMS_DIFFER = 0.01


class Probabilities(Protocol):
    """What is asked of probabilities: a shape (C, *spatial), and NumPy's indexing with slices and with arrays."""

    @property
    def shape(self) -> Sequence[int]: ...  # noqa: D102

    def __getitem__(self, key: Any) -> Any: ...


def slab_slices(shape: Sequence[int], channels: int = 1) -> Iterator[slice]:
    """Slices along the first axis, each of about half a million values of so many channels."""
    rows = max(1, _SLAB_VALUES // max(1, channels * int(np.prod(shape[1:]))))
    return (slice(start, min(start + rows, shape[0])) for start in range(0, shape[0], rows))


def check_range(p: NDArray) -> None:
    """Raise ValueError for values that are no probabilities."""
    if not p.size:
        return
    # read as unsigned integers, floats from 0 up keep their order, and NaN and all below 0 come above: one pass
    bits = p.view(f"u{p.itemsize}")
    if bits.max() <= np.array(1 + 1e-5, p.dtype).view(bits.dtype):
        return
    low, high = p.min(), p.max()  # NaN if any is
    if not (low >= 0 and high <= 1 + 1e-5):
        raise ValueError(
            f"expected probabilities in [0, 1], got values from {low} to {high}: pass the outputs of softmax or "
            f"sigmoid, without NaN"
        )


def check_sums(p: NDArray, rounded: float = 0) -> None:
    """Raise ValueError where the probabilities (C, ...) of classes do not sum to 1.

    Args:
        p: in [0, 1].
        rounded: by how much each of them may be rounded.
    """
    if not p.size:
        return
    sums = p.sum(0, dtype=None if p.itemsize > 2 else np.float32)
    low, high, allowed = sums.min(), sums.max(), _SUMS_DIFFER + len(p) * rounded
    if not (low >= 1 - allowed and high <= 1 + allowed):
        worst = low if 1 - low > high - 1 else high
        raise ValueError(
            f"expected probabilities of {len(p)} classes that sum to 1 in each voxel, got a sum of {worst:.4g}: pass "
            f"the output of softmax; what comes from a sigmoid is of regions, which dataset.json must name"
        )

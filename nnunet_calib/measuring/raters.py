"""Labels of several raters, as the frequencies of labels in each voxel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import lcm
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_RATERS = 16
_ROUNDED = 0.002  # error of a frequency in 8 bits; fractions of up to 16 raters differ by 1/240 and more
SUMS_DIFFER = 0.01


def number_of_raters(frequencies: NDArray[Any]) -> int:
    """Return the smallest number R of raters whose labels can have these frequencies, all of them multiples of 1/R.

    Args:
        frequencies: (labels, *spatial).

    Raises:
        ValueError: if values are no frequencies, or not those of up to 16 raters.
    """
    if not frequencies.size:
        return 1
    off = np.abs(frequencies.sum(0, dtype=np.float32) - 1)
    if not (frequencies.min() >= 0 and off.max() <= SUMS_DIFFER):  # neither holds for NaN
        raise ValueError(
            f"expected frequencies of labels from 0 that sum to 1 in each voxel, got sums that are off by up to "
            f"{off.max():.3g}: pass (labels, *spatial), background included"
        )
    for raters in range(1, MOST_RATERS + 1):
        if _multiples(frequencies, raters):
            return raters
    raise ValueError(
        f"expected frequencies among up to {MOST_RATERS} raters, multiples of 1/2, 1/3, ... or 1/{MOST_RATERS}, got "
        f"others: round them, to multiples of 1/{MOST_RATERS} for example"
    )


def _multiples(frequencies: NDArray[Any], raters: int) -> bool:
    rounded = np.rint(frequencies * raters) / raters
    return not frequencies.size or bool(np.abs(frequencies - rounded).max() <= _ROUNDED)


def common_number(numbers: Iterable[int]) -> int:
    """Return the smallest number of raters that is a multiple of those of every case, so that all cases count alike.

    Args:
        numbers: of each case, from `number_of_raters`: 1 where all raters of a case agree, however many they were.

    Raises:
        ValueError: if it is above 16.
    """
    found = {*numbers}
    if (common := lcm(*found)) > MOST_RATERS:
        raise ValueError(
            f"expected frequencies of all cases among up to {MOST_RATERS} raters, got multiples of "
            f"{', '.join(f'1/{number}' for number in sorted(found))} in different cases: round all of them, to "
            f"multiples of 1/{MOST_RATERS} for example"
        )
    return common


def label_maps(frequencies: NDArray[Any], raters: int) -> Iterator[NDArray[np.uint16]]:
    """Yield a label map for each of so many raters which together have these frequencies (labels, *spatial).

    They are nested: where raters disagree, an earlier one has the smaller label. Which rater said what is not in
    frequencies, and makes no difference to sums over voxels.

    Raises:
        ValueError: if so many raters cannot have these frequencies.
    """
    if not _multiples(frequencies, raters):
        raise ValueError(
            f"expected frequencies among {raters} raters, multiples of 1/{raters}, got others: pass the number of "
            f"raters, or a multiple of it"
        )
    cumulative = np.cumsum(frequencies, axis=0, dtype=np.float32)
    for rater in range(raters):
        yield (cumulative[:-1] < (rater + 0.5) / raters).sum(0).astype(np.uint16)

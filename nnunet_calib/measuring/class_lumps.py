r"""Give all unlikely classes of a voxel one common log-probability, so that a sample of many classes stays small.

A temperature depends on the unlikely classes only by their sum of p^(1/T). If m classes of total mass S share one p, it
becomes

.. math:: m (S / m)^{1/T} \ge \sum p^{1/T} \quad (T \ge 1),

with equality at T = 1 and for T to infinity. Classes are listed in order of falling p until the excess at T = 2 is a
small fraction of the sum over all classes but the largest. The true class is always listed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_calib.posthoc.logits import MIN_PROBABILITY

DENSE_HEADS = 8  # with no more heads, every class of a voxel is kept unchanged
_TOLERANCE = 0.002  # relative excess; T is too small by up to a quarter of this
_ROUNDED_BELOW = -3.0  # smaller log-probabilities are rounded
_STEPS = 32  # per unit; the rounding errors average out
_CHUNK = 1 << 20  # log-probabilities at a time


def lump_classes(logits: NDArray[np.float16], labels: NDArray[Any]) -> NDArray[np.float16]:
    """Return log-probabilities (n, C) with a common value for the unlikely classes of each voxel.

    Args:
        logits: (n, C) log-probabilities.
        labels: (n,) true classes.
    """
    if logits.shape[1] <= DENSE_HEADS:
        return logits
    lumped = np.empty_like(logits)
    step = _CHUNK // logits.shape[1] + 1
    for start in range(0, len(logits), step):
        some = slice(start, start + step)
        lumped[some] = _lumped(logits[some].astype(np.float32), labels[some].astype(np.int64)[:, None])
    return lumped


def _lumped(z: NDArray[np.float32], y: NDArray[np.int64]) -> NDArray[np.float32]:
    classes = z.shape[1]
    order = np.argsort(-z, axis=1, kind="stable")
    ordered = np.take_along_axis(z, order, 1)
    mass, root = (np.cumsum(np.exp(ordered[:, ::-1] * beta), 1)[:, ::-1] for beta in (1, 0.5))
    left = classes - np.arange(classes)
    excess = np.sqrt(left * mass) - root
    listed = np.maximum((excess <= _TOLERANCE * root[:, 1:2]).argmax(1), 1)[
        :, None
    ]  # for the last class alone the excess is 0
    # the true class is listed, not lumped
    in_lump = np.argsort(order, axis=1)
    in_lump = np.take_along_axis(in_lump, y, 1) >= listed
    of_label = np.take_along_axis(z, y, 1)
    rest = np.take_along_axis(mass, listed, 1) - np.where(in_lump, np.exp(of_label), 0)
    number = classes - listed - in_lump
    common = np.log(np.maximum(rest / np.maximum(number, 1), MIN_PROBABILITY))
    values = np.where(np.arange(classes) < listed, ordered, common)
    values = np.where(values > _ROUNDED_BELOW, values, np.round(values * _STEPS) / _STEPS)
    result = np.empty_like(z)
    np.put_along_axis(result, order, values.astype(np.float32), 1)
    np.put_along_axis(result, y, of_label, 1)
    return result


def lists_classes(logits: NDArray[np.float16], labels: NDArray[Any]) -> bool:
    """Tell whether a file lists the classes (n, heads) of each voxel: those of many, but not regions."""
    return labels.ndim == 1 and logits.shape[1] > DENSE_HEADS


def common_value(logits: NDArray[np.float16]) -> NDArray[np.float16]:
    """Return the second smallest log-probability of each voxel, which is that of its lump, if any."""
    return np.partition(logits, 1, axis=1)[:, 1]


def listed_classes(
    logits: NDArray[np.float16],
) -> tuple[NDArray[np.float16], NDArray[np.uint16], NDArray[np.uint16], NDArray[np.float16]]:
    """Split log-probabilities into those of the lump and those of listed classes.

    Returns:
        The common value (n,) and the number of listed classes (n,) of each voxel; then the listed classes (m,) and
        their values (m,), voxel after voxel.
    """
    common = common_value(logits)
    voxels, classes = (logits != common[:, None]).nonzero()
    number = np.bincount(voxels, minlength=len(logits)).astype(np.uint16)
    return common, number, classes.astype(np.uint16), logits[voxels, classes]


def from_listed(
    common: NDArray[np.float16], number: NDArray[Any], classes: NDArray[Any], values: NDArray[np.float16], heads: int
) -> NDArray[np.float16]:
    """Return the log-probabilities (n, heads), the inverse of `listed_classes`."""
    logits = np.repeat(common[:, None], heads, 1)
    logits[np.repeat(np.arange(len(common)), number), classes] = values
    return logits

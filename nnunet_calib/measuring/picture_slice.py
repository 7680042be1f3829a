"""The slice of a case that pictures show: small, and the same for every model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_calib.measuring.scopes import boundary_voxels

MARGIN = 16
MAX_SIDE = 512


@dataclass(frozen=True)
class RepresentativeSlice:
    """A part of a slice through a case.

    Attributes:
        where: (dimensions, 3) int64: start, stop and step along each axis of the case's label map; see `index`.
        spacing: (2,) float64, mm between rows and between columns.
        labels: (rows, columns) uint16 ground truth, the ignore label included.
        probabilities: (heads, rows, columns) uint8: p = value / 255, with an error of at most 1/510.
        image: (channels, rows, columns) float16, without channels if no image was available.
    """

    where: NDArray[np.int64]
    spacing: NDArray[np.float64]
    labels: NDArray[np.uint16]
    probabilities: NDArray[np.uint8]
    image: NDArray[np.float16]

    @property
    def index(self) -> tuple[slice | int, ...]:
        """Index of the slice in the label map; `image[(slice(None), *index)]` is that of the case's image."""
        slices: list[slice | int] = [slice(*map(int, axis)) for axis in self.where]
        return (int(self.where[0, 0]), *slices[1:]) if len(slices) == 3 else tuple(slices)


def slice_with_longest_border(labels: NDArray[Any], valid: NDArray[np.bool_] | None = None) -> int:
    """Return the index of the slice along the first axis with the most voxels beside another label of the slice.

    It depends on the ground truth alone, so that the pictures of several models show the same slice. Pairs with an
    ignored voxel do not count. Of equal slices it is the first; without any border it is the middle one.
    """
    borders = [
        np.count_nonzero(boundary_voxels(labels[i], None if valid is None else valid[i])) for i in range(len(labels))
    ]
    return int(np.argmax(borders)) if any(borders) else len(labels) // 2


def representative_slice(
    labels: NDArray[Any],
    read: Callable[[slice], NDArray[Any]],
    *,
    foreground: NDArray[np.bool_],
    valid: NDArray[np.bool_] | None = None,
    spacing: Sequence[float] | None = None,
    image: NDArray[Any] | None = None,
    regions: bool = False,
) -> RepresentativeSlice | None:
    """Cut the most informative slice: in 3D the one with the longest label border, in 2D the whole.

    It is cropped to the bounding box of the true and the predicted foreground, with a margin of 16 voxels, and reduced
    to every k-th row and column where more than 512 remain. Without any foreground it is not cropped.

    Args:
        labels: ground truth (*spatial), 2D or 3D.
        read: returns the probabilities (C, rows, ...) of a range of the first axis.
        foreground: (*spatial) mask of the true foreground.
        valid: mask of the annotated voxels; None if all are.
        spacing: voxel size in mm along each axis of `labels`; None means 1.
        image: (channels, *spatial), if available. Values beyond the range of float16, 65504, are clipped.
        regions: whether the heads are regions, whose predicted foreground is p > 1/2 of any; for classes it is a top
            label other than 0.

    Returns:
        The slice; None for a case without voxels, or with a single axis.

    Raises:
        ValueError: if the image is not on the grid of the labels.
    """
    if image is not None and image.shape[1:] != labels.shape:
        raise ValueError(
            f"expected an image (channels, *spatial) on the grid of the labels, {labels.shape}, got {image.shape}: is "
            f"it of the same case?"
        )
    if labels.ndim not in (2, 3) or not labels.size:
        return None
    first = slice_with_longest_border(labels, valid) if labels.ndim == 3 else 0
    rows = slice(first, first + 1) if labels.ndim == 3 else slice(0, len(labels))
    plane = labels.shape[-2:]
    p = np.asarray(read(rows)).astype(np.float32).reshape(-1, *plane)
    shown = foreground[rows].reshape(plane) | ((p > 0.5).any(0) if regions else p.argmax(0) > 0)
    if valid is not None:
        known = valid[rows].reshape(plane)
        shown &= known
        p[:, ~known] = np.nan_to_num(p[:, ~known])  # any value may be predicted there
    window = []
    for axis, size in enumerate(plane):
        hit = np.flatnonzero(shown.any(1 - axis))
        low, high = (max(hit[0] - MARGIN, 0), min(hit[-1] + 1 + MARGIN, size)) if len(hit) else (0, size)
        window.append((low, high, -(-(high - low) // MAX_SIDE)))
    where = np.array([(first, first + 1, 1)] * (labels.ndim - 2) + window, np.int64)
    cut = (slice(None), *(slice(*axis) for axis in window))
    shape = p[cut].shape[1:]
    if image is None:
        pixels = np.zeros((0, *shape), np.float16)
    else:
        largest = np.finfo(np.float16).max
        pixels = np.asarray(image[:, rows]).reshape(-1, *plane)[cut].clip(-largest, largest).astype(np.float16)
    return RepresentativeSlice(
        where=where,
        spacing=(np.ones(2) if spacing is None else np.asarray(spacing, np.float64)[-2:]) * where[-2:, 2],
        labels=labels[rows].reshape(1, *plane)[cut][0].astype(np.uint16),
        probabilities=np.rint(255 * p[cut].clip(0, 1)).astype(np.uint8),
        image=pixels,
    )

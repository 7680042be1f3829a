"""Where in a case calibration is measured: everywhere, in the ground-truth foreground, around class boundaries.

Background dominates a whole image, so that an error over all voxels says little about the object; the three scopes are
measured side by side.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, find_objects

SCOPES = ("image", "foreground", "boundary")
BOUNDARY_MM = 2.0

# A voxel's scopes as bits: every voxel that counts is in "image".
FOREGROUND_BIT, BOUNDARY_BIT = 1, 2


def boundary_voxels(labels: NDArray, valid: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
    """Voxels that have a face neighbour with another label; pairs with an ignored voxel do not count."""
    edge = np.zeros(labels.shape, dtype=bool)
    for axis in range(labels.ndim):
        low = tuple(slice(None, -1) if a == axis else slice(None) for a in range(labels.ndim))
        high = tuple(slice(1, None) if a == axis else slice(None) for a in range(labels.ndim))
        differs = labels[low] != labels[high]
        if valid is not None:
            differs &= valid[low] & valid[high]
        edge[low] |= differs
        edge[high] |= differs
    return edge


def boundary_band(
    labels: NDArray,
    *,
    spacing_mm: Sequence[float] | None = None,
    width_mm: float = BOUNDARY_MM,
    valid: NDArray[np.bool_] | None = None,
) -> NDArray[np.bool_]:
    """Voxels whose centre lies within `width_mm` of the centre of a boundary voxel.

    Args:
        labels: label map (*spatial).
        spacing_mm: voxel size along each axis of `labels`; None means 1.
        width_mm: half width of the band, at least 0 (0: the boundary voxels alone).
        valid: mask of the voxels that are annotated; None if all are.

    Returns:
        Mask of the shape of `labels`; all False where there is no boundary.
    """
    edge = boundary_voxels(labels, valid)
    box = find_objects(edge.astype(np.uint8), max_label=1)[0]
    if box is None:
        return edge
    spacing = np.ones(labels.ndim) if spacing_mm is None else np.asarray(spacing_mm, dtype=float)
    # the distance transform is slow and the band is thin: only the box that can contain it is transformed
    width_mm *= 1 + 1e-6  # a multiple of the spacing is in, whatever way it is rounded
    margin = np.ceil(width_mm / spacing).astype(int)
    box = tuple(
        slice(max(b.start - m, 0), min(b.stop + m, n)) for b, m, n in zip(box, margin, labels.shape, strict=True)
    )
    edge[box] = distance_transform_edt(~edge[box], sampling=spacing) <= width_mm
    return edge


def scope_bits(
    labels: NDArray,
    *,
    foreground: NDArray[np.bool_],
    valid: NDArray[np.bool_] | None,
    spacing_mm: Sequence[float] | None,
    boundary_mm: float,
) -> NDArray[np.uint8]:
    """The scopes of each voxel as bits; `scope_members` reads them."""
    band = boundary_band(labels, spacing_mm=spacing_mm, width_mm=boundary_mm, valid=valid)
    return (foreground * np.uint8(FOREGROUND_BIT) + band * np.uint8(BOUNDARY_BIT)).astype(np.uint8)


def scope_members(scope: str) -> list[int]:
    """The values of the scope bits whose voxels belong to a scope.

    Raises:
        ValueError: for an unknown scope.
    """
    if scope not in SCOPES:
        raise ValueError(f"expected scope to be one of {', '.join(SCOPES)}, got {scope!r}")
    bit = {"image": 0, "foreground": FOREGROUND_BIT, "boundary": BOUNDARY_BIT}[scope]
    return [bits for bits in range(4) if bits & bit == bit]

"""The scopes of a case in which calibration is measured: the image, the true foreground, and label boundaries.

Background dominates an image, so that an error over all voxels says little about the object; all three scopes are
measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

SCOPES = ("image", "foreground", "boundary")
BOUNDARY_MM = 2.0
_MOST_VOXELS = 20  # a larger half width, as in micro-CT or with a spacing in metres, gives no band
_CT_VOXELS = 3  # half width of 2 mm in a CT of 0.7 mm
_ALL = 0.99  # a scope with this fraction of the voxels is taken for the whole image
_MANY_SHIFTS = 5000  # number of shifts from which the distance transform is faster

# A voxel's scopes as bits: every valid voxel is in "image".
FOREGROUND_BIT, BOUNDARY_BIT = 1, 2


def default_boundary_mm(spacing_mm: Sequence[float] | None) -> float:
    """Return the default half width of the boundary scope: 2 mm, but 3 voxels where 2 mm exceed 20 voxels.

    Args:
        spacing_mm: voxel size along each axis, of which the finest counts; None and invalid sizes mean 1.
    """
    finest = min((mm for mm in spacing_mm or () if 0 < mm < math.inf), default=1.0)
    return BOUNDARY_MM if finest * _MOST_VOXELS >= BOUNDARY_MM else float(f"{finest * _CT_VOXELS:.3g}")


def check_boundary_mm(width_mm: float) -> float:
    """Return a half width of the boundary scope as a float, or raise ValueError if it is invalid."""
    if isinstance(width_mm, bool) or not isinstance(width_mm, int | float) or not 0 <= width_mm < math.inf:
        raise ValueError(f"expected a width of the boundary scope in mm, at least 0, got {width_mm!r:.99}")
    return float(width_mm)


def scope_notes(voxels: Mapping[str, int], boundary_mm: float) -> list[str]:
    """Return a note on each scope that holds nearly all voxels, from the number of voxels in each."""
    called = {
        "foreground": ("foreground", ""),
        "boundary": (f"boundary scope of {boundary_mm:g} mm", "; measure again with a smaller --boundary-mm"),
    }
    return [
        f"The {name} holds {voxels[scope] / voxels['image']:.1%} of the voxels: its values are those of the whole "
        f"image{advice}."
        for scope, (name, advice) in called.items()
        if voxels[scope] >= max(_ALL * voxels["image"], 1)
    ]


def boundary_voxels(labels: NDArray[Any], valid: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
    """Return the mask of voxels with a face neighbour of another label; pairs with an ignored voxel do not count."""
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
    labels: NDArray[Any],
    *,
    spacing_mm: Sequence[float] | None = None,
    width_mm: float = BOUNDARY_MM,
    valid: NDArray[np.bool_] | None = None,
) -> NDArray[np.bool_]:
    """Return the mask of voxels whose centre lies within `width_mm` of the centre of a boundary voxel.

    Args:
        labels: label map (*spatial).
        spacing_mm: voxel size along each axis of `labels`; None means 1.
        width_mm: half width of the band, at least 0 (0: the boundary voxels alone).
        valid: mask of the annotated voxels; None if all are.

    Returns:
        Mask of the shape of `labels`; all False where there is no boundary.
    """
    edge = boundary_voxels(labels, valid)
    box = _bounding_box(edge)
    if box is None:
        return edge
    spacing = np.ones(labels.ndim) if spacing_mm is None else np.asarray(spacing_mm, dtype=float)
    # the band is thin: only the box that contains it is processed
    width_mm *= 1 + 1e-6  # include multiples of the spacing in spite of rounding
    reach = np.minimum(width_mm / spacing, labels.shape).astype(int)
    box = tuple(
        slice(max(b.start - r, 0), min(b.stop + r, n)) for b, r, n in zip(box, reach, labels.shape, strict=True)
    )
    if np.prod(2 * reach[:-1] + 1) > _MANY_SHIFTS:
        edge[box] = distance_transform_edt(~edge[box], sampling=spacing) <= width_mm
    else:
        edge[box] = _dilated(edge[box], spacing, reach, width_mm)
    return edge


def _bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, ...] | None:
    """Return the bounding box of a mask; None if the mask is empty."""
    box = []
    for axis in range(mask.ndim):
        inside = np.flatnonzero(mask.any(tuple(a for a in range(mask.ndim) if a != axis)))
        if not inside.size:
            return None
        box.append(slice(int(inside[0]), int(inside[-1]) + 1))
    return tuple(box)


def _dilated(
    mask: NDArray[np.bool_], spacing: NDArray[np.float64], reach: NDArray[np.int64], width_mm: float
) -> NDArray[np.bool_]:
    """Return the voxels within `width_mm` of a mask; a distance transform takes ten times as long, and more memory.

    A ball consists of rows along the last axis. Dilations by rows of growing half length continue from each other; then
    only shifts along the other axes remain, of masks packed eight voxels to a byte.
    """
    rows: dict[int, list[tuple[int, ...]]] = {}
    for offset in product(*(range(-r, r + 1) for r in reach[:-1])):
        left = width_mm**2 - np.square(offset * spacing[:-1]).sum()
        if left >= 0:
            rows.setdefault(min(int(np.sqrt(left) / spacing[-1]), int(reach[-1])), []).append(offset)
    dilated, done = mask.copy(), 0
    band = np.zeros_like(np.packbits(mask, axis=-1))
    for half in sorted(rows):
        for shift in range(done + 1, half + 1):
            dilated[..., shift:] |= mask[..., :-shift]
            dilated[..., :-shift] |= mask[..., shift:]
        done = half
        packed = np.packbits(dilated, axis=-1)
        for offset in rows[half]:
            to = tuple(slice(max(o, 0), n + min(o, 0)) for o, n in zip(offset, mask.shape, strict=False))
            source = tuple(slice(max(-o, 0), n + min(-o, 0)) for o, n in zip(offset, mask.shape, strict=False))
            band[to] |= packed[source]
    return np.unpackbits(band, axis=-1, count=mask.shape[-1]).view(bool)


def scope_bits(
    labels: NDArray[Any],
    *,
    foreground: NDArray[np.bool_],
    valid: NDArray[np.bool_] | None,
    spacing_mm: Sequence[float] | None,
    boundary_mm: float,
) -> NDArray[np.uint8]:
    """Return the scopes of each voxel as bits, which `scope_members` selects."""
    band = boundary_band(labels, spacing_mm=spacing_mm, width_mm=boundary_mm, valid=valid)
    bits = band.view(np.uint8) * np.uint8(BOUNDARY_BIT)
    bits |= foreground.view(np.uint8) * np.uint8(FOREGROUND_BIT)
    return bits


def scope_members(scope: str) -> list[int]:
    """Return the values of the scope bits of a scope's voxels.

    Raises:
        ValueError: for an unknown scope.
    """
    if scope not in SCOPES:
        raise ValueError(f"expected scope to be one of {', '.join(SCOPES)}, got {scope!r}")
    bit = {"image": 0, "foreground": FOREGROUND_BIT, "boundary": BOUNDARY_BIT}[scope]
    return [bits for bits in range(4) if bits & bit == bit]

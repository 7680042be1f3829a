"""The bytes that the statistics of a case take in their file, and how they are kept within a limit.

The histograms are exact and stay whole. The voxel sample gets what they leave beside the slice for pictures, and the
slice what is left then.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_calib.measuring.class_lumps import listed_classes, lists_classes
from nnunet_calib.measuring.picture_slice import RepresentativeSlice
from nnunet_calib.measuring.voxel_sample import STRATA, VoxelSample

FILE_BYTES = 4_000_000  # of a case
_LEAST_SAMPLE = 1_000_000  # however large the histograms are
_SLICE = 1_000_000  # for which the sample makes room, at most
_HEADER = 4_000  # names, shapes and the model
_ARRAY = 400  # what an archive adds to the bytes of an array
_SOME_VOXELS = 20_000  # show how many bytes the others take
_LEAST_SIDE = 64  # pixels of a slice that is thinned


def packed_bytes(arrays: Iterable[NDArray[Any]], limit: int | None = None) -> int:
    """Return the bytes of compressed arrays in an .npz; if they take no more than `limit` uncompressed, these."""
    arrays = [*arrays]
    others = _ARRAY * len(arrays)
    if limit is not None and (raw := others + sum(array.nbytes for array in arrays)) <= limit:
        return raw
    return others + sum(len(zlib.compress(np.ascontiguousarray(array).data)) for array in arrays)


def arrays_of(part: Any) -> list[NDArray[Any]]:
    """Return the arrays that are written of histograms, of a slice, or of a sample."""
    values = {field.name: getattr(part, field.name) for field in fields(part)}
    if isinstance(part, VoxelSample) and lists_classes(part.logits, part.labels):
        return [*listed_classes(values.pop("logits")), *values.values()]
    return [*values.values()]


def sample_in_room(draw: Callable[[int], VoxelSample], max_voxels: int, room: int) -> VoxelSample:
    """Draw fewer and fewer voxels until their file takes no more than `room` bytes.

    Args:
        draw: returns a sample of at most so many voxels.
        max_voxels: to begin with.
        room: bytes.
    """
    while True:
        sample = draw(max_voxels)
        step = max(1, len(sample) // _SOME_VOXELS)
        some = VoxelSample(*(getattr(sample, field.name)[::step] for field in fields(sample)))
        needed = packed_bytes(arrays_of(some), room // step) * step
        if needed <= room and step > 1:
            needed = packed_bytes(arrays_of(sample), room)
        if needed <= room or max_voxels == STRATA:
            return sample
        max_voxels = max(int(len(sample) * room / needed * 0.98), STRATA)


def room_for_sample(histograms: Any, shown: RepresentativeSlice | None) -> int:
    """Return the bytes that are left for the voxel sample of a case."""
    others = 0 if shown is None else packed_bytes(arrays_of(shown), _SLICE // 4)
    return max(_left(histograms) - min(others, _SLICE), _LEAST_SAMPLE)


def slice_in_room(
    shown: RepresentativeSlice | None, histograms: Any, sample: VoxelSample
) -> RepresentativeSlice | None:
    """Return a slice of every row and column, or of every second, third, ... where its file would be too large."""
    if shown is None:
        return None
    room = _left(histograms)
    if packed_bytes(arrays_of(shown), room) + packed_bytes(arrays_of(sample), room) <= room:
        return shown
    room -= packed_bytes(arrays_of(sample))
    thinner, step = shown, 1
    while packed_bytes(arrays_of(thinner)) > room and max(thinner.labels.shape) > _LEAST_SIDE:
        step += 1
        where = shown.where.copy()
        where[-2:, 2] *= step
        kept = (..., slice(None, None, step), slice(None, None, step))
        images = {name: getattr(shown, name)[kept] for name in ("labels", "probabilities", "image")}
        thinner = replace(shown, where=where, spacing=shown.spacing * step, **images)
    return thinner


def _left(histograms: Any) -> int:
    return FILE_BYTES - _HEADER - packed_bytes(arrays_of(histograms))

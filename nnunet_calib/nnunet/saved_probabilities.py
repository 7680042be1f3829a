"""One case, measured from probabilities: of the network while nnU-Net exports them, or of the .npz that it has written.

nnU-Net's .npz (--save_probabilities, --npz) holds `probabilities`, (C, *spatial), with crop and transposition reverted:
the grid on which nnU-Net's reader returns the label map.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_calib.io.npz_arrays import Described, open_arrays
from nnunet_calib.io.atomic_files import reason
from nnunet_calib.nnunet.labels import Heads
from nnunet_calib.measuring.slabs import Probabilities, check_sums
from nnunet_calib.measuring.case_statistics import CaseStatistics

_KEY = "probabilities"
_OF_ZERO = 0.125  # of a step
_OPAQUE = (255, 65535)  # in 8 and 16 bits
SAVE_THEM = "predict with --save_probabilities, or validate with --npz"


def measure_case(
    probabilities: Probabilities,
    labels_file: Path,
    reader: Any,
    heads: Heads,
    *,
    case: str,
    model: dict[str, Any],
    spacing: Sequence[float] | None = None,
    boundary_mm: float | None = None,
    crop: tuple[slice, ...] | None = None,
) -> CaseStatistics:
    """Measure probabilities against a label file; `spacing` in mm is that of the file unless given.

    The other arguments, and errors, are those of `CaseStatistics.from_probabilities`; whatever nnU-Net's reader raises
    where it cannot read the file is raised too.
    """
    labels, properties = reader.read_seg(str(labels_file))
    labels = _in_two_bytes(_only_layer(labels, len(properties["spacing"]), labels_file), labels_file)
    return CaseStatistics.from_probabilities(
        probabilities,
        labels,
        regions=heads.regions,
        ignore_label=heads.ignore_label,
        spacing=properties["spacing"] if spacing is None else spacing,
        boundary_mm=boundary_mm,
        crop=crop,
        case=case,
        model=model,
    )


def _only_layer(labels: NDArray, axes: int, file: Path) -> NDArray:
    """The label map of a file, which may repeat it as the colours of a grey picture.

    Args:
        labels: (layers, *spatial) as nnU-Net's reader returns them.
        axes: of the image. One less than those of `labels` without the layers tells of a vector image, whose layers
            the readers leave behind the other axes.
        file: for messages.

    Raises:
        ValueError: if layers differ, since nnU-Net and we would take the first for all.
    """
    layers = labels.shape[-1] if axes < labels.ndim - 1 else len(labels)
    if layers == 1 or (layers == len(labels) and _is_grey(labels)):
        return labels[0]
    raise ValueError(
        f"expected one label map, found {layers} layers in {file}: save one layer, in which each voxel has one number; "
        f"structures that overlap are regions of dataset.json, with a number for what they share"
    )


def _is_grey(layers: NDArray) -> bool:
    """Whether all layers are the same but for an alpha channel without transparency."""
    same = [np.array_equal(layer, layers[0]) for layer in layers]
    if len(layers) == 4 and not same[3]:
        alpha = layers[3]
        same[3] = alpha.min() == alpha.max() and alpha.flat[0] in _OPAQUE
    return all(same)


def _in_two_bytes(labels: NDArray, file: Path) -> NDArray[np.int16]:
    """Labels as integers: as float32, which some readers return, they would take as much memory as a class map."""
    with np.errstate(invalid="ignore"):  # NaN
        integers = labels.astype(np.int16)
    if not np.can_cast(labels.dtype, np.int16) and (wrong := integers != labels).any():
        raise ValueError(
            f"expected whole numbers up to {np.iinfo(np.int16).max} as labels, found {labels[wrong][0]} in {file}: "
            f"check the label map"
        )
    return integers


class SavedProbabilities:
    """The probabilities (C, *spatial) of an .npz of nnU-Net's, which are unpacked, whole, when they are first indexed.

    Until then only their shape is known: a file of another case, or one that was made to unpack to more than a case can
    have, takes no memory. Errors as `describe_npz`; indexing raises ValueError if the file is damaged.

    uint8 and uint16, which save room, are steps of which the largest number is 1.
    """

    def __init__(self, path: Path, *, regions: bool) -> None:
        self._path, self._regions = path, regions
        described = describe_npz(path)
        self.shape = described.shape
        self._steps = _steps(described.dtype)

    def __getitem__(self, key: Any) -> NDArray:
        values = self._unpacked[key]
        return of_steps(values, self._steps, regions=self._regions) if self._steps else values

    @cached_property
    def _unpacked(self) -> NDArray:
        try:
            with open_arrays(self._path) as arrays:
                values = arrays.read(_KEY)
        except MemoryError:
            raise
        except Exception as error:  # zipfile and zlib each have their own way to say "damaged"
            raise _damaged(self._path, error) from error
        return values.astype(values.dtype.newbyteorder("="), copy=False)  # which PyTorch needs


def describe_npz(path: Path) -> Described:
    """The shape and type of the probabilities in an .npz of nnU-Net's, without decompressing them.

    Raises:
        ValueError: if the file is no archive, or holds no array of that name and of a type that probabilities have.
    """
    try:
        with open_arrays(path) as arrays:
            names = [*arrays]
            found = arrays.describe(_KEY) if _KEY in names else None
    except MemoryError:
        raise
    except Exception as error:  # zipfile and NumPy each have their own way to say "damaged"
        raise _damaged(path, error) from error
    if found is None:
        raise ValueError(
            f"expected an .npz with an array {_KEY!r}, as nnU-Net writes it, found {', '.join(names)!r:.99} in {path}: "
            f"{SAVE_THEM}"
        )
    if not _steps(found.dtype) and (found.dtype.kind != "f" or found.dtype.itemsize > 8):
        raise ValueError(
            f"expected floating-point probabilities, or uint8 or uint16 as steps to 1, found {found.dtype} in {path}: "
            f"{SAVE_THEM}"
        )
    return found


def _steps(dtype: np.dtype) -> int:
    """How many steps from 0 to 1 an integer type has; 0 for others."""
    return int(np.iinfo(dtype).max) if dtype.kind == "u" and dtype.itemsize <= 2 else 0


def of_steps(values: NDArray, steps: int, *, regions: bool) -> NDArray[np.float32]:
    """Probabilities (C, ...) that were rounded to so many steps.

    A step of 0 is read as a small probability, as -log of 0 would outweigh all other voxels where such a class is the
    true one: an eighth of a step, which the other classes share, so that a voxel that was certain nearly stays so.

    Raises:
        ValueError: where those of classes do not sum to 1.
    """
    p = values.astype(np.float32)
    if regions:
        p.clip(_OF_ZERO, steps - _OF_ZERO, out=p)
        p /= steps
        return p
    check_sums(p / np.float32(steps), 0.5 / steps)
    p[values == 0] = _OF_ZERO / max(1, len(p) - 1)
    p /= p.sum(0)
    return p


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"expected an .npz that nnU-Net has written, found {path} damaged ({reason(error)}): {SAVE_THEM} again"
    )

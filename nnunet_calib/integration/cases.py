"""One case, measured from probabilities: of the network while nnU-Net exports them, or of the .npz that it has written.

nnU-Net's .npz (--save_probabilities, --npz) holds `probabilities`, (C, *spatial), with crop and transposition reverted:
the grid on which nnU-Net's reader returns the label map.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from nnunet_calib.integration.labels import Heads
from nnunet_calib.slabs import Probabilities
from nnunet_calib.statistics import CaseStatistics

_KEY = "probabilities"
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
    crop: tuple[slice, ...] | None = None,
) -> CaseStatistics:
    """Measure probabilities against a label file; `spacing` in mm is that of the file unless given.

    The other arguments, and errors, are those of `CaseStatistics.from_probabilities`; whatever nnU-Net's reader raises
    where it cannot read the file is raised too.
    """
    labels, properties = reader.read_seg(str(labels_file))
    labels = _in_two_bytes(labels[0], labels_file)
    return CaseStatistics.from_probabilities(
        probabilities,
        labels,
        regions=heads.regions,
        ignore_label=heads.ignore_label,
        spacing=properties["spacing"] if spacing is None else spacing,
        crop=crop,
        case=case,
        model=model,
    )


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


def npz_shape(path: Path) -> tuple[int, ...]:
    """The shape of the probabilities in an .npz of nnU-Net's, without decompressing them.

    Raises:
        ValueError: if the file is no archive, or holds no floating-point array of that name.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
            if _KEY in names:
                with archive.open(f"{_KEY}.npy") as file:
                    version = npy.read_magic(file)
                    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                    shape, _, dtype = read(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise _damaged(path, error) from error
    if _KEY not in names:
        raise ValueError(
            f"expected an .npz with an array {_KEY!r}, as nnU-Net writes it, found {', '.join(names) or 'nothing'} in "
            f"{path}: {SAVE_THEM}"
        )
    if dtype.kind != "f":
        raise ValueError(f"expected floating-point probabilities, found {dtype} in {path}: {SAVE_THEM}")
    return shape


def read_npz(path: Path) -> NDArray:
    """The probabilities (C, *spatial) of an .npz of nnU-Net's, whole in memory.

    Raises:
        ValueError: if the file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return file[_KEY]
    except MemoryError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy each have their own way to say "damaged"
        raise _damaged(path, error) from error


def image_spacing(path: Path) -> Sequence[float] | None:
    """The voxel size in the .pkl that nnU-Net writes beside an .npz; None if there is no such file.

    It is that of the image, which the validation hook uses; the label map's own is the same where its format keeps one.

    Raises:
        ValueError: if the file is damaged.
    """
    path = path.with_name(f"{path.name.removesuffix('.npz')}.pkl")
    try:
        with open(path, "rb") as file:
            return pickle.load(file)["spacing"]
    except FileNotFoundError:
        return None
    except Exception as error:  # unpickling raises nearly everything
        raise ValueError(f"expected nnU-Net's properties of the image, found {path} unreadable ({error})") from error


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"expected an .npz that nnU-Net has written, found {path} damaged ({error}): {SAVE_THEM} again")

"""A reader of the .npz in which nnU-Net saves the probabilities of a case.

nnU-Net's .npz (--save_probabilities, --npz) holds `probabilities`, (C, *spatial), with crop and transposition reverted,
on the grid on which nnU-Net's reader returns the label map.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_calib.io.npz_arrays import Described, open_arrays
from nnunet_calib.io.wording import reason
from nnunet_calib.measuring.volume import Probabilities, check_range, check_sums
from nnunet_calib.posthoc import IDENTITY
from nnunet_calib.posthoc.calibrator import Calibrator
from nnunet_calib.posthoc.logits import calibrated, log_probabilities

_KEY = "probabilities"
_OF_ZERO = 0.125  # of a step
SAVE_THEM = "predict with --save_probabilities, or validate with --npz"


class SavedProbabilities:
    """Probabilities (C, *spatial) of one of nnU-Net's .npz, unpacked whole when they are first indexed.

    Until then only their shape is read: a file of another case, or one crafted to unpack to a huge array, takes no
    memory. Errors as for `describe_npz`; indexing raises ValueError if the file is damaged.

    uint8 and uint16, which save disk space, count steps; the largest number of the type stands for 1.
    """

    def __init__(self, path: Path, *, regions: bool) -> None:
        self._path, self._regions = path, regions
        described = describe_npz(path)
        self.shape = described.shape
        self._steps = _steps(described.dtype)

    def __getitem__(self, key: Any) -> NDArray[Any]:
        values = self._unpacked[key]
        return of_steps(values, self._steps, regions=self._regions) if self._steps else values

    @cached_property
    def _unpacked(self) -> NDArray[Any]:
        try:
            with open_arrays(self._path) as arrays:
                values = arrays.read(_KEY)
        except MemoryError:
            raise
        except Exception as error:  # zipfile and zlib each raise their own errors
            raise _damaged(self._path, error) from error
        return values.astype(values.dtype.newbyteorder("="), copy=False)  # PyTorch needs native byte order


class CalibratedProbabilities:
    """Calibrated probabilities, computed on indexing.

    Zeros stay zeros. Nearly all lie outside nnU-Net's crop, where there were no logits to calibrate.
    """

    def __init__(self, probabilities: Probabilities, calibrator: Calibrator, *, regions: bool) -> None:
        self._probabilities, self._calibrator, self._regions = probabilities, calibrator, regions
        self.shape = probabilities.shape

    def __getitem__(self, key: Any) -> NDArray[np.float32]:
        p: NDArray[np.float32] = self._probabilities[key]
        check_range(p)  # calibration would map invalid numbers into [0, 1]
        if not self._regions:
            check_sums(p)
        if self._calibrator == IDENTITY:
            return p
        result: NDArray[np.float32] = calibrated(
            log_probabilities(p, regions=self._regions), self._calibrator, regions=self._regions
        )
        if (impossible := p == 0).any():
            result[impossible] = 0
            if not self._regions:
                result /= result.sum(0)
        return result


def describe_npz(path: Path) -> Described:
    """Return the shape and type of the probabilities in one of nnU-Net's .npz, without decompressing them.

    Raises:
        ValueError: if the file is not an archive, or lacks an array of this name with a type fit for probabilities.
    """
    try:
        with open_arrays(path) as arrays:
            names = [*arrays]
            found = arrays.describe(_KEY) if _KEY in names else None
    except MemoryError:
        raise
    except Exception as error:  # zipfile and NumPy each raise their own errors
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
    """Return the number of steps from 0 to 1 that an integer type has; 0 for other types."""
    return int(np.iinfo(dtype).max) if dtype.kind == "u" and dtype.itemsize <= 2 else 0


def of_steps(values: NDArray[Any], steps: int, *, regions: bool) -> NDArray[np.float32]:
    """Return probabilities (C, ...) from values that were rounded to `steps` steps.

    A value of 0 is read as a small probability: where that class is the true one, -log 0 would outweigh all other
    voxels. The classes with 0 share an eighth of a step, so that a certain voxel stays nearly certain.

    Raises:
        ValueError: if the probabilities of the classes do not sum to 1.
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

"""A safe reader of the .pkl with image properties that nnU-Net writes beside an .npz.

A pickle is a program: it can call any function, and a damaged one can put NumPy's objects into a state that crashes the
process. So this reader checks the instructions first and does not rebuild NumPy's types, arrays and numbers. Stand-ins
keep their description, and only the requested numbers are read from their bytes.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnunet_calib.io.atomic_files import open_regular
from nnunet_calib.io.wording import reason
from nnunet_calib.nnunet.saved_probabilities import SAVE_THEM


def image_spacing(path: Path) -> Sequence[float] | None:
    """Return the voxel size in the .pkl that nnU-Net writes beside an .npz; None if there is no such file.

    It is the voxel size of the image, which the validation hook uses too. That of the label map is the same where its
    format stores one.

    Raises:
        ValueError: if the file is damaged, holds objects other than numbers, or lacks a voxel size.
    """
    path = path.with_name(f"{path.name.removesuffix('.npz')}.pkl")
    try:
        with open_regular(path) as file:
            content = file.read()
        spacing = [float(mm) for mm in _load(content)["spacing"]]
        if not (spacing and all(0 < mm < math.inf for mm in spacing)):
            raise ValueError(f"spacing {spacing}")
    except FileNotFoundError:
        return None
    except Exception as error:  # unpickling raises nearly everything
        raise ValueError(
            f"expected nnU-Net's properties of the image, found {path} unreadable ({reason(error)}): {SAVE_THEM} again"
        ) from error
    return spacing


def _load(content: bytes) -> Any:
    """Unpickle an object with memory in proportion to the file, whatever sizes the file claims."""
    for instruction, argument, _ in pickletools.genops(content):  # raises where a length exceeds the file
        if instruction.name.endswith("PUT") and int(argument or 0) > len(content):
            # the unpickler would allocate a table of this size
            raise pickle.UnpicklingError(f"it numbers object {argument} in {len(content)} bytes")
    return _Unpickler(io.BytesIO(content)).load()


class _Type:
    """Stand-in for a `numpy.dtype`: its name, and its byte order, the second entry of its state."""

    def __init__(self, name: str = "", *_: Any) -> None:
        self.name, self.order = name, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def read(self, content: bytes) -> list[float]:
        if not re.fullmatch("[<>=|][fiu][1248]", f"{self.order}{self.name}"):
            raise pickle.UnpicklingError(f"type {self.order}{self.name}")
        values: list[float] = np.frombuffer(content, f"{self.order}{self.name}").astype(float).tolist()
        return values


class _Values:
    """Stand-in for an array: bytes that hold numbers of a `_Type`."""

    kind, content = _Type(), b""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, _, self.kind, _, self.content = state

    def __iter__(self) -> Iterator[float]:
        return iter(self.kind.read(self.content))

    def __float__(self) -> float:
        (value,) = self
        return value


class _Number(_Values):
    def __init__(self, kind: _Type, content: bytes) -> None:
        self.kind, self.content = kind, content


class _Buffer(_Values):
    def __init__(self, content: bytes, kind: _Type, *_: Any) -> None:
        self.kind, self.content = kind, content


_STAND_INS = {
    "numpy.dtype": _Type,
    "numpy.ndarray": _Values,
    "numpy._core.multiarray._reconstruct": _Values,  # protocols 3 and 4
    "numpy._core.multiarray.scalar": _Number,
    "numpy._core.numeric._frombuffer": _Buffer,  # protocol 5
}


class _Unpickler(pickle.Unpickler):
    """Unpickler for plain values and NumPy's arrays; a pickle can otherwise call any function.

    Every name becomes a stand-in class with `__setstate__`, so that a file can change nothing else in this process.
    """

    def find_class(self, module: str, name: str) -> type:
        found = _STAND_INS.get(f"{module.replace('numpy.core', 'numpy._core')}.{name}")  # NumPy 1's name
        if found is None:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, whose code would run")
        return found

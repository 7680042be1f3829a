"""Read .npz files of any origin safely: without pickles, without paths, and with a limit on the memory.

NumPy allocates whatever an array's header claims, and a few kilobytes can unpack to gigabytes. Here headers are read
first, and an array is unpacked only if its header, its size in the archive and the caller's limit agree.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from nnunet_calib.io.atomic_files import is_plain_name, open_regular

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0, (3, 0): npy.read_array_header_2_0}
_PIECE = 1 << 20
_LARGEST_HEADER = 1 << 14


class Described(NamedTuple):
    """The header of an array, and the position of its values."""

    shape: tuple[int, ...]
    dtype: np.dtype
    by_columns: bool
    start: int

    @property
    def nbytes(self) -> int:
        """Memory of the values."""
        return math.prod(self.shape) * self.dtype.itemsize


class Arrays:
    """The arrays of an open .npz, by name; see `open_arrays`."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._members: dict[str, zipfile.ZipInfo] = {}
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if not is_plain_name(name):
                raise ValueError(f"it names {member.filename!r:.99}, which may lie outside of it")
            if name in self._members:
                raise ValueError(f"it holds {name!r:.99} twice")
            self._members[name] = member

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def describe(self, name: str) -> Described:
        """Return the shape and type of an array; only its header is unpacked.

        Raises:
            ValueError: if there is no such array, if it holds objects, or if header and archive contradict each other.
        """
        if name not in self._members:
            raise ValueError(f"it has no array {name!r}")
        member = self._members[name]
        with self._archive.open(member) as file:
            version = npy.read_magic(file)
            if version not in _HEADERS:
                raise ValueError(f"{name} is of NumPy's format {version}")
            shape, by_columns, dtype = _HEADERS[version](file, max_header_size=_LARGEST_HEADER)
            found = Described(tuple(map(int, shape)), dtype, bool(by_columns), file.tell())
        if dtype.hasobject:
            raise ValueError(f"{name} holds objects, which can run code")
        if min(found.shape, default=0) < 0 or found.nbytes != member.file_size - found.start:
            raise ValueError(f"{name}, {dtype} of shape {found.shape}, does not fill its {member.file_size} bytes")
        return found

    def read(self, name: str) -> NDArray[Any]:
        """Unpack an array; raises the errors of `describe`, and those of zipfile for damaged content."""
        described = self.describe(name)
        content = np.empty(described.nbytes, np.uint8)
        with self._archive.open(self._members[name]) as file:
            file.read(described.start)
            done = 0
            while piece := file.read(_PIECE):
                content[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
                done += len(piece)
        if done != len(content):
            raise ValueError(f"{name} ends after {done} of {len(content)} bytes")
        values = content.view(described.dtype)
        return values.reshape(described.shape[::-1]).T if described.by_columns else values.reshape(described.shape)

    def check_total(self, names: Iterable[str], limit: int) -> None:
        """Raise ValueError if the named arrays together take more memory than the limit."""
        if (total := sum(self.describe(name).nbytes for name in names)) > limit:
            raise ValueError(f"its arrays would take {total / 2**20:.0f} MiB of memory, more than {limit / 2**20:.0f}")


@contextmanager
def open_arrays(path: str | os.PathLike[str]) -> Iterator[Arrays]:
    """Open an .npz for reading its arrays one by one.

    Raises:
        ValueError: if a name in it is absolute, leads to another folder, or occurs twice.
        zipfile.BadZipFile: if the file is no archive; damaged archives raise other errors too.
        OSError: if the file cannot be read.
    """
    with open_regular(path) as file, zipfile.ZipFile(file) as archive:
        yield Arrays(archive)

"""Write files that are either complete or absent, and open only regular ones."""

from __future__ import annotations

import glob
import json
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import Any, BinaryIO

_LONGEST_NAME = 255  # bytes that file systems allow


def is_plain_name(name: object) -> bool:
    """Return whether a name read from a file stays inside the folder that it is joined to, on any system.

    Absolute names, `..`, separators and drives may lead elsewhere; names with control characters, and names that no
    file system allows, are not plain either.
    """
    if not isinstance(name, str) or name in ("", ".", "..") or any(c < " " or c == "\x7f" for c in name):
        return False
    try:
        return len(name.encode("utf-8")) <= _LONGEST_NAME and PureWindowsPath(name).name == name
    except UnicodeEncodeError:  # a lone surrogate, from a name whose bytes are not UTF-8
        return False


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file for reading, but no pipe, which may block, and no device, which may never end.

    Raises:
        ValueError: if the path is that of a pipe or a device.
        OSError: if nothing is there, or if it cannot be read.
    """
    _refuse_special(os.stat(path), path)  # a device may act when it is opened

    def opened(name: str, flags: int) -> int:
        number = os.open(name, flags | getattr(os, "O_NONBLOCK", 0))
        try:
            _refuse_special(os.fstat(number), path)
        except ValueError:
            os.close(number)
            raise
        return number

    return open(path, "rb", opener=opened)


def _refuse_special(found: os.stat_result, path: str | os.PathLike[str]) -> None:
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        raise ValueError(f"expected a regular file, found a pipe or a device at {os.fspath(path)}")


# Hidden folders in which this process is writing files; a forked process forgets its parent's.
_unfinished: set[Path] = set()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unfinished.clear)


@contextmanager
def hidden_folder(parent: Path, name: str = "") -> Iterator[Path]:
    """Make a hidden folder with a new random name for files that are being written, and remove it at the end.

    No other process on any machine uses the name, no link is followed, and only this user can write there.
    """
    folder = Path(tempfile.mkdtemp(prefix=".", suffix=f".tmp.{name}", dir=parent))
    _unfinished.add(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _unfinished.discard(folder)


def discard_unfinished() -> None:
    """Remove the hidden folders of this process; for a process that ends while it writes a file."""
    for folder in [*_unfinished]:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def replaced_when_complete(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path with the same file name, which replaces `path` if the block succeeds."""
    path = Path(path)
    try:
        with hidden_folder(path.parent, path.name) as folder:
            yield folder / path.name
            os.replace(folder / path.name, path)
    except OSError as error:
        if error.errno is not None:  # a full disk names no file, other errors the temporary one: name the user's
            error.filename, error.filename2 = str(path), None
        raise


def forget(path: Path) -> None:
    """Remove a file and what killed writers of it left."""
    path.unlink(missing_ok=True)
    forget_leftovers(path)


def forget_leftovers(path: Path) -> None:
    """Remove what killed writers of a file left under hidden names."""
    for leftover in path.parent.glob(f".*.tmp.{glob.escape(path.name)}"):
        if leftover.is_dir() and not leftover.is_symlink():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def write_json(content: Any, path: str | os.PathLike[str]) -> None:
    """Write strict JSON, with null for NaN and infinities."""
    with replaced_when_complete(path) as temporary:
        temporary.write_text(json_text(content), encoding="utf-8")


def json_text(content: Any) -> str:
    """Return strict JSON, with null for NaN and infinities."""
    return json.dumps(_finite(content), indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value

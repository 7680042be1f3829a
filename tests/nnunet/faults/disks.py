"""Folders on a disk that is full, or that only reads: real ones where this user may mount them."""

import contextlib
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

_SMALL = 64  # bytes; no file of ours is as small


def _mount(*arguments: str) -> bool:
    try:
        return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@contextlib.contextmanager
def full_disk(folder: Path) -> Iterator[Callable[[], None] | None]:
    """While this lasts, the folder, which is emptied, takes no file of more than a few bytes.

    It is a tmpfs without room, and None is yielded; where none can be mounted, what is yielded keeps all files small of
    the (forked) process that calls it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not _mount("-t", "tmpfs", "-o", "size=4k", "tmpfs", str(folder)):
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (_SMALL, _SMALL))
        return
    try:
        (folder / ".filled").write_bytes(bytes(4096))
        yield None
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def read_only_disk(folder: Path) -> Iterator[None]:
    """While this lasts, nothing can be written into the folder, not by root either."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid():
        folder.chmod(0o500)
        try:
            yield
        finally:
            folder.chmod(0o700)
        return
    if not _mount("--bind", str(folder), str(folder)):
        pytest.skip("root may write everywhere, and may not mount here")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)

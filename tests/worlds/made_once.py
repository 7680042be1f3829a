"""Data that take seconds to make: made by one of the processes that run the tests, and copied by the others."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

MadeOnce = Callable[[str, Path], AbstractContextManager[bool]]


@pytest.fixture(scope="session")
def made_once(pytestconfig, tmp_path_factory) -> MadeOnce:
    """Return a context manager that tells whether its block has to fill a folder.

    Else the folder, which tests of this process may change, already has the content that another process made.
    """

    @contextmanager
    def once(name: str, folder: Path) -> Iterator[bool]:
        if not hasattr(pytestconfig, "workerinput"):  # the only process
            yield True
            return
        shared = tmp_path_factory.getbasetemp().parent / name
        with FileLock(f"{shared}.lock"):
            first = not shared.exists()
            if not first:
                shutil.copytree(shared, folder, dirs_exist_ok=True)
            yield first
            if first:
                shutil.copytree(folder, shared)

    return once

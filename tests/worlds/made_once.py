"""Data that take seconds to make: made by one of the processes that run the tests, and copied by the others."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

SharedFolder = Callable[[str], AbstractContextManager[tuple[Path, bool]]]
MadeOnce = Callable[[str, Path], AbstractContextManager[bool]]


@pytest.fixture(scope="session")
def shared_folder(pytestconfig, tmp_path_factory) -> SharedFolder:
    """Return a context manager of a folder that all processes read, and whether its block has to fill it."""
    base = tmp_path_factory.getbasetemp()

    @contextmanager
    def shared(name: str) -> Iterator[tuple[Path, bool]]:
        folder = (base.parent if hasattr(pytestconfig, "workerinput") else base) / name
        with FileLock(f"{folder}.lock"):
            first = not folder.exists()
            folder.mkdir(exist_ok=True)
            try:
                yield folder, first
            except BaseException:  # no other process may take half of it for the whole
                shutil.rmtree(folder)
                raise

    return shared


@pytest.fixture(scope="session")
def made_once(pytestconfig, shared_folder) -> MadeOnce:
    """Return a context manager that tells whether its block has to fill a folder.

    Else the folder, which tests of this process may change, already has the content that another process made.
    """

    @contextmanager
    def once(name: str, folder: Path) -> Iterator[bool]:
        if not hasattr(pytestconfig, "workerinput"):  # the only process
            yield True
            return
        with shared_folder(name) as (shared, first):
            if not first:
                shutil.copytree(shared, folder, dirs_exist_ok=True)
            yield first
            if first:
                shutil.copytree(folder, shared, dirs_exist_ok=True)

    return once

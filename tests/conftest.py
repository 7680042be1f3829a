"""Settings that must be made before nnU-Net is imported, and the fixtures that need it."""

import os
from contextlib import suppress
from pathlib import Path

import pytest

from tests.selection import begin_with_longest, leave_out_combinations, skip_reading_of_checkpoints
from tests.worlds.made_once import made_once, shared_folder  # noqa: F401
from tests.worlds.warm_python import start_server, stop_server, use_warm_python

# nnU-Net reads the first at import; one export worker and no augmentation process are enough for a few tiny cases.
os.environ["nnUNet_def_n_proc"] = "1"
os.environ["nnUNet_n_proc_DA"] = "0"
os.environ["nnUNet_wandb_enabled"] = "0"
os.environ.setdefault("MPLBACKEND", "agg")
# A worker a core, not each with threads for all of them; PyTorch reads it at import.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# nnU-Net's commands take a thread per core all the same; threads that wait should leave the cores to the others.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

MOST_PROCESSES = 8  # each takes about a GB

with suppress(ImportError):  # without nnU-Net, what lies below it can be tested all the same
    from tests.worlds.nnunet_world import (  # noqa: F401
        calls,
        deployed,
        in_threads,
        make_trained,
        make_world,
        train_once,
        trained,
        untrained,
        world,
    )


@pytest.hookimpl(tryfirst=True)  # before xdist looks at its options
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Run folders in a process a core unless -n says otherwise; files alone in this process, which starts sooner."""
    folders = any(Path(argument.partition("::")[0]).is_dir() for argument in config.args)
    if folders and config.getoption("numprocesses", 0) is None and "PYTEST_XDIST_WORKER" not in os.environ:
        config.option.numprocesses = "logical"
        config.option.maxprocesses = config.option.maxprocesses or MOST_PROCESSES
        config.option.dist = "worksteal"  # so that no process waits long for the last file


def pytest_configure(config: pytest.Config) -> None:
    """Start what `warm_python` asks for processes, once for all processes of pytest."""
    if hasattr(os, "fork") and "PYTEST_XDIST_WORKER" not in os.environ:
        server = start_server()
        config.add_cleanup(lambda: stop_server(server))


@pytest.fixture
def warm_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's processes, and nnU-Net's workers, start at once; see `tests.worlds.warm_python`."""
    use_warm_python(monkeypatch)


@pytest.hookimpl(trylast=True)  # after -k and -m
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what this PyTorch cannot do, leave combinations of parameters out, and begin with the longest tests."""
    skip_reading_of_checkpoints(items)
    leave_out_combinations(config, items)
    begin_with_longest(items)

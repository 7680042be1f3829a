"""Runs in processes of their own, forked so that they start at once, which are killed or cannot write."""

import contextlib
import functools
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# without forking, each run would take the seconds of importing nnU-Net
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks and kills processes")


def forked(run: Callable[[], object], stderr: Path | None = None) -> int:
    """Start a run in a process of its own; its pid. It ends with what the run returns, or 99 after an exception."""
    pid = os.fork()
    if pid:
        return pid
    status: object = 99
    try:
        import torch

        signal.alarm(300)  # rather than wait for ever
        torch.set_num_threads(1)  # those of this process do not exist in its copy
        out = os.open(os.devnull, os.O_WRONLY)
        os.dup2(out, 1)
        os.dup2(out if stderr is None else os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        status = run()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 0)


def ended(pid: int) -> int:
    """Its exit status, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_in(write: int) -> None:
    """Let this process be killed, half of its n-th file being written."""
    own, left = os.replace, write

    def replace(source: Path, target: Path) -> None:
        nonlocal left
        left -= 1
        if not left:
            os.truncate(source, os.path.getsize(source) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        own(source, target)

    os.replace = replace  # type: ignore[assignment]


def killed(run: Callable[[], object], write: int) -> bool:
    """Return whether the run was killed, half of its n-th file being written; else it came to its end before."""

    def run_and_kill() -> object:
        kill_in(write)
        return run()

    with tempfile.TemporaryDirectory() as folder:
        stderr = Path(folder) / "stderr"
        status = ended(forked(run_and_kill, stderr))
        assert status in (0, -signal.SIGKILL), f"ended with {status}: {stderr.read_text()[-5000:]}"
    return status != 0


def visible(*folders: Path) -> dict[str, bytes]:
    """The files of folders, but for hidden ones and those in hidden folders, which no command reads."""
    found = [(path, path.relative_to(folder)) for folder in folders for path in sorted(folder.rglob("*"))]
    return {
        str(name): path.read_bytes()
        for path, name in found
        if path.is_file() and not any(part[0] == "." for part in name.parts)
    }


def half_written(folder: Path) -> list[str]:
    """Hidden files that a killed process has left."""
    return [path.name for path in folder.rglob(".*.tmp.*")]


def one_format(patch: pytest.MonkeyPatch, ending: str) -> None:
    """Let commands save each figure once; drawing it again for another format takes seconds."""
    from nnunet_calib.figures import fold_figures as figures

    patch.setattr(figures, "save_figure", functools.partial(figures.save_figure, endings=(ending,)))


@contextlib.contextmanager
def one_figure(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let commands draw a single small figure, or small ones of a comparison, since all of them take seconds."""
    from matplotlib.figure import Figure

    from nnunet_calib.figures import fold_figures as figures
    from nnunet_calib.figures import logit_distributions
    from nnunet_calib.report import comparison_page

    with patch.context() as context:
        small = figures.FigureSpec("nll", "NLL", "A small figure.", lambda *_: Figure(figsize=(1, 1)))
        context.setattr(figures, "FIGURES", (small,))
        context.setattr(figures, "read_expected", lambda folder: None)
        for module in (logit_distributions, comparison_page):
            context.setattr(module, "logit_distributions_figure", lambda comparison: Figure(figsize=(1, 1)))
        yield

"""Worker processes that end with their parent, whatever ends it, and leave no half-written file.

The workers of multiprocessing wait for work for ever if their parent is killed, and Ctrl-C, which a terminal sends to
all processes of a command, ends each worker with a traceback. Here a thread in each worker waits for the parent's end
or for SIGTERM, and only the parent reacts to Ctrl-C: it ends its workers.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import connection, parent_process
from multiprocessing.process import BaseProcess
from typing import Any

from nnunet_calib.io.atomic_files import discard_unfinished

_PATIENCE = 5.0  # seconds for a worker to clean up
_STOPPING = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM, which batch systems send, as an exception distinct from that of Ctrl-C."""


def _terminate(*_: Any) -> None:
    raise Terminated


def _end_at_once() -> None:
    """Let SIGTERM end a forked process as usual.

    nnU-Net lists files with a pool, which ends its workers by SIGTERM. A handler in Python runs after the signal only
    when a lock's wait returns: a worker that gets the signal just before it begins to wait would wait for ever.
    """
    if signal.getsignal(signal.SIGTERM) is _terminate:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_end_at_once)


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM raise `Terminated` in the main thread within the block, so that context managers clean up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def workers_end_with_us() -> Iterator[None]:
    """Let every process that multiprocessing starts within the block end with this process.

    An interrupt such as Ctrl-C ends them before it leaves the block. The block of a pool that waits for its workers
    has to enclose this one.
    """
    started: list[BaseProcess] = []
    own = BaseProcess.start

    def start(process: BaseProcess) -> None:
        if process._target is not None:  # type: ignore[attr-defined]
            process._target = _EndsWithParent(process._target)  # type: ignore[attr-defined]
        started.append(process)
        with _deferred_interrupts():
            own(process)

    BaseProcess.start = start  # type: ignore[method-assign,assignment]
    try:
        yield
    except KeyboardInterrupt:
        _end(started)
        raise
    finally:
        BaseProcess.start = own  # type: ignore[method-assign]


def _end(processes: list[BaseProcess]) -> None:
    living = [process for process in processes if process.is_alive()]
    for process in living:
        process.terminate()
    until = time.monotonic() + _PATIENCE
    for process in living:
        process.join(max(0.0, until - time.monotonic()))
        if process.is_alive():
            process.kill()


def end_session(process: subprocess.Popen[Any]) -> None:
    """End a command that runs in its own session, with all its processes."""
    if not hasattr(os, "killpg"):
        process.terminate()
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):  # no process is left
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE)


@contextmanager
def _deferred_interrupts() -> Iterator[None]:
    """Hide Ctrl-C from a process that is being started, and defer signals to this process until the start is done.

    A new process inherits its parent's blocked signals. SIGTERM stays blocked until the new process watches for it: a
    pool may end before its workers have begun, and would wait for ever for one that missed the signal.
    """
    with ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            arrived: list[int] = []
            before = {number: signal.signal(number, lambda number, _: arrived.append(number)) for number in _STOPPING}

            def deliver() -> None:
                for number, handler in before.items():
                    signal.signal(number, handler or signal.SIG_DFL)
                if arrived:
                    signal.raise_signal(arrived[0])

            stack.callback(deliver)
        if hasattr(signal, "pthread_sigmask"):
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
            stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, mask)
        yield


class _EndsWithParent:
    """The target of a process, wrapped so that the process watches its parent; picklable if the target is."""

    def __init__(self, target: Callable[..., object]) -> None:
        self._target = target

    def __call__(self, *args: Any, **options: Any) -> object:
        _watch_parent()
        return self._target(*args, **options)


def _watch_parent() -> None:
    """End this process, and discard its unfinished files, when its parent ends or SIGTERM arrives."""
    parent = parent_process()
    assert parent is not None
    woken, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(
        signal.SIGTERM, lambda *_: None
    )  # only wakes the thread below, which does not depend on the main thread
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    def wait() -> None:
        connection.wait([parent.sentinel, woken])
        discard_unfinished()
        os._exit(1)

    threading.Thread(target=wait, name="ends with its parent", daemon=True).start()

"""Worker processes that end with the process that started them, whatever ends it, and leave no half-written file.

multiprocessing's own workers wait for work for ever if their parent is killed, and Ctrl-C, which a terminal sends to
all processes of a command, ends each of them in a traceback. Here a thread of each worker waits for the parent's end or
for SIGTERM, and Ctrl-C reaches the parent alone, which ends its workers.
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

_PATIENCE = 5.0  # seconds in which a worker tidies up
_STOPPING = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM, as batch systems send it, told apart from Ctrl-C."""


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """While this lasts, SIGTERM raises `Terminated` in the main thread, so that blocks tidy up behind them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(*_: Any) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def workers_end_with_us() -> Iterator[None]:
    """While this lasts, processes that multiprocessing starts, for whomever, end with this one.

    An interrupt, as Ctrl-C is, ends them before it leaves the block. A pool's own block has to be around this one where
    it waits for its workers.
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
    """End a command that was started in a session of its own, with all of its processes."""
    if not hasattr(os, "killpg"):
        process.terminate()
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):  # none of them is left
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE)


@contextmanager
def _deferred_interrupts() -> Iterator[None]:
    """Keep Ctrl-C from a process that is being started, for good, and from this one until it is.

    A process that is started has the signals blocked that its parent blocks. SIGTERM waits until the process watches
    for it: a pool may end before its workers have begun, and would wait for a worker that has missed it.
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
    """What a process runs, picklable as that is."""

    def __init__(self, target: Callable[..., object]) -> None:
        self._target = target

    def __call__(self, *args: Any, **options: Any) -> object:
        _watch_parent()
        return self._target(*args, **options)


def _watch_parent() -> None:
    """End this process, and what it is writing, when its parent ends or SIGTERM arrives."""
    parent = parent_process()
    assert parent is not None
    woken, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: None)  # it wakes the thread, which need not wait for the main one
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    def wait() -> None:
        connection.wait([parent.sentinel, woken])
        discard_unfinished()
        os._exit(1)

    threading.Thread(target=wait, name="ends with its parent", daemon=True).start()

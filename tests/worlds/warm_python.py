"""Processes of Python that start at once: forked from a server that has imported what nnU-Net needs.

A new interpreter takes seconds of processor time for these imports. A process of the server has its own arguments,
environment, folder, streams, signals and exit status, and no module of this package or of the tests is imported. Unlike
other processes it is a child of the server, and `start_new_session` gives it a group of processes instead of a session.
"""

from __future__ import annotations

import gc
import importlib
import io
import os
import pickle
import runpy
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import types
import warnings
from contextlib import suppress
from multiprocessing import popen_spawn_posix, process, util
from pathlib import Path
from typing import Any

ADDRESS = "NNUNET_CALIB_WARM_PYTHON"  # environment variable: the server's socket
IMPORTED = (
    "nnunetv2.run.run_training",
    "nnunetv2.inference.predict_from_raw_data",
    "nnunetv2.experiment_planning.plan_and_preprocess_api",
    "nnunetv2.evaluation.evaluate_predictions",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "jinja2",
    "scipy.optimize",
    "scipy.stats",
)
# read when Python or a library starts: where they have other values than in the server, an interpreter is started
FIXED = ("MPLBACKEND", "OMP_NUM_THREADS", "PYTHONIOENCODING", "PYTHONHASHSEED", "TRITON_INTERPRET", "nnUNet_def_n_proc")
NUMBER = struct.Struct("i")  # of a process, then its exit status as os.waitpid has it
SIGNALS = (signal.SIGINT, signal.SIGTERM)
MOST_STREAMS = 64
Request = dict[str, Any]


def start_server() -> subprocess.Popen[bytes]:
    """Start the server; it imports nothing before it is asked for a process, and ends when its stdin is closed."""
    address = Path(tempfile.mkdtemp(prefix="warm_python_")) / "socket"
    os.environ[ADDRESS] = str(address)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.environ[ADDRESS])
        listener.listen()
        # Not by PYTHONPATH: a folder in both that and an editable installation is in sys.path once, and would be taken
        # out with PYTHONPATH's for a process that has another PYTHONPATH.
        find = f"import sys; path = sys.path[1:]; sys.path.insert(0, {str(Path(__file__).parents[2])!r})"
        code = f"{find}; from tests.worlds.warm_python import serve; serve({listener.fileno()}, path)"
        return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, pass_fds=(listener.fileno(),))


def stop_server(server: subprocess.Popen[bytes]) -> None:
    """Let the server end."""
    server.communicate()
    del os.environ[ADDRESS]


# --- who asks ---


def python_request(command: list[str], environment: dict[str, str]) -> Request | None:
    """Return what the server needs for a command of Python's; None for other programs, options and environments."""
    program, *arguments = command
    if Path(program).is_file() and Path(program).read_bytes()[:1000].startswith(f"#!{sys.executable}\n".encode()):
        arguments = command
    elif program != sys.executable:
        return None
    if ADDRESS not in environment or any(environment.get(name) != os.environ.get(name) for name in FIXED):
        return None
    request: Request = {"environment": environment, "warn": [], "no_bytecode": False}
    while arguments:
        option, *arguments = arguments
        if option == "-B":
            request["no_bytecode"] = True
        elif option == "-W":
            request["warn"].append(arguments.pop(0))
        elif option in ("-c", "-m") or not option.startswith("-"):
            target = arguments.pop(0) if option in ("-c", "-m") else option
            return request | {"kind": option if option in ("-c", "-m") else "", "target": target, "argv": arguments}
        else:
            return None
    return None


class Connection:
    """A process that the server has started.

    Attributes:
        pid: its number.
        status: as os.waitpid has it, None as long as it runs.
    """

    def __init__(self, request: Request, streams: dict[int, int]) -> None:
        """Start the process; its streams, by their numbers there, are streams of this process."""
        state = {
            "folder": request.get("folder") or os.getcwd(),
            "blocked": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
            "ignored": [number for number in SIGNALS if signal.getsignal(number) == signal.SIG_IGN],
            "group": os.getpgrp(),
            "streams": [*streams],
        }
        content = pickle.dumps(state | request)
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(request["environment"][ADDRESS])
            socket.send_fds(self._socket, [NUMBER.pack(len(content))], [*streams.values()])
            self._socket.sendall(content)
            self.pid = self._receive()
        except BaseException:
            self._socket.close()
            raise
        self.status: int | None = None

    def _receive(self) -> int:
        data = self._socket.recv(NUMBER.size, socket.MSG_WAITALL)
        return int(NUMBER.unpack(data)[0])

    def poll(self, *, wait: bool) -> int | None:
        """Return the status."""
        if self.status is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._socket, selectors.EVENT_READ)
                ready = selector.select(None if wait else 0)
            if ready:
                self.status = self._receive()
                self._socket.close()
        return self.status


class WarmPopen(subprocess.Popen):
    """subprocess.Popen whose commands of Python's the server runs.

    `preexec_fn` is not called then. Tests have one to let a process hear signals that this one ignores, and so it does.
    """

    _connection: Connection | None = None

    def _execute_child(self, args: Any, executable: Any, preexec_fn: Any, *others: Any) -> None:
        """Start the process; the parameters are those of Popen, in its order."""
        _, pass_fds, folder, environment, _, _, shell, *ends = others
        pipes, session = ends[:6], bool(ends[11])
        environment = dict(os.environ if environment is None else environment)
        request = None
        if not (shell or executable or pass_fds or isinstance(args, str)):
            request = python_request([os.fspath(a) for a in args], environment)
        if request is None:
            super()._execute_child(args, executable, preexec_fn, *others)
            return
        request |= {"folder": os.fspath(folder or os.getcwd()), **({"group": 0} if session else {})}
        if preexec_fn:
            request["ignored"] = []
        streams = {i: i if end == -1 else end for i, end in enumerate((pipes[0], pipes[3], pipes[5]))}
        self._connection = Connection(request, streams)
        self.pid, self._child_created = self._connection.pid, True
        self._close_pipe_fds(*pipes)

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        if self._connection is None:
            return super()._try_wait(wait_flags)
        status = self._connection.poll(wait=not wait_flags & os.WNOHANG)
        return (0, 0) if status is None else (self.pid, status)

    def _internal_poll(self, *arguments: Any, **options: Any) -> int | None:
        if self._connection is None:
            return super()._internal_poll(*arguments, **options)
        if self.returncode is None and (status := self._connection.poll(wait=False)) is not None:
            self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


class WarmWorker(popen_spawn_posix.Popen):
    """How multiprocessing starts a process by "spawn"."""

    _connection: Connection | None = None

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        """Return the exit status."""
        if self._connection is None:
            return super().poll(flag)
        if self.returncode is None and (status := self._connection.poll(wait=not flag & os.WNOHANG)) is not None:
            self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def _launch(self, process_obj: Any) -> None:
        """Start it as its base class does, but for the function that starts the interpreter."""
        own = popen_spawn_posix.util
        popen_spawn_posix.util = _Starting(self)  # type: ignore[assignment]
        try:
            super()._launch(process_obj)
        finally:
            popen_spawn_posix.util = own


class _Starting:
    """The module multiprocessing.util for a process that is being started."""

    def __init__(self, worker: WarmWorker) -> None:
        self._worker = worker

    def __getattr__(self, name: str) -> Any:
        return getattr(util, name)

    def spawnv_passfds(self, path: Any, command: list[str], streams: list[int]) -> int:
        """Start an interpreter, or a process of the server; returns its number."""
        request = python_request([os.fsdecode(a) for a in command], dict(os.environ))
        if request is None:
            return int(util.spawnv_passfds(path, command, streams))  # type: ignore[attr-defined]
        self._worker._connection = Connection(request, {number: number for number in (0, 1, 2, *streams)})
        return self._worker._connection.pid


def use_warm_python(patch: Any) -> None:
    """Let this process, for as long as the patch lasts, start Python and spawn workers by the server."""
    if ADDRESS in os.environ:
        patch.setattr(subprocess, "Popen", WarmPopen)
        patch.setattr(popen_spawn_posix, "Popen", WarmWorker)


# --- the server ---


def serve(listening: int, path: list[str]) -> None:
    """Fork a process for each request, and tell who asked its number and its exit status.

    Args:
        listening: file descriptor of the socket.
        path: where the interpreter looked for modules, but for the folder of the program.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    woken, wakes = os.pipe()
    for end in (woken, wakes):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    running: dict[int, socket.socket] = {}
    listener = socket.socket(fileno=listening)
    with selectors.DefaultSelector() as selector:
        for stream in (listener, woken, sys.stdin):
            selector.register(stream, selectors.EVENT_READ)
        while True:
            ready = {key.fileobj for key, _ in selector.select()}
            if sys.stdin in ready:  # also where who started the server was killed
                shutil.rmtree(Path(os.environ[ADDRESS]).parent, ignore_errors=True)
                os._exit(0)
            if woken in ready:
                os.read(woken, 65536)
                _tell_statuses(running)
            if listener in ready:
                asking, _ = listener.accept()
                request, streams = _received(asking)
                if request and not _forked(asking, request, streams, running):
                    break
    # of the new process
    signal.set_wakeup_fd(-1)
    for stream in (listener, asking, *running.values()):
        stream.close()
    for end in (woken, wakes):
        os.close(end)
    _become(request, streams, path)
    _run(request)


def _forked(asking: socket.socket, request: Request, streams: list[int], running: dict[int, socket.socket]) -> int:
    """Fork; as os.fork, return the number of the new process, or 0 in it."""
    _import_all()
    pid = os.fork()
    with suppress(OSError):  # if who asked has meanwhile been killed, and the whole group
        os.setpgid(pid, request["group"] or pid)
    if pid:
        with suppress(OSError):
            asking.sendall(NUMBER.pack(pid))
        running[pid] = asking
        for stream in streams:
            os.close(stream)
    return pid


def _tell_statuses(running: dict[int, socket.socket]) -> None:
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        with running.pop(pid) as asking, suppress(OSError):
            asking.sendall(NUMBER.pack(status))


def _received(asking: socket.socket) -> tuple[Request, list[int]]:
    """Return a request and its streams; an empty one if who asks was killed before the end of it."""
    head, streams, _, _ = socket.recv_fds(asking, NUMBER.size, MOST_STREAMS)
    content = asking.recv(NUMBER.unpack(head)[0], socket.MSG_WAITALL) if len(head) == NUMBER.size else b""
    with suppress(EOFError, pickle.UnpicklingError):
        return pickle.loads(content), streams
    asking.close()
    return {}, []


def _import_all() -> None:
    if IMPORTED[0] not in sys.modules:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name in IMPORTED:
                importlib.import_module(name)
            from tests.worlds.quick_nnunet import make_quick

            make_quick()
        gc.collect()
        gc.freeze()


def _become(request: Request, received: list[int], path: list[str]) -> None:
    """Take over streams, environment, folder and signals."""
    import fcntl

    import numpy as np

    high = [fcntl.fcntl(stream, fcntl.F_DUPFD_CLOEXEC, 200) for stream in received]
    for stream in received:
        os.close(stream)
    for stream, number in zip(high, request["streams"], strict=True):
        os.dup2(stream, number)
        os.close(stream)
    unbuffered = "PYTHONUNBUFFERED" in request["environment"]
    sys.stdin, sys.stdout, sys.stderr = sys.__stdin__, sys.__stdout__, sys.__stderr__ = [
        io.TextIOWrapper(
            open(number, mode, closefd=False),  # noqa: SIM115  # as long as the process runs
            encoding="utf-8",
            errors="backslashreplace" if number == 2 else "strict",
            line_buffering=number == 2,
            write_through=unbuffered and number > 0,
        )
        for number, mode in enumerate(("rb", "wb", "wb"))
    ]

    # what the interpreter found without PYTHONPATH
    inherited = {os.path.abspath(p) for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p}
    os.environ.clear()
    os.environ.update(request["environment"])
    tempfile.tempdir = None  # found once
    os.chdir(request["folder"])
    process.ORIGINAL_DIR = os.getcwd()  # type: ignore[attr-defined]  # which workers find the program by
    given = [os.path.abspath(p) for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    sys.path[:] = [*given, *(p for p in path if p not in inherited)]
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    sys.dont_write_bytecode = request["no_bytecode"] or bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    sys.warnoptions[:] = [*filter(None, os.environ.get("PYTHONWARNINGS", "").split(",")), *request["warn"]]
    warnings._processoptions(sys.warnoptions)  # type: ignore[attr-defined]
    np.random.seed()  # noqa: NPY002  # which copies of a process have in common; Python's own starts anew

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in request["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    popen_spawn_posix.Popen = WarmWorker  # type: ignore[misc]
    signal.pthread_sigmask(signal.SIG_SETMASK, request["blocked"])


def _run(request: Request) -> None:
    """Do what the interpreter does with its arguments."""
    kind, target = request["kind"], request["target"]
    sys.argv[:] = [kind or target, *request["argv"]]
    if kind == "-m":
        sys.path.insert(0, os.getcwd())
        runpy.run_module(target, run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.path.insert(0, "")
        module = types.ModuleType("__main__")
        sys.modules["__main__"] = module
        exec(compile(target, "<string>", "exec"), module.__dict__)
    else:
        sys.path.insert(0, os.path.dirname(os.path.abspath(target)))
        runpy.run_path(target, run_name="__main__")

"""Run commands of nnU-Net and this package side by side, each with its output in a log, and none that is done again."""

from __future__ import annotations

import os
import subprocess
import sysconfig
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nnunet_calib.io.processes import end_session

_AT_ONCE = 4  # commands at most: each, with its workers, takes about 2 GB
_TICK = 0.2  # seconds between two looks at the commands


def program(name: str) -> Path:
    """Return the path of a command, which lies beside the interpreter whether or not its environment is activated."""
    return Path(sysconfig.get_path("scripts")) / name


def run_commands(
    commands: Mapping[str, Sequence[str]],
    logs: Path,
    environment: Mapping[str, str],
    look: Callable[[], None] = lambda: None,
) -> None:
    """Run commands, as many at once as there are cores and four at most.

    The log of a command that has ended well is `NAME.txt`, and a command with such a log is not run again. Until then
    it is `NAME.unfinished.txt`.

    Args:
        commands: program and arguments of each, by the name of its log.
        logs: folder of the logs.
        environment: environment variables of the commands.
        look: called several times a second.

    Raises:
        OSError: if a command fails. Those that are still running are ended, as by an interrupt.
    """
    waiting = [name for name in commands if not (logs / f"{name}.txt").is_file()]
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < min(_cores(), _AT_ONCE):
                name = waiting.pop(0)
                running[name] = _start(commands[name], logs / f"{name}.unfinished.txt", environment)
            time.sleep(_TICK)
            look()
            for name, process in [*running.items()]:
                if process.poll() is not None:
                    del running[name]
                    log = logs / f"{name}.unfinished.txt"
                    if process.returncode:
                        raise OSError(
                            f"expected {commands[name][0]} to end well, it ended with status {process.returncode}: "
                            f"see {log}"
                        )
                    log.replace(logs / f"{name}.txt")
    except BaseException:  # an interrupt, too
        for process in running.values():
            end_session(process)
        raise


def _start(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    with open(log, "wb") as file:
        return subprocess.Popen(
            [str(program(command[0])), *command[1:]],
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

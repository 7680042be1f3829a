"""The processes that tests fork from a server do what those of a new interpreter do."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.worlds.warm_python import ADDRESS, WarmPopen

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("warm_python"),
    pytest.mark.skipif(ADDRESS not in os.environ, reason="needs fork"),
]

ENDS = {
    "print('said')": 0,
    "import sys; sys.exit(3)": 3,
    "raise SystemExit('in words')": 1,
    "raise ValueError('not caught')": 1,
    "import os, signal; os.kill(os.getpid(), signal.SIGKILL)": -9,
    "import atexit; atexit.register(print, 'in the end')": 0,
    "import sys, os; print(sys.argv, sys.stdin.read(), os.environ['OWN'], os.path.basename(os.getcwd()))": 0,
    "import sys, warnings; warnings.warn('not told'); print(sorted(m for m in sys.modules if 'calib' in m))": 0,
}


def run(code, folder, **options):
    command = [sys.executable, "-W", "ignore", "-c", code, "an argument"]
    environment = os.environ | {"OWN": "own"}
    return subprocess.run(
        command, cwd=folder, env=environment, input="read", capture_output=True, text=True, check=False, **options
    )


@pytest.mark.parametrize("code", ENDS)
def test_as_an_interpreter(tmp_path, code, monkeypatch):
    """Streams, arguments, environment, folder and the end."""
    assert isinstance(subprocess.Popen, type)
    assert issubclass(subprocess.Popen, WarmPopen)
    ours = run(code, tmp_path)
    monkeypatch.undo()
    expected = run(code, tmp_path)
    assert ours.returncode == expected.returncode == ENDS[code]
    assert ours.stdout == expected.stdout
    assert ours.stderr.splitlines()[-1:] == expected.stderr.splitlines()[-1:]


def test_already_imported(tmp_path):
    """What takes long is there; nothing of this process is."""
    monkeypatched = "import sys; print('nnunetv2.run.run_training' in sys.modules, 'tests' in sys.modules)"
    assert run(monkeypatched, tmp_path).stdout == "True False\n"


def parents(queue):
    queue.put((os.getpid(), os.getpgrp(), os.environ["OWN"], multiprocessing.parent_process().pid))


def test_spawned(monkeypatch):
    """A worker has the environment of today, ends with its status, and tells of it."""
    monkeypatch.setenv("OWN", "today")
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    worker = context.Process(target=parents, args=(queue,))
    worker.start()
    pid, group, own, parent = queue.get()
    worker.join()
    assert (pid, worker.exitcode, own, parent) == (worker.pid, 0, "today", os.getpid())
    assert group == os.getpgrp()
    sleeping = context.Process(target=time.sleep, args=(600,))
    sleeping.start()
    assert sleeping.is_alive()
    sleeping.terminate()
    sleeping.join()
    assert sleeping.exitcode == -signal.SIGTERM


NESTED = """
import multiprocessing, os, time
if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        print({pool.apply(os.getpgrp)} == {os.getpid()} == {os.getpgrp()}, flush=True)
        time.sleep(600)
"""


def test_group(tmp_path):
    """A process of its own group has its workers there, and all are killed together."""
    (tmp_path / "program.py").write_text(NESTED)
    with subprocess.Popen(
        [sys.executable, "program.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout.readline() == "True\n"
        assert process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
        assert process.stdout.read() == ""  # which ends when no process has it open

"""Commands that are stopped by Ctrl-C, SIGTERM or SIGKILL: no process outlives them, and nothing is half written."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nnunet_calib.demo_commands import run_commands
from nnunet_calib.io.processes import sigterm_interrupts
from tests.worlds.command_line import sentence
from tests.worlds.predicted_folder import write_world

pytestmark = [
    pytest.mark.usefixtures("warm_python"),
    pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="looks for processes in /proc"),
]
SLOW = pytest.mark.slow
# Signals differ in the handler, which all commands share: one command is stopped by each, the others by one of them.
ALL = [pytest.param(signal.SIGINT, marks=SLOW), pytest.param(signal.SIGTERM, marks=SLOW), signal.SIGKILL]
STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}
SECONDS = 120


def processes() -> dict[int, tuple[int, int]]:
    """The parent and the group of each process that runs."""
    found = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, group, *_ = file.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z":
            found[int(file.parent.name)] = int(parent), int(group)
    return found


def below(pid: int) -> set[int]:
    """The processes that a process has started, and theirs, and all of its group if it leads one."""
    found, running = {pid}, processes()
    while new := {p for p, above in running.items() if found & {*above}} - found:
        found |= new
    return found - {pid}


def until(holds: Callable[[], object], seconds: float = SECONDS) -> bool:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def stop(command: list[str], number: int, when: Callable[[], object], workers: int, folder: Path) -> str:
    """Stop a command once something holds and so many processes are at work; what it says on stderr.

    Ctrl-C reaches all processes, as from a terminal. None of them is left, and it ends with the status it should.
    """
    path = os.pathsep.join(p for p in sys.path if p)
    with (
        open(folder / "stderr", "w+") as stderr,
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "nnunet_calib.cli", *command],
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": path},
            preexec_fn=hear_interrupts,
        ) as process,
    ):
        try:
            assert until(lambda: process.poll() is not None or (when() and len(below(process.pid)) >= workers))
            assert process.poll() is None, (folder / "stderr").read_text()
            ours = below(process.pid)
            (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
            assert process.wait(SECONDS) == STATUS[number]
            # the kernel and a busy machine take their time to end what was told to end
            assert until(lambda: not {*processes()} & ours, 30), "processes are left"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        stderr.seek(0)
        return stderr.read()


def check_words(said: str, number: int, command: str, more: str = "") -> None:
    assert "Traceback" not in said
    assert "Error" not in said
    if number == signal.SIGKILL:
        return
    assert sentence(said.splitlines()[-1]) == (
        f"nnunet_calib: {command} was interrupted, and no file is half written: type the same command again{more}"
    )


def hidden(folder: Path) -> list[Path]:
    return [*folder.rglob(".*")]


def big_world(folder: Path) -> None:
    """Cases enough for two processes to be busy for long."""
    write_world(folder, seeds=range(1), size=60)
    for name in ("case.0.npz", "case.0.nii.gz"):
        for seed in range(1, 30):
            for where in ("pred", "labels"):
                if (folder / where / name).is_file():
                    (folder / where / name.replace("0", str(seed), 1)).hardlink_to(folder / where / name)


@pytest.mark.parametrize("number", ALL)
def test_evaluate(tmp_path, number):
    """Two processes measure; what they have measured so far goes, too, unless the command is killed."""
    big_world(tmp_path)
    command = ["evaluate", "-i", str(tmp_path / "pred"), "-gt", str(tmp_path / "labels"), "-np", "2", "--no-figures"]
    measured = (tmp_path / "pred").glob
    said = stop(command, number, lambda: [*measured(".*/cases/*.npz")], 3, tmp_path)
    check_words(said, number, "evaluate")
    assert not (tmp_path / "pred" / "calibration").exists()
    assert bool(hidden(tmp_path)) == (number == signal.SIGKILL)


def test_export(tmp_path):
    """Each map that is there is whole; what the workers were writing is gone, although their parent was killed."""
    big_world(tmp_path)
    command = ["export", "-i", str(tmp_path / "pred"), "-np", "2", "--maps", "entropy"]
    maps = tmp_path / "pred" / "maps" / "entropy"
    said = stop(command, signal.SIGKILL, lambda: [*maps.glob("case*")] and hidden(maps), 3, tmp_path)
    check_words(said, signal.SIGKILL, "export")
    assert not hidden(tmp_path)
    assert len({path.read_bytes() for path in maps.iterdir()}) == 1  # of equal cases


def test_one_process(tmp_path):
    """The same without workers."""
    big_world(tmp_path)
    command = ["fit", "-i", str(tmp_path / "pred"), "-gt", str(tmp_path / "labels"), "-np", "1"]
    said = stop(command, signal.SIGINT, lambda: [*(tmp_path / "pred").glob(".*/cases/*.npz")], 0, tmp_path)
    check_words(said, signal.SIGINT, "fit")
    assert not hidden(tmp_path)


@SLOW
def test_predict(deployed):
    """nnU-Net's processes end, too, and its segmentations are whole."""
    (deployed.images / "case.2_0000.nii.gz").unlink()
    (whole,) = (deployed.predict(output="whole")).glob("*.nii.gz")
    for copy in range(20):
        shutil.copy(deployed.images / "case.1_0000.nii.gz", deployed.images / f"copy.{copy}_0000.nii.gz")
    command = deployed.command("-npp", "2", "-nps", "2", "--maps", "entropy", output="stopped")
    maps = deployed.root / "stopped" / "maps" / "entropy"
    # two that preprocess, two that export, a server of nnU-Net's, and what looks after multiprocessing's resources
    said = stop(command, signal.SIGTERM, lambda: [*maps.glob("c*")], 6, deployed.root)
    check_words(said, signal.SIGTERM, "predict", " with --continue_prediction")
    assert not hidden(deployed.root / "stopped")
    found = [*(deployed.root / "stopped").glob("*.nii.gz")]
    assert {path.read_bytes() for path in found} == {whole.read_bytes()}
    assert len(found) < 21


@SLOW
def test_validate(trained):
    """What was measured before is whole, and kept by the next run."""
    expected = trained.results()
    trained.without_results()
    cases = trained.calibration / "cases"
    said = stop(trained.command("-np", "2"), signal.SIGINT, lambda: [*cases.glob("case*")], 3, trained.fold)
    check_words(said, signal.SIGINT, "validate", ", which keeps the measured cases")
    assert not hidden(trained.fold)
    found = {name: content for name, content in trained.results().items() if name.endswith(".npz")}
    assert found == {name: expected[name] for name in found}
    assert trained.validate("-np", "1") == 0
    assert trained.results() == expected


def test_demo(tmp_path):
    """What it runs ends with it, with all of its processes."""
    program = tmp_path / "program"
    program.write_text(f"#!{sys.executable}\n{PROGRAM}")
    program.chmod(0o755)
    code = "import sys; from tests.nnunet.faults.test_interrupts import run_program; run_program(*sys.argv[1:])"
    command = [sys.executable, "-W", "ignore", "-c", code, program, tmp_path]
    with subprocess.Popen(command, preexec_fn=hear_interrupts, start_new_session=True) as process:
        assert until(lambda: len(below(process.pid)) == 2 and (tmp_path / "log.unfinished.txt").is_file())
        ours = below(process.pid)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(SECONDS) == 7
        assert until(lambda: not {*processes()} & ours, 30)


def hear_interrupts() -> None:
    """Let a process hear Ctrl-C, which one that a shell runs in the background inherits as ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


PROGRAM = "import subprocess, time; subprocess.Popen(['sleep', '600']); print('started', flush=True); time.sleep(600)"


def run_program(program: str, logs: str) -> None:
    """What the demo does with each command of nnU-Net's; ends with status 7 if it is interrupted."""
    try:
        with sigterm_interrupts():
            run_commands({"log": [program]}, Path(logs), os.environ)
    except KeyboardInterrupt:
        os._exit(7)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_pools_that_end_at_once():
    """A worker that is ended before it has begun ends all the same; it would be waited for without end."""
    code = (
        "from multiprocessing import get_context\n"
        "from nnunet_calib.io.processes import workers_end_with_us\n"
        "with workers_end_with_us():\n"
        "    for _ in range(100):\n"
        "        with get_context('fork').Pool(2):\n"
        "            pass\n"
    )
    # a new interpreter, which is small and quickly copied
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, executable=sys.executable, timeout=SECONDS, check=False).returncode == 0

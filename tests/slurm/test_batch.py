"""The batch scripts of docs/cluster on a real SLURM of one node: they write the bytes of the commands by hand."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nnunet_calib import cli
from nnunet_calib.results.layout import comparison_folder
from tests.worlds.batch_commands import batch_path
from tests.worlds.measured_folds import TRAINER, Model, three_folds

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "docs" / "cluster"
OTHER = "nnUNetTrainerNACL"
SECONDS = 600  # to wait for something, at most

pytestmark = [
    pytest.mark.slow,
    pytest.mark.slurm,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning", "ignore::ResourceWarning"),
]


class Slurm:
    """A running SLURM."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": batch_path(folder / "bin"),
            "PYTHONPATH": str(ROOT),
            "DEVICE": "cpu",
        }

    def call(self, *command: str, **environment: str) -> str:
        """Run one of SLURM's commands; returns what it prints."""
        result = subprocess.run(
            command, env=os.environ | self.environment | environment, cwd=self.folder, text=True, capture_output=True
        )
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    def submit(self, script: str, *options: str, **environment: str) -> str:
        """Submit a script of docs/cluster, for a node without a GPU; returns the number of the job."""
        options = ("--parsable", "--gpus=0", "--cpus-per-task=1", *options)
        return self.call("sbatch", *options, str(SCRIPTS / script), **environment)

    def state(self, job: str) -> str:
        """The state of a job or of a task; COMPLETING until all its processes have ended."""
        shown = self.call("scontrol", "--oneliner", "show", "job", job).split()
        return next(entry.partition("=")[2] for entry in shown if entry.startswith("JobState="))

    def wait(self, until: Callable[[], bool]) -> None:
        """Wait for something."""
        end = time.monotonic() + SECONDS
        while not until():
            assert time.monotonic() < end, self.everything()
            time.sleep(0.02)

    def wait_for(self, state: str, *jobs: str) -> None:
        """Wait until jobs have ended in a state."""
        ended = {state, "CANCELLED", "COMPLETED", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}
        self.wait(lambda: all(self.state(job) in ended for job in jobs))
        assert {job: self.state(job) for job in jobs} == dict.fromkeys(jobs, state), self.everything()

    def everything(self) -> str:
        """The queue, and all that the jobs and SLURM have written."""
        logs = [*sorted(self.folder.glob("*-*.log")), *self.folder.glob("*.log"), self.folder / "jobs.txt"]
        return "\n".join([self.call("squeue"), *(f"{path.name}:\n{path.read_text()}" for path in logs)])

    def history(self, job: str) -> list[tuple[str, str]]:
        """Tasks of a job with the states in which they ended; PENDING: they were requeued."""
        ended = (self.folder / "jobs.txt").read_text().splitlines()
        parts = [dict(entry.split("=", 1) for entry in line.split() if "=" in entry) for line in ended]
        return [(part["ArrayTaskId"], part["JobState"]) for part in parts if part.get("ArrayJobId") == job]


@pytest.fixture
def slurm(tmp_path_factory) -> Iterator[Slurm]:
    """A SLURM of one node, from tests/slurm/start; its ports are free ones, so that several can run."""
    if not all(shutil.which(name) for name in ("sbatch", "slurmctld", "slurmd", "munged")) or os.getuid() != 0:
        pytest.skip("needs root and Debian's packages slurm-wlm and munge")
    folder = tmp_path_factory.mktemp("slurm")
    environment = os.environ | {"SLURM_PORT": str(free_ports()), "SLURM_OWNER": str(os.getpid())}
    try:
        start = [ROOT / "tests" / "slurm" / "start", folder]
        started = subprocess.run(start, env=environment, text=True, capture_output=True)
        assert started.returncode == 0, started.stderr
        yield Slurm(folder)
    finally:
        subprocess.run([ROOT / "tests" / "slurm" / "stop", folder], check=True)


def free_ports() -> int:
    """The first of two neighbouring ports that nobody listens at."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("", 0))
            port: int = first.getsockname()[1]
            try:
                second.bind(("", port + 1))
            except OSError:
                continue
            return port


def numbers(*folders: Path) -> dict[str, bytes]:
    """The files that hold numbers, by their paths."""
    files = [(path.relative_to(folder), path) for folder in folders for path in sorted(folder.rglob("*"))]
    return {str(name): path.read_bytes() for name, path in files if path.suffix in (".json", ".csv", ".md")}


class Study:
    """Two models of three measured folds each, for crossval.sh and compare.sh."""

    def __init__(self, root: Path) -> None:
        self.models: list[Model] = [three_folds(root, trainer=each, weights=each) for each in (TRAINER, OTHER)]
        what = {"DATASET": "4", "CONFIGURATION": "3d_fullres", "FOLDS": "0 1 2", "TRAINER": TRAINER}
        self.variables = what | {"TRAINERS": f"{TRAINER} {OTHER}"} | self.models[0].environment()

    def results(self) -> dict[str, bytes]:
        """The files of crossval and compare that hold numbers."""
        folders = [each.model_folder for each in self.models]
        merged = self.models[0].folder.glob("crossval_results_folds_*/calibration")
        return numbers(*merged, comparison_folder(folders, [0, 1, 2]))


def test_batch_scripts(trained, slurm, tmp_path, monkeypatch, in_threads):
    """validate.sh with a task killed in its validation and one that hangs until its time is up, then dependent jobs.

    Both tasks are requeued and go on; crossval.sh waits for them, and compare.sh for it.
    """
    study = Study(tmp_path / "slurm")
    trained.without_results()
    what = {"DATASET": trained.dataset, "CONFIGURATION": trained.configuration, "TRAINER": trained.trainer}
    # afterok would be lost with the first task that is killed, although it is requeued and succeeds
    job = slurm.submit("validate.sh", "--array=0-1", FOLDS="all", PARTS="2", **what)
    crossval = slurm.submit("crossval.sh", f"--dependency=afterany:{job}", **study.variables)
    compare = slurm.submit("compare.sh", f"--dependency=afterok:{crossval}", **study.variables)

    tasks = [f"{job}_0", f"{job}_1"]
    logs = {task: slurm.folder / f"validate-{task}.log" for task in tasks}
    held: set[str] = set()

    def hold() -> bool:
        """Stop each task once it measures, so that none ends before the test has come to it."""
        for task in tasks:
            if task not in held and logs[task].exists() and "to predict" in logs[task].read_text():
                slurm.call("scancel", "--signal=STOP", "--full", task)
                held.add(task)
        return len(held) == len(tasks)

    slurm.wait(hold)
    slurm.call("scancel", "--signal=CONT", "--full", tasks[0])
    slurm.call("scancel", tasks[0])
    slurm.call("scontrol", "update", f"JobId={tasks[1]}", "EndTime=now")  # SLURM looks every 30 seconds
    for task, state in zip(tasks, ("CANCELLED", "TIMEOUT"), strict=True):
        slurm.wait_for(state, task)
        slurm.call("scontrol", "requeue", task)
    assert not (trained.calibration / "summary.json").exists()
    assert slurm.state(crossval) == "PENDING"
    for task in tasks:
        # Else it starts in two minutes, and the second one with the limit that was moved to its end above. In the
        # second of its end the node takes a new start for the old one: "Job credential revoked".
        slurm.call("scontrol", "update", f"JobId={task}", "StartTime=now+2", "TimeLimit=60")
    slurm.wait_for("COMPLETED", *tasks, crossval, compare)

    ended = {task: [state for each, state in slurm.history(job) if each == task] for task in "01"}
    assert ended == {"0": ["CANCELLED", "PENDING", "COMPLETED"], "1": ["TIMEOUT", "PENDING", "COMPLETED"]}
    by_slurm = trained.results()
    trained.without_results()
    assert [trained.validate("-f", "all", "-num_parts", "2", "-part_id", part) for part in "01"] == [0, 0]
    assert by_slurm == trained.results()

    by_hand = Study(tmp_path / "hand")
    monkeypatch.setattr("nnunet_calib.figures.fold_figures.FIGURES", ())
    for variable, value in by_hand.variables.items():
        monkeypatch.setenv(variable, value)
    named = ["-d", "4", "-c", "3d_fullres", "-f", "0", "1", "2", "-tr"]
    assert cli.main(["crossval", *named, TRAINER]) == cli.main(["compare", *named, TRAINER, OTHER]) == 0
    assert {"summary.json", "temperature.json", "comparison.json"} <= set(study.results())
    assert study.results() == by_hand.results()

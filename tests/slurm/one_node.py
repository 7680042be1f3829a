"""A SLURM of one node, from tests/slurm/start."""

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "docs" / "cluster"
SECONDS = 1800  # to wait for something, at most; seconds where the cores are free


class Slurm:
    """A running SLURM."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": os.pathsep.join([str(folder / "bin"), os.environ["PATH"]]),
            "PYTHONPATH": str(ROOT),
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

    def wait(self, until: Callable[[], bool], every: float = 0.5) -> None:
        """Wait for something, looking for it every so many seconds."""
        end = time.monotonic() + SECONDS
        while not until():
            assert time.monotonic() < end, self.everything()
            time.sleep(every)

    def wait_for(self, state: str, *jobs: str) -> None:
        """Wait until jobs have ended in a state."""
        ended = {state, "CANCELLED", "COMPLETED", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}
        self.wait(lambda: all(self.state(job) in ended for job in jobs))
        assert {job: self.state(job) for job in jobs} == dict.fromkeys(jobs, state), self.everything()

    def everything(self) -> str:
        """The queue, and all that the jobs and SLURM have written."""
        logs = [*sorted(self.folder.glob("*-*.log")), *self.folder.glob("*.log"), self.folder / "jobs.txt"]
        return "\n".join([self.call("squeue"), *(f"{path.name}:\n{path.read_text()}" for path in logs)])

    def requeue(self, task: str) -> None:
        """Let a task that has ended start again, in two seconds instead of two minutes, with an hour to go."""
        self.call("scontrol", "requeue", task)
        # In the second of its end the node takes a new start for the old one: "Job credential revoked".
        self.call("scontrol", "update", f"JobId={task}", "StartTime=now+2", "TimeLimit=60")

    def history(self, job: str) -> dict[str, list[str]]:
        """The states in which the tasks of a job have ended; PENDING: they were requeued."""
        ended = (self.folder / "jobs.txt").read_text().splitlines()
        states: dict[str, list[str]] = {}
        for entries in (dict(entry.split("=", 1) for entry in line.split() if "=" in entry) for line in ended):
            if entries.get("ArrayJobId") == job:
                states.setdefault(entries["ArrayTaskId"], []).append(entries["JobState"])
        return states


@contextmanager
def one_node(folder: Path) -> Iterator[Slurm]:
    """Start a SLURM with its files in a folder and end it; its ports are free ones, so that several can run."""
    environment = os.environ | {"SLURM_PORT": str(free_ports()), "SLURM_OWNER": str(os.getpid())}
    try:
        start = [ROOT / "tests" / "slurm" / "start", folder]
        started = subprocess.run(start, env=environment, text=True, capture_output=True)
        if started.returncode:  # the packages are there, but this machine's kernel, container or name may not do
            pytest.skip(f"SLURM does not start here: {started.stderr.strip()}")
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

"""docs/cluster/Snakefile with Snakemake's local executor, on folds of synthetic data."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nnunet_calib.results.layout import ModelFolder, comparison_folder
from tests.worlds.batch_commands import batch_path, write_command
from tests.worlds.measured_folds import DATASET, TRAINER, three_folds

ROOT = Path(__file__).resolve().parents[2]
OTHER = "nnUNetTrainerNACL"
CONFIGURATION = "3d_fullres"
SECONDS = 300  # to wait for something, at most

# Stands in for nnUNetv2_train: copies a fold that lies ready, or fails, or does not end, as files in STATE say.
TRAIN = """#!/bin/sh
echo "train $5 $3" >> "$STATE/calls"
[ ! -f "$STATE/fails_$5_$3" ] || exit 1
[ ! -f "$STATE/hangs_$5_$3" ] || exec sleep 300
model="$1/$5__nnUNetPlans__$2"
mkdir -p "$nnUNet_results/$model"
cp -r "$STATE/results/$model/fold_$3" "$nnUNet_results/$model/"
"""

# These folds have no checkpoint, for which `validate` would ask; all other commands are those of the package.
COMMANDS = """#!/bin/sh
case "$1" in
    validate) echo "validate $9 ${11}" >> "$STATE/calls";;
    compare) echo compare >> "$STATE/calls"; exec "$REAL/nnunet_calib" "$@";;
    *) echo "$1 $9" >> "$STATE/calls"; exec "$REAL/nnunet_calib" "$@";;
esac
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("snakemake") is None, reason="needs Snakemake, and it Python 3.11"),
    pytest.mark.skipif(os.name == "nt", reason="process groups"),
]


class Workflow:
    """A study of two trainers with three folds each, whose trainings may fail or hang."""

    def __init__(self, root: Path) -> None:
        self.state, self.study, self.log = root / "state", root / "study", root / "log"
        self.study.mkdir()
        models = [three_folds(self.state, trainer=each, weights=each) for each in (TRAINER, OTHER)]
        write_command(root / "bin", "nnUNetv2_train", TRAIN)
        write_command(root / "bin", "nnunet_calib", COMMANDS)
        self.environment = os.environ | {
            "PATH": os.pathsep.join([str(root / "bin"), batch_path(root / "real")]),
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "REAL": str(root / "real"),
            "STATE": str(self.state),
            "nnUNet_results": str(root / "results"),
            "nnUNet_preprocessed": str(models[0].preprocessed),
        }
        copies = [root / "results" / model.folder.relative_to(model.results) for model in models]
        self.pages = [copy / "crossval_results_folds_0_1_2" / "calibration" / "report.html" for copy in copies]
        in_results = [ModelFolder.below(root / "results", DATASET, **model.named) for model in models]
        self.comparison = comparison_folder(in_results, [0, 1, 2]) / "comparison.json"

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        """Start Snakemake and its jobs as a group of processes."""
        settings = [
            f"dataset={DATASET}",
            f"configuration={CONFIGURATION}",
            f"trainers={TRAINER} {OTHER}",
            "folds=0 1 2",
        ]
        command = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "docs" / "cluster" / "Snakefile"), "--config"]
        command += [*settings, "--cores", "2", "--keep-going", "--rerun-triggers", "mtime", *options]
        with open(self.log, "ab") as log:
            return subprocess.Popen(
                command, cwd=self.study, env=self.environment, start_new_session=True, stdout=log, stderr=log
            )

    def run(self, *options: str) -> int:
        """Run Snakemake to its end; returns its status."""
        return self.start(*options).wait(SECONDS)

    def calls(self) -> list[str]:
        """What the workflow has called since this was asked last."""
        calls = self.state / "calls"
        called = sorted(calls.read_text().splitlines()) if calls.exists() else []
        calls.unlink(missing_ok=True)
        return called


def test_failed_fold(tmp_path):
    """A failed fold stops only what depends on it; a workflow that was killed goes on where it was."""
    workflow = Workflow(tmp_path)
    fails, hangs = (workflow.state / f"{how}_{OTHER}_1" for how in ("fails", "hangs"))
    fails.touch()
    assert workflow.run() == 1
    trained = [f"train {trainer} {fold}" for trainer in (TRAINER, OTHER) for fold in "012"]
    measured = [f"validate {call[6:]}" for call in trained if call != f"train {OTHER} 1"]
    merged = [f"crossval {TRAINER}", f"report {TRAINER}"]
    assert workflow.calls() == sorted([*trained, *measured, *merged]), workflow.log.read_text()
    assert [page.exists() for page in workflow.pages] == [True, False]

    fails.rename(hangs)
    running = workflow.start()
    end = time.monotonic() + SECONDS
    while f"train {OTHER} 1" not in (called := workflow.calls()):
        assert running.poll() is None, workflow.log.read_text()
        assert time.monotonic() < end
        time.sleep(0.1)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    assert called == [f"train {OTHER} 1"]

    hangs.unlink()
    assert workflow.run("--unlock") == 0
    assert workflow.run("--rerun-incomplete") == 0, workflow.log.read_text()
    rest = [f"train {OTHER} 1", f"validate {OTHER} 1", f"crossval {OTHER}", f"report {OTHER}", "compare"]
    assert workflow.calls() == sorted(rest)
    assert all(page.exists() for page in workflow.pages)
    assert workflow.comparison.exists()

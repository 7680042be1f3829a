"""nnU-Net's own training and validation of the fold of `trained_fold`, and what it writes."""

import io
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from tests.worlds.trained_fold import CONFIGURATION, PLANS, Trained

ROOT = Path(__file__).resolve().parents[3]


def validate(trained: Trained) -> None:
    """What nnUNetv2_train --val --npz does."""
    from nnunetv2.run.run_training import run_training

    run_training(
        trained.dataset,
        CONFIGURATION,
        "all",
        trained.trainer,
        PLANS,
        device=torch.device("cpu"),
        only_run_validation=True,
        export_validation_probabilities=True,
    )


def train(dataset: str, trainer: str, results: Path) -> Path:
    """Train and validate fold 0 of 2d, always with the same random numbers; returns the fold's folder."""
    from nnunetv2.run.run_training import run_training

    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  # nnU-Net's
    torch.manual_seed(0)
    run_training(dataset, "2d", 0, trainer, PLANS, device=torch.device("cpu"))
    return results / dataset / f"{trainer}__{PLANS}__2d" / "fold_0"


def killed_training(dataset: str, trainer: str, results: Path, write: int) -> bool:
    """Return whether `train` was killed, half of our n-th file being written.

    In a new process, since PyTorch need not work in a copy of one that has trained in several threads.
    """
    code = f"""
from pathlib import Path
from tests.nnunet.faults.processes import kill_in
from tests.nnunet.faults.training import train

kill_in({write})
train({dataset!r}, {trainer!r}, Path({str(results)!r}))
"""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode in (0, -signal.SIGKILL), f"ended with {done.returncode}: {done.stderr[-5000:]}"
    return done.returncode != 0


def validation_files(fold: Path) -> dict[str, bytes]:
    """What nnU-Net itself has written of its validation, the folders left out that its summary.json names."""
    files = {
        path.name: path.read_bytes()
        for path in sorted((fold / "validation").iterdir())
        if path.is_file() and path.name != "calibration"
    }
    return files | {"summary.json": re.sub(rb'"[^"]*/([^"/]+)"', rb'"\1"', files["summary.json"])}


def nnunet_files(trained: Trained) -> dict[str, bytes]:
    """Those, and the checkpoints."""
    return validation_files(trained.fold) | {p.name: p.read_bytes() for p in trained.fold.glob("*.pth")}


def log_of(trained: Trained) -> str:
    """nnU-Net's logs of all trainings in the fold's folder."""
    return "".join(path.read_text() for path in sorted(trained.fold.glob("training_log_*.txt")))


def check_same_files(ours: dict[str, bytes], expected: dict[str, bytes]) -> None:
    """The same bytes; probabilities may differ by rounding, which depends on PyTorch's number of threads."""
    assert ours.keys() == expected.keys()
    for name, content in expected.items():
        if name.endswith(".npz"):
            a, b = (np.load(io.BytesIO(x))["probabilities"] for x in (ours[name], content))
            np.testing.assert_allclose(a, b, atol=1e-6)
        else:
            assert ours[name] == content, name

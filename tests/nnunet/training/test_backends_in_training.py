"""A fold trained with the losses of each backend: the same loss in every iteration."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nnunet_calib.losses.backends import VARIABLE

ROOT = Path(__file__).resolve().parents[3]
TRAINER = "nnUNetTrainerSeeded"
SOURCE = f"""
import json
import os
import random

import numpy as np
import torch

from nnunet_calib.trainers import nnUNetTrainerNACLML1ACE


class {TRAINER}(nnUNetTrainerNACLML1ACE):
    nacl_warmup_epochs = ml1_ace_warmup_epochs = 0
    draw_figures = draw_pseudo_ace = draw_logits = None

    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cpu")):
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(0)
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1, 3, 1
        self.losses = []

    def train_step(self, batch):
        result = super().train_step(batch)
        self.losses.append(float(result["loss"]))
        with open(os.environ["LOSSES"], "w") as file:
            json.dump(self.losses, file)
        return result
"""
TRAIN = """
import sys
import torch
from nnunetv2.run.run_training import run_training
run_training(sys.argv[1], sys.argv[2], 0, sys.argv[3], device=torch.device("cpu"))
"""


def train(world, tmp_path, choice, configuration):
    """Return the losses of all iterations of a fold."""
    file = tmp_path / f"{choice}.json"
    environment = {
        **os.environ,
        **world.environment(),
        VARIABLE: choice,
        "LOSSES": str(file),
        "nnUNet_n_proc_DA": "0",
        "nnUNet_results": str(tmp_path / choice),
        "PYTHONPATH": str(ROOT),
        "TRITON_INTERPRET": "1",
    }
    command = [sys.executable, "-c", TRAIN, world.dataset, configuration, TRAINER]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    assert [*(tmp_path / choice).rglob("fold_0/validation/calibration/summary.json")]
    return json.loads(file.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("world", ["labels"], indirect=True)
def test_same_losses(world, tmp_path):
    """Whole folds, compared with the formulas; Triton's kernels run in its interpreter."""
    pytest.importorskip("triton")
    (world.folder / "trainers" / "seeded_trainer.py").write_text(SOURCE)
    expected = train(world, tmp_path, "reference", "2d")
    assert len(expected) == len({*expected}) == 3
    for choice in ("chunked", "triton"):
        assert train(world, tmp_path, choice, "2d") == pytest.approx(expected, abs=1e-4), choice

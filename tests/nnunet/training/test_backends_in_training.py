"""A fold trained with the losses of each backend: the same loss in every iteration."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
TRAINER = "nnUNetTrainerSeeded"
SOURCE = f"""
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
        self.num_epochs, self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = 1, 2, 1
        self.losses = []

    def train_step(self, batch):
        result = super().train_step(batch)
        self.losses.append(float(result["loss"]))
        return result
"""
# The validation has no loss; imports take longer than these trainings, which one process runs one after the other.
TRAIN = """
import json, os, sys
import torch
from nnunetv2.run.run_training import get_trainer_from_args
from nnunet_calib.losses.backends import VARIABLE
losses = {}
for choice in sys.argv[4:]:
    os.environ[VARIABLE] = choice
    trainer = get_trainer_from_args(sys.argv[1], sys.argv[2], 0, sys.argv[3], device=torch.device("cpu"))
    trainer.run_training()
    losses[choice] = trainer.losses
with open(os.environ["LOSSES"], "w") as file:
    json.dump(losses, file)
"""


def train(world, tmp_path, choices, configuration):
    """Return the losses of all iterations of a fold with each choice."""
    file = tmp_path / "losses.json"
    environment = {
        **os.environ,
        **world.environment(),
        "LOSSES": str(file),
        "nnUNet_n_proc_DA": "0",
        "nnUNet_results": str(tmp_path),
        "PYTHONPATH": str(ROOT),
        "TRITON_INTERPRET": "1",
    }
    command = [sys.executable, "-c", TRAIN, world.dataset, configuration, TRAINER, *choices]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    return json.loads(file.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("world", ["labels"], indirect=True)
def test_same_losses(world, tmp_path):
    """Epochs of a fold, compared with the formulas; Triton's kernels run in its interpreter."""
    pytest.importorskip("triton")
    (world.folder / "trainers" / "seeded_trainer.py").write_text(SOURCE)
    others = ("chunked", "triton")
    losses = train(world, tmp_path, ("reference", *others), "2d")
    expected = losses["reference"]
    assert len(expected) == len({*expected}) == 2
    for choice in others:
        assert losses[choice] == pytest.approx(expected, abs=1e-4), choice

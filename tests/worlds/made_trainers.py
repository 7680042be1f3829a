"""Trainers that tests make without a dataset."""

from __future__ import annotations

import json

import torch
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerNoDeepSupervision import (
    nnUNetTrainerNoDeepSupervision,
)

from nnunet_calib.trainers import ML1ACEMixin
from tests.worlds.nnunet_world import PLANS


def make(cls, world, configuration="3d_fullres", **changed):
    """A trainer of a class that no look-up finds; `changed` replaces entries of dataset.json, None removes them."""
    plans, dataset = (json.loads((world.preprocessed / f"{n}.json").read_text()) for n in (PLANS, "dataset"))
    dataset = {key: value for key, value in (dataset | changed).items() if value is not None}
    return cls(
        plans=plans | {"continue_training": False},
        configuration=configuration,
        fold=0,
        dataset_json=dataset,
        device=torch.device("cpu"),
    )


class NoDeepSupervision(ML1ACEMixin, nnUNetTrainerNoDeepSupervision):
    """The loss takes tensors, not lists."""

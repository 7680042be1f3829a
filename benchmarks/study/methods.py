"""The trainer classes of the study, made from `settings.METHODS` and `settings.SWEEP`.

They are attributes of this module under their own names, so that nnU-Net's spawned workers can unpickle them;
`trainers/study_trainers.py` shows them to nnU-Net's look-up.
"""

from __future__ import annotations

import os
import random
from typing import Any
from unittest.mock import patch

import nnunetv2.training.nnUNetTrainer.variants.loss.nnUNetTrainerDiceLoss as nnunet_dice
import numpy as np
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter

import nnunet_calib.trainers
from benchmarks.study import settings


class StudyMixin:
    """The study's length and seed. Its data loaders have one worker each, since more would race.

    Attributes:
        first_seed: of fold 0.
    """

    first_seed = settings.SEED

    # The arguments of nnUNetTrainer.__init__, which looks them up by name: none may be added. They are passed on by
    # name, as nnU-Net does.
    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008
    ) -> None:
        super().__init__(plans=plans, configuration=configuration, fold=fold, dataset_json=dataset_json, device=device)
        study = settings.chosen()
        self.num_epochs = study.epochs
        self.num_iterations_per_epoch = study.iterations
        self.num_val_iterations_per_epoch = settings.VALIDATION_ITERATIONS

    def initialize(self) -> None:
        """Initialise with the seed of the fold, so that every method begins with the same weights."""
        seed = self.first_seed + self.fold
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002, nnU-Net draws from the global generators
        torch.manual_seed(seed)
        torch.set_num_threads(settings.THREADS)  # on a CPU nnU-Net takes all cores
        super().initialize()

    def get_dataloaders(self) -> Any:
        """Return nnU-Net's loaders, each in one worker with a seed, which nnU-Net does not set."""
        with patch.dict(os.environ, nnUNet_n_proc_DA="0"):  # has no worker started in vain
            loaders = [augmenter.data_loader for augmenter in super().get_dataloaders()]
        # A training that goes on from a checkpoint does not see the patches of its first epochs again.
        seed = 2 * (self.first_seed + self.fold) + 1000 * self.current_epoch
        augmenters = tuple(
            NonDetMultiThreadedAugmenter(
                data_loader=loader,
                transform=None,
                num_processes=1,
                num_cached=6,
                seeds=[seed + number],
                pin_memory=self.device.type == "cuda",
                wait_time=0.002,
            )
            for number, loader in enumerate(loaders)
        )
        for augmenter in augmenters:
            next(augmenter)
        return augmenters


def _base(name: str) -> type:
    return getattr(nnunet_calib.trainers, name, None) or getattr(nnunet_dice, name)


for _name, _method in settings.ALL.items():
    _bases = (StudyMixin, *map(_base, _method.bases))
    _class = settings.PREFIX + _name
    globals()[_class] = type(_class, _bases, {"__module__": __name__, "first_seed": _method.seed, **_method.attributes})

__all__ = [settings.PREFIX + name for name in settings.ALL]

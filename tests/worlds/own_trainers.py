"""Trainers as other people write them, which nnU-Net alone trains."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn


def first(x):
    """The full resolution."""
    return x[0] if isinstance(x, list | tuple) else x


def cross_entropy(x, y, *more):
    """A loss that is a plain function."""
    return nn.functional.cross_entropy(first(x), first(y)[:, 0].long())


class Own(nn.Module):
    """A loss that is nnU-Net's no more."""

    def forward(self, x, y):
        """As above."""
        return cross_entropy(x, y)


class Short:
    """Two epochs of two iterations, without figures."""

    draw_figures = None
    draw_pseudo_ace = draw_logits = None

    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):  # noqa: B008
        super().__init__(plans=plans, configuration=configuration, fold=fold, dataset_json=dataset_json, device=device)
        self.num_epochs = 2
        self.num_iterations_per_epoch = 2
        self.num_val_iterations_per_epoch = 1


class LossInInitialize(nnUNetTrainer):
    """Sets its loss after nnU-Net has built one."""

    def initialize(self):
        """nnU-Net's, and the loss."""
        super().initialize()
        self.loss = Own()


class FunctionLoss(nnUNetTrainer):
    """Its loss is no module."""

    def _build_loss(self):
        return cross_entropy


class WrapsInFunction(nnUNetTrainer):
    """Puts what the other classes have built into a function, in `initialize`."""

    def initialize(self):
        """nnU-Net's, and the loss."""
        super().initialize()
        own = self.loss
        self.loss = partial(lambda factor, x, y: factor * own(x, y), 2)


class OwnStep(nnUNetTrainer):
    """Its training steps call another loss than `self.loss`."""

    def train_step(self, batch):
        """A step without nnU-Net's."""
        loss = cross_entropy(self.network(batch["data"]), batch["target"])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.detach().numpy()}


class StepWithMore(nnUNetTrainer):
    """Its steps take the epoch, its loss takes it too, and it validates without `self.loss`."""

    def _build_loss(self):
        return cross_entropy

    def run_training(self):
        """nnU-Net's, with arguments that it does not have."""
        self.on_train_start()
        for epoch in range(self.current_epoch, self.num_epochs):
            self.on_epoch_start()
            self.on_train_epoch_start()
            losses = []
            for _ in range(self.num_iterations_per_epoch):
                batch = next(self.dataloader_train)
                loss = self.loss(self.network(batch["data"]), batch["target"], epoch)
                loss.backward()
                losses.append({"loss": loss.detach().numpy()})
            self.on_train_epoch_end(losses, epoch)
            with torch.no_grad():
                self.on_validation_epoch_start()
                self.on_validation_epoch_end([self.validation_step(next(self.dataloader_val), epoch)], epoch)
            self.on_epoch_end()
        self.on_train_end()

    def on_train_epoch_end(self, train_outputs, epoch):
        """nnU-Net's."""
        super().on_train_epoch_end(train_outputs)

    def validation_step(self, batch, epoch):
        """No loss."""
        heads = self.label_manager.num_segmentation_heads - 1
        tp, none = np.ones(heads), np.zeros(heads)
        return {"loss": np.zeros(()), "tp_hard": tp, "fp_hard": none, "fn_hard": none}

    def on_validation_epoch_end(self, val_outputs, epoch):
        """nnU-Net's."""
        super().on_validation_epoch_end(val_outputs)

    def perform_actual_validation(self, save_probabilities=False, epoch=0):
        """nnU-Net's."""
        super().perform_actual_validation(save_probabilities)


class OtherLogger(nnUNetTrainer):
    """Logs into a dictionary of its own, which has none of nnU-Net's lists, and takes nothing of the validation."""

    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):  # noqa: B008
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.seen: dict = {}

        def log(key, value, step):
            assert "pseudo_ace" not in key, "it knows its own keys only"
            self.seen[key] = value

        def update_config(config):
            assert {*config} <= {"hparas"}, "it knows its own keys only"

        self.logger = SimpleNamespace(
            log=log,
            update_config=update_config,
            get_value=lambda key, step: self.seen.get(key, 0.0),
            plot_progress_png=lambda folder: None,
            get_checkpoint=dict,
            load_checkpoint=lambda content: None,
            log_summary=lambda key, value: self.seen["calibration" in key],
        )
        self.seen[False] = None  # a KeyError for what is of the calibration


class OtherFolder(nnUNetTrainer):
    """Its results lie in a folder that nnU-Net makes when the training starts, and its splits are its own."""

    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):  # noqa: B008
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.output_folder = f"{self.output_folder}_mine"
        self.do_split = lambda: nnUNetTrainer.do_split(self)


class ExtraBeforeDevice(nnUNetTrainer):
    """Keeps a parameter of older versions of nnU-Net."""

    def __init__(
        self,
        plans,
        configuration,
        fold,
        dataset_json,
        unpack_dataset=True,
        device=torch.device("cuda"),  # noqa: B008
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        assert unpack_dataset is True


class Reordered(nnUNetTrainer):
    """The names of nnU-Net's parameters, in another order."""

    def __init__(self, device, fold, plans, dataset_json, configuration):
        super().__init__(plans, configuration, fold, dataset_json, device)


class KeywordOnly(nnUNetTrainer):
    """The same, by name only."""

    def __init__(self, *, plans, configuration, fold, dataset_json, device):
        super().__init__(plans, configuration, fold, dataset_json, device)


class AnyArguments(nnUNetTrainer):
    """Passes on by name what comes."""

    def __init__(self, **arguments):
        super().__init__(**arguments)


CONSTRUCTORS = (ExtraBeforeDevice, Reordered, KeywordOnly, AnyArguments)

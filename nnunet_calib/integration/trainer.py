"""Mixins that turn an nnU-Net trainer into a calibrated one.

`CalibrationMixin` measures after the validation; a loss mixin also changes what `super()._build_loss()` returns. Put
one before a trainer, `class MyTrainer(NACLMixin, nnUNetTrainerDA5)`, or combine finished trainers, which also draws
the figures: `class MyTrainer(nnUNetTrainerNACL, nnUNetTrainerDA5)`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from nnunet_calib.integration.labels import check_dataset, plan_kernel_size
from nnunet_calib.integration.loss import LossWithTerm, add_term, replace_cross_entropy
from nnunet_calib.integration.pseudo_ace import PseudoACEMixin
from nnunet_calib.integration.schedule import Schedule, scheduled_weight, warmed_up
from nnunet_calib.integration.validation import measured_validation
from nnunet_calib.losses import ML1ACELoss, NACLLoss, SVLSLoss
from nnunet_calib.losses.backends import choice as losses_choice
from nnunet_calib.losses.bin_errors import AbsentClasses, Reduction
from nnunet_calib.losses.ml1_ace import Binning
from nnunet_calib.losses.nacl import On, Penalty, Prior

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer as Trainer
else:
    Trainer = object

CUDA = torch.device("cuda")


class CalibrationMixin(PseudoACEMixin, Trainer):
    """Measures calibration in every epoch and after nnU-Net's own validation; records the losses' hyperparameters.

    Attributes:
        measure_validation: off, the validation is exactly nnU-Net's.
        draw_figures: called with the calibration folder once its files are written; None draws nothing.
        hyperparameters: names of the class attributes that a mixin adds.
    """

    measure_validation = True
    draw_figures: Callable[[Path], None] | None = None
    hyperparameters: tuple[str, ...] = ()

    # The arguments of nnUNetTrainer.__init__, which looks them up by name: none may be added.
    def __init__(
        self, plans: dict, configuration: str, fold: int, dataset_json: dict, device: torch.device = CUDA
    ) -> None:
        check_dataset(dataset_json)
        wanted = "expected a results folder that can be written, got {} for {}: set nnUNet_results to another"
        try:
            super().__init__(plans, configuration, fold, dataset_json, device)
        except OSError as error:
            raise OSError(wanted.format(error.strerror, error.filename)) from error
        # nnU-Net goes on if it cannot write its log, and would lose the first checkpoint
        if not os.access(self.output_folder, os.W_OK):
            raise OSError(wanted.format("no permission to write", self.output_folder))

    def initialize(self) -> None:
        """nnU-Net's, and tells the logger the hyperparameters of the calibration losses."""
        super().initialize()
        self.logger.update_config({"calibration": self.calibration_hyperparameters()})

    def calibration_hyperparameters(self) -> dict[str, Any]:
        """Name and value of every hyperparameter that the mixins of this trainer have."""
        names = [name for cls in reversed(type(self).__mro__) for name in vars(cls).get("hyperparameters", ())]
        return {name: getattr(self, name) for name in names}

    def term_weights(self, epoch: int) -> dict[type[nn.Module], float]:
        """Class of a loss term -> its weight in an epoch, of the terms whose weight changes."""
        return {}

    def on_train_start(self) -> None:
        """Refuse a choice of losses that cannot be computed here, then nnU-Net's."""
        losses_choice()
        super().on_train_start()

    def on_train_epoch_start(self) -> None:
        """nnU-Net's, with the epoch's weights."""
        super().on_train_epoch_start()
        weights = self.term_weights(self.current_epoch)
        for module in self.loss.modules():
            if isinstance(module, LossWithTerm) and type(module.term) in weights:
                module.weight = weights[type(module.term)]

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """nnU-Net's, with each case measured in the worker that exports it."""
        validate = super().perform_actual_validation
        if self.measure_validation:
            measured_validation(self, validate, save_probabilities)
        else:
            validate(save_probabilities)

    def _loss_mode(self) -> dict[str, Any]:
        """The options that follow from the dataset's labels."""
        return {"regions": self.label_manager.has_regions, "ignore_label": self.label_manager.ignore_label}


class NACLMixin(CalibrationMixin):
    """Adds neighbour-aware calibration (`nnunet_calib.losses.nacl_loss`) to the trainer's loss."""

    nacl_weight = 0.01
    nacl_kernel_size = 3
    nacl_prior: Prior = "mean"
    nacl_penalty: Penalty = "l1"
    nacl_on: On = "logits"
    nacl_sigma = 1.0
    nacl_every_resolution = True
    nacl_schedule: Schedule = "constant"
    nacl_schedule_rate = 1.0
    nacl_schedule_every = 100
    nacl_max_weight = 100.0
    nacl_warmup_epochs = 10
    hyperparameters: tuple[str, ...] = (
        "nacl_weight", "nacl_kernel_size", "nacl_prior", "nacl_penalty", "nacl_on", "nacl_sigma",
        "nacl_every_resolution", "nacl_schedule", "nacl_schedule_rate", "nacl_schedule_every", "nacl_max_weight",
        "nacl_warmup_epochs",
    )

    def _nacl_weight(self, epoch: int) -> float:
        return scheduled_weight(
            self.nacl_weight, epoch, schedule=self.nacl_schedule, rate=self.nacl_schedule_rate,
            every=self.nacl_schedule_every, maximum=self.nacl_max_weight,
        )

    def term_weights(self, epoch: int) -> dict[type[nn.Module], float]:
        """That of NACL follows its schedule and its warm-up."""
        weight = warmed_up(
            self._nacl_weight(epoch), epoch, warmup_epochs=self.nacl_warmup_epochs, num_epochs=self.num_epochs
        )
        return super().term_weights(epoch) | {NACLLoss: weight}

    def _build_loss(self) -> nn.Module:
        term = NACLLoss(
            kernel_size=plan_kernel_size(self.nacl_kernel_size, self.configuration_manager), prior=self.nacl_prior,
            penalty=self.nacl_penalty, on=self.nacl_on, sigma=self.nacl_sigma, **self._loss_mode(),
        )
        weight = self._nacl_weight(self.current_epoch)  # whole: it is an epoch's start that warms it up
        return add_term(super()._build_loss(), term, weight, every_resolution=self.nacl_every_resolution)


class SVLSMixin(CalibrationMixin):
    """Replaces the cross-entropy of the trainer's loss by spatially varying label smoothing (`svls_loss`)."""

    svls_kernel_size = 3
    svls_sigma = 1.0
    hyperparameters: tuple[str, ...] = ("svls_kernel_size", "svls_sigma")

    def _build_loss(self) -> nn.Module:
        term = SVLSLoss(
            kernel_size=plan_kernel_size(self.svls_kernel_size, self.configuration_manager), sigma=self.svls_sigma,
            **self._loss_mode(),
        )
        return replace_cross_entropy(super()._build_loss(), term, self.label_manager.num_segmentation_heads)


class DiceOnlyMixin(CalibrationMixin):
    """Takes the cross-entropy out of the trainer's loss and leaves the Dice, ignore label included."""

    def _build_loss(self) -> nn.Module:
        return replace_cross_entropy(super()._build_loss(), None)


class ML1ACEMixin(CalibrationMixin):
    """Adds the marginal L1 average calibration error (`nnunet_calib.losses.ml1_ace_loss`) to the trainer's loss."""

    ml1_ace_weight = 1.0
    ml1_ace_warmup_epochs = 10
    ml1_ace_num_bins = 20
    ml1_ace_reduction: Reduction = "ace"
    ml1_ace_binning: Binning = "hard"
    ml1_ace_absent_classes: AbsentClasses = "skip"
    ml1_ace_every_resolution = True
    ml1_ace_pool_with_batch_dice = False
    hyperparameters: tuple[str, ...] = (
        "ml1_ace_weight", "ml1_ace_warmup_epochs", "ml1_ace_num_bins", "ml1_ace_reduction", "ml1_ace_binning",
        "ml1_ace_absent_classes", "ml1_ace_every_resolution", "ml1_ace_pool_with_batch_dice",
    )

    def term_weights(self, epoch: int) -> dict[type[nn.Module], float]:
        """That of mL1-ACE follows its warm-up."""
        weight = warmed_up(
            self.ml1_ace_weight, epoch, warmup_epochs=self.ml1_ace_warmup_epochs, num_epochs=self.num_epochs
        )
        return super().term_weights(epoch) | {ML1ACELoss: weight}

    def _build_loss(self) -> nn.Module:
        pooled = self.ml1_ace_pool_with_batch_dice and self.configuration_manager.batch_dice
        term = ML1ACELoss(
            num_bins=self.ml1_ace_num_bins, reduction=self.ml1_ace_reduction, binning=self.ml1_ace_binning,
            absent_classes=self.ml1_ace_absent_classes, pool="batch" if pooled else "image", **self._loss_mode(),
        )
        return add_term(
            super()._build_loss(), term, self.ml1_ace_weight, every_resolution=self.ml1_ace_every_resolution
        )

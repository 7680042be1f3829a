"""Mixins that turn an nnU-Net trainer into a calibrated one.

`CalibrationMixin` measures after the validation; a loss mixin also changes what `super()._build_loss()` returns. Put
one before a trainer, `class MyTrainer(NACLMixin, nnUNetTrainerDA5)`, or combine finished trainers, which also draws
the figures: `class MyTrainer(nnUNetTrainerNACL, nnUNetTrainerDA5)`.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from nnunet_calib.losses import ML1ACELoss, NACLLoss, SVLSLoss
from nnunet_calib.losses.backends import choice as losses_choice
from nnunet_calib.losses.bin_errors import AbsentClasses, Reduction
from nnunet_calib.losses.ml1_ace import Binning
from nnunet_calib.losses.nacl import On, Penalty, Prior
from nnunet_calib.measuring.scopes import check_boundary_mm
from nnunet_calib.nnunet.labels import check_dataset, plan_kernel_size
from nnunet_calib.nnunet.training.loss_parts import missing_terms, parts
from nnunet_calib.nnunet.training.loss_terms import LossWithTerm, NoTerm, add_term, replace_cross_entropy
from nnunet_calib.nnunet.training.pseudo_ace import PseudoACEMixin
from nnunet_calib.nnunet.training.recorded_split import recorded_training
from nnunet_calib.nnunet.training.weight_schedule import Schedule, scheduled_weight, warmed_up
from nnunet_calib.nnunet.validation.hook import measured_validation
from nnunet_calib.results.layout import FINAL

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer as Trainer
else:
    Trainer = object

CUDA = torch.device("cuda")


class CalibrationMixin(PseudoACEMixin, Trainer):
    """Measures calibration in every epoch and after nnU-Net's own validation; records the losses' hyperparameters.

    Attributes:
        measure_validation: off, the validation is exactly nnU-Net's.
        boundary_mm: half width of the boundary scope; None means the default for the voxel size in the plans.
        draw_figures: called with the calibration folder once its files are written; None draws nothing.
        hyperparameters: names of the class attributes that a mixin adds.
        promised_terms: what a mixin puts into the loss.
        loaded_checkpoint: name of the checkpoint that has the weights of the network; None if that is not known.
    """

    measure_validation = True
    boundary_mm: float | None = None
    draw_figures: Callable[[Path], None] | None = None
    hyperparameters: tuple[str, ...] = ()
    promised_terms: tuple[type[nn.Module], ...] = ()
    _has_trained = False
    _missing_told = False
    loaded_checkpoint: str | None = FINAL

    # The arguments of nnUNetTrainer.__init__, which looks them up by name: none may be added. They are passed on by
    # name, as nnU-Net does: another trainer may have them in another order, or more of them.
    def __init__(
        self, plans: dict, configuration: str, fold: int, dataset_json: dict, device: torch.device = CUDA
    ) -> None:
        check_dataset(dataset_json)
        wanted = "expected a results folder that can be written, got {} for {}: set nnUNet_results to another"
        try:
            super().__init__(
                plans=plans, configuration=configuration, fold=fold, dataset_json=dataset_json, device=device
            )
        except OSError as error:
            raise OSError(wanted.format(error.strerror, error.filename)) from error
        # nnU-Net goes on if it cannot write its log, and would lose the first checkpoint
        if os.path.isdir(self.output_folder) and not os.access(self.output_folder, os.W_OK):
            raise OSError(wanted.format("no permission to write", self.output_folder))

    def load_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """nnU-Net's, and remembers the file, which `nnUNetv2_train --val_best` changes before the validation."""
        super().load_checkpoint(*args, **kwargs)
        file = next(iter((*args, *kwargs.values())), None)
        self.loaded_checkpoint = os.path.basename(file) if isinstance(file, str | os.PathLike) else None

    def on_train_end(self) -> None:
        """nnU-Net's, which saves the final checkpoint."""
        super().on_train_end()
        self.loaded_checkpoint = FINAL

    def initialize(self) -> None:
        """nnU-Net's, and tells the logger the hyperparameters of the calibration losses."""
        if self.boundary_mm is not None:
            check_boundary_mm(self.boundary_mm)  # rather than after the last epoch
        super().initialize()
        with self._failure_logged("The loggers were not told the calibration hyperparameters"):
            self.logger.update_config({"calibration": self.calibration_hyperparameters()})

    def calibration_hyperparameters(self) -> dict[str, Any]:
        """Name and value of every hyperparameter that the mixins of this trainer have."""
        return {name: getattr(self, name) for name in self._of_all_mixins("hyperparameters")}

    def _of_all_mixins(self, attribute: str) -> list[Any]:
        """Return what the classes of this trainer list under a name, each once."""
        return [*dict.fromkeys(x for cls in reversed(type(self).__mro__) for x in vars(cls).get(attribute, ()))]

    def term_weights(self, epoch: int) -> dict[type[nn.Module], float]:
        """Class of a loss term -> its weight in an epoch, of the terms whose weight changes."""
        return {}

    def on_train_start(self) -> None:
        """Refuse losses that cannot be computed here and, after nnU-Net's start, a loss without what is promised.

        `initialize` and what else comes before may have replaced it. Of a training that starts, the split is recorded.
        """
        losses_choice()
        with recorded_training(self):
            super().on_train_start()
            if self.current_epoch < self.num_epochs:
                self._check_promised_terms()

    def on_train_epoch_start(self) -> None:
        """nnU-Net's, with the epoch's weights."""
        self._check_promised_terms()
        super().on_train_epoch_start()
        with self._failure_logged("The weights of the calibration losses stay as they were"):
            weights = self.term_weights(self.current_epoch)
            for part in self._added_terms():
                if type(part.term) in weights:
                    part.weight = weights[type(part.term)]
        self._has_trained = True

    def on_train_epoch_end(self, *arguments: Any, **named: Any) -> None:
        """Tell of a term that no training step has called, after nnU-Net's."""
        super().on_train_epoch_end(*arguments, **named)
        with self._failure_logged("It is unknown whether the calibration losses are trained with"):
            if unused := [type(part.term).__name__ for part in self._added_terms() if not part.called]:
                self._tell_missing(f"No training step has called the loss with {', '.join(unused)}")

    def _added_terms(self) -> list[LossWithTerm]:
        return [part for part in parts(self.loss) if issubclass(type(part), LossWithTerm)]

    def _check_promised_terms(self) -> None:
        """Raise ValueError if the loss lacks a promised term; once it has been trained with, tell it."""
        missing: list[type[nn.Module]] = []
        with self._failure_logged("The loss could not be searched for the calibration losses"):
            missing = missing_terms(self.loss, self._of_all_mixins("promised_terms"))
        if not missing:
            return
        promising = [cls for cls in type(self).__mro__ if {*missing} & {*vars(cls).get("promised_terms", ())}]
        names = ", ".join(
            term.__name__ + (" in the place of the cross-entropy" if term is NoTerm else "") for term in missing
        )
        if self._has_trained:
            self._tell_missing(f"From epoch {self.current_epoch} on the loss is without {names}")
            return
        raise ValueError(
            f"expected {names} in the loss that {type(self).__name__} trains with, found none in its "
            f"{type(self.loss).__name__}: return that loss from _build_loss() of a class that comes after "
            f"{promising[-1].__name__} in {type(self).__name__}.__mro__, so that the term is put into it, or derive "
            f"from nnUNetTrainerCalib, which adds none and measures all the same"
        )

    def _tell_missing(self, what: str) -> None:
        if not self._missing_told:
            self._missing_told = True
            with suppress(Exception):
                self.print_to_log_file(f"{what}: this is not the calibrated training that the hyperparameters tell of")

    @contextmanager
    def _failure_logged(self, failure: str) -> Iterator[None]:
        """Let nothing in here end a training; the log tells the failure."""
        try:
            yield
        except Exception:
            with suppress(Exception):  # not even telling does
                self.print_to_log_file(f"{failure}; nnU-Net goes on. The reason:\n{traceback.format_exc()}")

    def perform_actual_validation(self, *arguments: Any, **named: Any) -> None:
        """nnU-Net's, with each case measured in the worker that exports it."""
        validate = partial(super().perform_actual_validation, *arguments, **named)
        if self.measure_validation:
            measured_validation(self, validate)
        else:
            validate()

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
    promised_terms: tuple[type[nn.Module], ...] = (NACLLoss,)

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
    promised_terms: tuple[type[nn.Module], ...] = (SVLSLoss, NoTerm)

    def _build_loss(self) -> nn.Module:
        term = SVLSLoss(
            kernel_size=plan_kernel_size(self.svls_kernel_size, self.configuration_manager), sigma=self.svls_sigma,
            **self._loss_mode(),
        )
        return replace_cross_entropy(super()._build_loss(), term, self.label_manager.num_segmentation_heads)


class DiceOnlyMixin(CalibrationMixin):
    """Takes the cross-entropy out of the trainer's loss and leaves the Dice, ignore label included."""

    promised_terms: tuple[type[nn.Module], ...] = (NoTerm,)

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
    promised_terms: tuple[type[nn.Module], ...] = (ML1ACELoss,)

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

"""Mixins that turn an nnU-Net trainer into a calibrated one.

`CalibrationMixin` measures after the validation. `AddedTerm`, `ReplacedCrossEntropy` and `ReplacedDice` also change the
loss that `super()._build_loss()` returns: a subclass names a loss and lists its options, as in `nnunet_calib.trainers`.
"""

from __future__ import annotations

import math
import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from nnunet_calib.losses.backends import choice as losses_choice
from nnunet_calib.measuring.scopes import check_boundary_mm
from nnunet_calib.nnunet.labels import check_dataset, plan_kernel_size
from nnunet_calib.nnunet.training.loss_parts import missing_terms, parts
from nnunet_calib.nnunet.training.loss_terms import (
    LossWithTerm,
    NoDice,
    NoTerm,
    add_term,
    replace_cross_entropy,
    replace_dice,
)
from nnunet_calib.nnunet.training.pseudo_ace import PseudoACEMixin
from nnunet_calib.nnunet.training.ranks import is_first_process
from nnunet_calib.nnunet.training.recorded_split import recorded_training
from nnunet_calib.nnunet.training.untrained_terms import record_untrained
from nnunet_calib.nnunet.training.weight_schedule import scheduled_weight, warmed_up
from nnunet_calib.nnunet.validation.hook import measured_validation
from nnunet_calib.nnunet.validation.replaced_names import only_measures
from nnunet_calib.results.layout import FINAL

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer as Trainer
else:
    Trainer = object

CUDA = torch.device("cuda")


class CalibrationMixin(PseudoACEMixin, Trainer):
    """Trainer mixin that measures calibration in every epoch and after the validation, and records hyperparameters.

    Attributes:
        measure_validation: whether the validation is measured; if not, it is exactly nnU-Net's.
        boundary_mm: half width of the boundary scope; None means the default for the voxel size in the plans.
        draw_figures: function called with the calibration folder once its files are written; None draws nothing.
        hyperparameters: names of the class attributes that a mixin adds.
        promised_terms: classes of the terms that a mixin puts into the loss.
        loaded_checkpoint: name of the checkpoint with the weights of the network; None if it is unknown.
    """

    measure_validation = True
    boundary_mm: float | None = None
    draw_figures: Callable[[Path], None] | None = None
    hyperparameters: tuple[str, ...] = ()
    promised_terms: tuple[type[nn.Module], ...] = ()
    _has_trained = False
    _missing_told = False
    _weights_logged = True
    _untrained: list[str] | None = None  # the terms that the last epoch was trained without
    loaded_checkpoint: str | None = FINAL

    # nnUNetTrainer.__init__ looks up its arguments by name, so none may be added. They are passed on by name: another
    # trainer may have them in another order, or have more of them.
    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = CUDA,
    ) -> None:
        check_dataset(dataset_json)
        wanted = "expected a results folder that can be written, got {} for {}: set nnUNet_results to another"
        try:
            super().__init__(
                plans=plans, configuration=configuration, fold=fold, dataset_json=dataset_json, device=device
            )
        except OSError as error:
            raise OSError(wanted.format(error.strerror, error.filename)) from error
        # nnU-Net continues if it cannot write its log, and would lose the first checkpoint
        if os.path.isdir(self.output_folder) and not os.access(self.output_folder, os.W_OK):
            raise OSError(wanted.format("no permission to write", self.output_folder))

    def load_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Load as nnU-Net does, and keep the file's name: `nnUNetv2_train --val_best` loads another one to validate."""
        super().load_checkpoint(*args, **kwargs)
        file = next(iter((*args, *kwargs.values())), None)
        self.loaded_checkpoint = os.path.basename(file) if isinstance(file, str | os.PathLike) else None

    def on_train_end(self) -> None:
        """End the training as nnU-Net does, which saves the final checkpoint."""
        super().on_train_end()
        self.loaded_checkpoint = FINAL

    def initialize(self) -> None:
        """Initialize as nnU-Net does, and log the hyperparameters of the calibration losses."""
        if self.boundary_mm is not None:
            check_boundary_mm(self.boundary_mm)  # now rather than after the last epoch
        super().initialize()
        with self._failure_logged("The calibration hyperparameters were not logged"):
            self.logger.update_config({"calibration": self.calibration_hyperparameters()})

    def calibration_hyperparameters(self) -> dict[str, Any]:
        """Return name and value of all hyperparameters of this trainer's mixins."""
        return {name: getattr(self, name) for name in self._of_all_mixins("hyperparameters")}

    def _of_all_mixins(self, attribute: str) -> list[Any]:
        """Return the entries that this trainer's classes list under an attribute, each once."""
        return [*dict.fromkeys(x for cls in reversed(type(self).__mro__) for x in vars(cls).get(attribute, ()))]

    def term_weights(self, epoch: int) -> dict[type[nn.Module], float]:
        """Return the weight in an epoch of each class of loss term whose weight changes."""
        return {}

    def on_train_start(self) -> None:
        """Start as nnU-Net does, record the split, and refuse a loss that is not the promised one.

        The check comes after nnU-Net's start: `initialize` and other code before may have replaced the loss.
        """
        losses_choice()
        with recorded_training(self):
            super().on_train_start()
            if self.current_epoch < self.num_epochs:
                self._check_promised_terms()

    def on_train_epoch_start(self) -> None:
        """Start an epoch as nnU-Net does, with the epoch's weights."""
        self._check_promised_terms()
        super().on_train_epoch_start()
        with self._failure_logged("The weights of the calibration losses were not changed"):
            added = self._added_terms()
            for part in added:
                part.called = False  # validation steps call it too
            weights = self.term_weights(self.current_epoch)
            for part in added:
                if type(part.term) in weights:
                    part.weight = weights[type(part.term)]
            self._log_weights(added)
        self._has_trained = True

    def _log_weights(self, added: list[LossWithTerm]) -> None:
        """Log the weights of the epoch with nnU-Net's other loggers, until one of them fails."""
        if not self._weights_logged:
            return
        self._weights_logged = False
        with self._failure_logged("The weights of the calibration losses were not logged"):
            # the local logger takes only the lists that it knows, and saves them with the checkpoint
            for logger in getattr(self.logger, "loggers", ()):
                for part in added:
                    logger.log(f"calibration/weight_{type(part.term).__name__}", part.weight, self.current_epoch)
            self._weights_logged = True

    def on_train_epoch_end(self, *arguments: Any, **named: Any) -> None:
        """End an epoch as nnU-Net does; log, and record, which terms it was trained without."""
        super().on_train_epoch_end(*arguments, **named)
        with self._failure_logged("It is unknown whether the calibration losses are in use"):
            unused = [type(part.term).__name__ for part in self._added_terms() if not part.called]
            if unused:
                self._tell_missing(f"No training step has called the loss with {', '.join(unused)}")
            replaced = missing_terms(self.loss, self._of_all_mixins("promised_terms"))
            untrained = sorted({*unused, *(term.__name__ for term in replaced)})
            if untrained != self._untrained and is_first_process(self):
                record_untrained(Path(self.output_folder), untrained)
            self._untrained = untrained

    def _added_terms(self) -> list[LossWithTerm]:
        return [part for part in parts(self.loss) if issubclass(type(part), LossWithTerm)]

    def _check_promised_terms(self) -> None:
        """Raise ValueError if the loss lacks a promised term; after the first epoch, log it instead."""
        missing: list[type[nn.Module]] = []
        with self._failure_logged("The loss could not be searched for the calibration losses"):
            missing = missing_terms(self.loss, self._of_all_mixins("promised_terms"))
        if not missing:
            return
        promising = [cls for cls in type(self).__mro__ if {*missing} & {*vars(cls).get("promised_terms", ())}]
        names = ", ".join(
            term.__name__ + (f" in the place of {term.place}" if hasattr(term, "place") else "") for term in missing
        )
        if self._has_trained:
            self._tell_missing(f"From epoch {self.current_epoch} on the loss lacks {names}")
            return
        raise ValueError(
            f"expected {names} in the loss that {type(self).__name__} trains with, found none in its "
            f"{type(self.loss).__name__}: return that loss from _build_loss() of a class that comes after "
            f"{promising[-1].__name__} in {type(self).__name__}.__mro__, so that the term is put into it, or derive "
            f"from nnUNetTrainerCalib, which adds no term and still measures"
        )

    def _tell_missing(self, what: str) -> None:
        if not self._missing_told:
            self._missing_told = True
            with suppress(Exception):
                self.print_to_log_file(
                    f"WARNING: {what}: this training is not calibrated as its hyperparameters say, and summary.json "
                    f"will repeat it"
                )

    @contextmanager
    def _failure_logged(self, failure: str) -> Iterator[None]:
        """Log an error inside the context instead of ending the training."""
        try:
            yield
        except Exception:
            with suppress(Exception):  # logging may fail too
                self.print_to_log_file(f"{failure}; training continues. Reason:\n{traceback.format_exc()}")

    @only_measures
    def perform_actual_validation(self, *arguments: Any, **named: Any) -> None:
        """Validate as nnU-Net does, with each case measured in the worker that exports it."""
        validate = partial(super().perform_actual_validation, *arguments, **named)
        if self.measure_validation:
            measured_validation(self, validate)
        else:
            validate()


class LossMixin(CalibrationMixin):
    """Base of the mixins that train with a loss of this package: `class FooMixin(AddedTerm, loss=Foo, prefix="foo")`.

    The class attributes that begin with the prefix are its hyperparameters. The loss gets those that it takes as
    arguments, and the options that follow from the dataset: `regions` and `ignore_label`.

    Attributes:
        weighting: further names that may follow the prefix, with their default values.
    """

    weighting: ClassVar[Mapping[str, Any]] = {}

    def __init_subclass__(cls, *, loss: type[nn.Module] | None = None, prefix: str = "", **named: Any) -> None:
        """Derive the promised terms and the hyperparameters of a mixin that names a loss; a trainer inherits them."""
        super().__init_subclass__(**named)
        if loss is None:
            return
        names = [name for name in vars(cls) if prefix and name.startswith(f"{prefix}_")]
        suffixes = [*signature(loss).parameters, *cls.weighting]
        if unknown := {*names} - {f"{prefix}_{suffix}" for suffix in suffixes}:
            raise TypeError(
                f"expected {prefix}_ in {cls.__name__} to be followed by one of {', '.join(suffixes)}, got "
                f"{', '.join(sorted(unknown))}: correct the name, so that the loss gets it"
            )
        cls.hyperparameters = tuple(names)
        cls._promise(loss, prefix)

    @classmethod
    def _promise(cls, loss: type[nn.Module], prefix: str) -> None:
        """Set the terms that the trainer's loss will hold, and the method that builds it."""
        raise NotImplementedError

    def _build_term(self, loss: type[nn.Module], prefix: str, **of_base: Any) -> nn.Module:
        """Return a loss with the options from the trainer's attributes, its dataset, its plans and its base loss."""
        named = {name: f"{prefix}_{name}" for name in signature(loss).parameters}
        options = {name: getattr(self, attribute) for name, attribute in named.items() if hasattr(self, attribute)}
        options |= {"regions": self.label_manager.has_regions, "ignore_label": self.label_manager.ignore_label}
        options = of_base | options
        if "kernel_size" in options:
            options["kernel_size"] = plan_kernel_size(options["kernel_size"], self.configuration_manager)
        if self._weighting(prefix, "pool_with_batch_dice") and self.configuration_manager.batch_dice:
            options["pool"] = "batch"
        return loss(**options)

    def _weighting(self, prefix: str, name: str) -> Any:
        return getattr(self, f"{prefix}_{name}", self.weighting.get(name))


class AddedTerm(LossMixin):
    """Base of the mixins that add a term to the trainer's loss, with a weight that may change over the epochs.

    Attributes (after the prefix): `weight`; `warmup_epochs` until the full weight; `every_resolution` of deep
    supervision, or only the full one; `schedule`, `schedule_rate`, `schedule_every` and `max_weight` as in
    `scheduled_weight`; `pool_with_batch_dice`, to pool the batch where nnU-Net's Dice does.
    """

    weighting: ClassVar[Mapping[str, Any]] = {
        "weight": 1.0,
        "warmup_epochs": 0,
        "every_resolution": True,
        "schedule": "constant",
        "schedule_rate": 1.0,
        "schedule_every": 1,
        "max_weight": math.inf,
        "pool_with_batch_dice": False,
    }
    added: ClassVar[tuple[tuple[type[nn.Module], str], ...]] = ()

    @classmethod
    def _promise(cls, loss: type[nn.Module], prefix: str) -> None:
        def _build_loss(self: AddedTerm) -> nn.Module:
            weight = self._scheduled_weight(prefix, self.current_epoch)  # on_train_epoch_start applies the warm-up
            every_resolution = self._weighting(prefix, "every_resolution")
            base = super(cls, self)._build_loss()
            return add_term(base, self._build_term(loss, prefix), weight, every_resolution=every_resolution)

        cls.promised_terms = (loss,)
        cls.added = ((loss, prefix),)
        cls._build_loss = _build_loss

    def _scheduled_weight(self, prefix: str, epoch: int) -> float:
        weight, schedule, rate, every, maximum = (
            self._weighting(prefix, name)
            for name in ("weight", "schedule", "schedule_rate", "schedule_every", "max_weight")
        )
        return scheduled_weight(weight, epoch, schedule=schedule, rate=rate, every=every, maximum=maximum)

    def term_weights(self, epoch: int) -> dict[type[nn.Module], float]:
        """Return the weights of all added losses, by schedule and warm-up."""
        weights = super().term_weights(epoch)
        for loss, prefix in self._of_all_mixins("added"):
            weight, warmup_epochs = self._scheduled_weight(prefix, epoch), self._weighting(prefix, "warmup_epochs")
            weights[loss] = warmed_up(weight, epoch, warmup_epochs=warmup_epochs, num_epochs=self.num_epochs)
        return weights


class ReplacedCrossEntropy(LossMixin):
    """Base of the mixins that replace the cross-entropy by a loss; `NoTerm` removes it."""

    @classmethod
    def _promise(cls, loss: type[nn.Module], prefix: str) -> None:
        def _build_loss(self: ReplacedCrossEntropy) -> nn.Module:
            term = None if loss is NoTerm else self._build_term(loss, prefix)
            heads = self.label_manager.num_segmentation_heads
            return replace_cross_entropy(super(cls, self)._build_loss(), term, heads)

        cls.promised_terms = tuple(dict.fromkeys((loss, NoTerm)))
        cls._build_loss = _build_loss


class ReplacedDice(LossMixin):
    """Base of the mixins that put a loss in the place of the Dice.

    The loss takes `smooth`, `background` and `pool`, which are those of nnU-Net's Dice unless a mixin defines them.
    """

    @classmethod
    def _promise(cls, loss: type[nn.Module], prefix: str) -> None:
        def _build_loss(self: ReplacedDice) -> nn.Module:
            return replace_dice(super(cls, self)._build_loss(), partial(self._build_term, loss, prefix))

        cls.promised_terms = (loss, NoDice)
        cls._build_loss = _build_loss

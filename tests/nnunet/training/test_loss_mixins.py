"""A mixin names a loss and lists its options; hyperparameters, hand-over and weights follow from that."""

import pytest
import torch
from torch import nn

from nnunet_calib.losses.module import FunctionalLoss
from nnunet_calib.nnunet.training.loss_terms import LossWithTerm, NoTerm
from nnunet_calib.nnunet.training.mixins import AddedTerm, ReplacedCrossEntropy
from nnunet_calib.trainers import DiceOnlyMixin, ML1ACEMixin, NACLMixin, SVLSMixin
from tests.nnunet.training.test_promised_terms import make


class Squares(FunctionalLoss):
    """A loss that the package does not have."""

    def __init__(self, kernel_size=5, factor=1.0, power=2, regions=False, ignore_label=None):
        super().__init__(
            lambda logits, target, factor, power, **options: factor * logits.abs().pow(power).mean(),
            kernel_size=kernel_size,
            factor=factor,
            power=power,
            regions=regions,
            ignore_label=ignore_label,
        )


class SquaresMixin(AddedTerm, loss=Squares, prefix="squares"):
    """Adds it."""

    squares_weight = 0.5
    squares_warmup_epochs = 2
    squares_factor = 3.0


class SquaresInsteadMixin(ReplacedCrossEntropy, loss=Squares, prefix="squares"):
    """Puts it in the place of the cross-entropy."""

    squares_power = 4


def terms(trainer):
    """Return the terms in the loss of a trainer."""
    return [part.term for part in trainer.loss.modules() if isinstance(part, LossWithTerm)]


def test_added():
    """The loss gets the attributes that it takes and keeps its other defaults; the weight warms up."""
    trainer = make(type("Strong", (), {"squares_factor": 7.0}), SquaresMixin)
    trainer.label_manager.ignore_label, before = 9, trainer.label_manager.ignore_label
    try:
        trainer.initialize()
    finally:
        trainer.label_manager.ignore_label = before
    (term,) = terms(trainer)
    assert type(term) is Squares
    assert term.options == {"kernel_size": 5, "factor": 7.0, "power": 2, "regions": False, "ignore_label": 9}
    assert [*trainer.calibration_hyperparameters().items()] == [
        ("squares_weight", 0.5),
        ("squares_warmup_epochs", 2),
        ("squares_factor", 7.0),
    ]
    assert trainer.told["calibration"] == trainer.calibration_hyperparameters()
    trainer.num_epochs = 10
    assert [trainer.term_weights(epoch)[Squares] for epoch in range(4)] == [0, 0.25, 0.5, 0.5]


def test_replaced():
    """The same for a loss in the place of the cross-entropy, and both are promised."""
    trainer = make(SquaresInsteadMixin)
    trainer.initialize()
    (term,) = terms(trainer)
    assert term.options["power"] == 4
    assert any(isinstance(part, NoTerm) for part in trainer.loss.modules())
    assert SquaresInsteadMixin.promised_terms == (Squares, NoTerm)
    assert DiceOnlyMixin.promised_terms == (NoTerm,)
    assert trainer.term_weights(0) == {}


def test_kernel_size_of_the_plan():
    """A neighbourhood follows the plan's kernels."""

    class Flat(SquaresMixin):
        squares_kernel_size = 3

    trainer = make(Flat)
    trainer.configuration_manager = type(
        "Plan", (), {"network_arch_init_kwargs": {"kernel_sizes": [[1, 3, 3]]}, "batch_dice": False}
    )
    trainer.initialize()
    assert terms(trainer)[0].options["kernel_size"] == (1, 3, 3)


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("wanted", [False, True])
def test_pool(batch_dice, wanted):
    """The batch is pooled where that is wanted and nnU-Net's Dice does so."""
    trainer = make(type("Wanted", (), {"ml1_ace_pool_with_batch_dice": wanted}), ML1ACEMixin)
    trainer.configuration_manager = type("Plan", (), {"network_arch_init_kwargs": {}, "batch_dice": batch_dice})
    trainer.initialize()
    assert terms(trainer)[0].options["pool"] == ("batch" if wanted and batch_dice else "image")


def test_several():
    """Each mixin adds its own, and the order of the classes is that of the losses."""
    trainer = make(SquaresMixin, ML1ACEMixin, NACLMixin)
    trainer.initialize()
    assert [type(term).__name__ for term in terms(trainer)] == ["Squares", "ML1ACELoss", "NACLLoss"]
    assert {loss.__name__ for loss in trainer.term_weights(0)} == {"Squares", "ML1ACELoss", "NACLLoss"}
    names = [*NACLMixin.hyperparameters, *ML1ACEMixin.hyperparameters, *SquaresMixin.hyperparameters]
    assert [*trainer.calibration_hyperparameters()] == names
    assert torch.isfinite(trainer.train_step())


@pytest.mark.parametrize(("base", "name"), [(AddedTerm, "squares_facter"), (ReplacedCrossEntropy, "squares_weight")])
def test_unknown_option(base, name):
    """An attribute that would reach nothing is refused when the class is defined."""
    with pytest.raises(TypeError, match=rf"squares_ in Mine to be followed by .*factor.*, got {name}: correct"):
        type(base)("Mine", (base,), {name: 1}, loss=Squares, prefix="squares")


def test_trainers_inherit():
    """A trainer of a mixin records the same names, and one without a loss of its own defines none."""

    class Mine(SVLSMixin):
        svls_sigma = 2.0
        svls_other = 1

    assert "hyperparameters" not in vars(Mine)
    assert Mine.hyperparameters == ("svls_kernel_size", "svls_sigma")
    assert issubclass(Squares, nn.Module)

"""A calibration loss that a trainer promises is in the loss that it trains with, or the training does not begin."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from nnunet_calib.losses import NACLLoss
from nnunet_calib.nnunet.training.loss_terms import LossWithTerm, add_term
from nnunet_calib.nnunet.training.mixins import CalibrationMixin
from nnunet_calib.nnunet.training.untrained_terms import record_untrained, untrained_terms
from nnunet_calib.trainers import DiceOnlyMixin, DSCPlusPlusMixin, ML1ACEMixin, NACLMixin, SVLSMixin
from tests.nnunet.training.test_loss_terms import MODES, batch, nnunet_loss

pytestmark = pytest.mark.pairs

ARGUMENTS = {"plans": {}, "configuration": "2d", "fold": 0, "dataset_json": {"labels": {"background": 0}}}


class Base:
    """What the mixins need of nnU-Net's trainer, which calls its parts in this order."""

    was_initialized = False
    num_epochs, current_epoch, iterations = 2, 0, 1
    local_rank = 1  # which writes no file
    label_manager = SimpleNamespace(has_regions=False, ignore_label=None, num_segmentation_heads=3)
    configuration_manager = SimpleNamespace(network_arch_init_kwargs={}, batch_dice=False)

    def __init__(self, plans, configuration, fold, dataset_json, device):
        self.output_folder = "/not/there"
        self.log: list[str] = []
        self.told: dict = {}
        self.logger = SimpleNamespace(update_config=self.told.update)

    def _build_loss(self):
        return nnunet_loss(MODES["labels"], deep=True)

    def initialize(self):
        """Build the loss."""
        self.loss = self._build_loss()
        self.was_initialized = True

    def on_train_start(self):
        """Begin."""
        if not self.was_initialized:
            self.initialize()

    def on_train_epoch_start(self):
        """Begin an epoch."""
        self.log.append(f"epoch {self.current_epoch}")

    def on_train_epoch_end(self, train_outputs):
        """End an epoch."""
        pass

    def do_split(self):
        """Return no cases."""
        return [], []

    def print_to_log_file(self, text):
        """Keep the line."""
        self.log.append(text)

    def train_step(self):
        """Return the loss of a batch."""
        return self.loss(*batch(MODES["labels"], deep=True))

    def validation_step(self):
        """Return the loss of a batch."""
        return self.loss(*batch(MODES["labels"], deep=True))

    def run_training(self):
        """Train all epochs."""
        self.on_train_start()
        while self.current_epoch < self.num_epochs:
            self.on_train_epoch_start()
            self.on_train_epoch_end([self.train_step() for _ in range(self.iterations)])
            with torch.no_grad():
                self.validation_step()
            self.current_epoch += 1


def make(*bases: type):
    """A trainer of these classes, before the one above."""
    return type("MyTrainer", (*bases, Base), {})(**ARGUMENTS, device=torch.device("cpu"))


class Own(nn.Module):
    """A loss without anything of ours."""

    def forward(self, x, y):
        """Return anything."""
        return x[0].mean()


class InInitialize:
    """Sets the loss when everything else is built."""

    def initialize(self):
        """Build the loss."""
        super().initialize()
        self.loss = Own()


class InBuildLoss:
    """Asks no other class for a loss."""

    def _build_loss(self):
        return Own()


class AtTrainStart:
    """Sets it later still."""

    def on_train_start(self):
        """Begin."""
        super().on_train_start()
        self.loss = Own()


class Doubled:
    """Keeps what is there, in a function."""

    def initialize(self):
        """Build the loss."""
        super().initialize()
        loss = self.loss
        self.loss = lambda x, y: 2 * loss(x, y)


NAMES = {
    NACLMixin: "NACLLoss",
    SVLSMixin: "SVLSLoss, NoTerm in the place of the cross-entropy",
    ML1ACEMixin: "ML1ACELoss",
    DiceOnlyMixin: "NoTerm in the place of the cross-entropy",
    DSCPlusPlusMixin: "DicePlusPlusLoss, NoDice in the place of the Dice",
}
every_mixin = pytest.mark.parametrize("mixin", NAMES)


@every_mixin
@pytest.mark.parametrize("how", [InInitialize, InBuildLoss, AtTrainStart])
@pytest.mark.parametrize("begun", [0, 1], ids=["new", "continued"])
def test_refused(mixin, how, begun):
    """Before the first epoch that would be trained; told are trainer, term and the two ways out."""
    trainer = make(how, mixin)
    trainer.current_epoch = begun
    with pytest.raises(ValueError, match="expected") as caught:
        trainer.run_training()
    assert str(caught.value) == (
        f"expected {NAMES[mixin]} in the loss that MyTrainer trains with, found none in its Own: return that loss from "
        f"_build_loss() of a class that comes after {mixin.__name__} in MyTrainer.__mro__, so that the term is put "
        f"into it, or derive from nnUNetTrainerCalib, which adds no term and still measures"
    )
    assert trainer.log == []


def test_one_of_two():
    """Only what is missing is named."""

    class Half:
        def initialize(self):
            super().initialize()
            self.loss = add_term(Own(), NACLLoss(), 0.1)

    with pytest.raises(ValueError, match="expected ML1ACELoss in the loss that MyTrainer trains with"):
        make(Half, NACLMixin, ML1ACEMixin).run_training()


@every_mixin
def test_first_way_out(mixin):
    """The loss comes from a class after the mixin; where there is no cross-entropy or Dice to replace, that is said."""
    trainer = make(mixin, InBuildLoss)
    if mixin not in (NACLMixin, ML1ACEMixin):
        part = "Dice" if mixin is DSCPlusPlusMixin else "cross-entropy"
        with pytest.raises(TypeError, match=f"whose {part} is to be replaced, got Own"):
            trainer.run_training()
    else:
        trainer.run_training()
        assert trainer.log == ["epoch 0", "epoch 1"]


@pytest.mark.parametrize("how", [InInitialize, InBuildLoss, AtTrainStart])
def test_second_way_out(how):
    """A trainer that promises nothing trains with any loss."""
    trainer = make(how, CalibrationMixin)
    trainer.run_training()
    assert trainer.log == ["epoch 0", "epoch 1"]


@every_mixin
def test_nothing_to_train(mixin):
    """`--val`, `validate` and a continued training that has ended go on: nothing is trained without the term."""
    trainer = make(InInitialize, mixin)
    trainer.initialize()
    trainer.current_epoch = trainer.num_epochs
    trainer.run_training()
    assert trainer.log == []


@every_mixin
def test_wrapped(mixin):
    """A term in a function is found, and so the weight of its epoch gets there."""
    trainer = make(Doubled, mixin)
    trainer.num_epochs = 4
    trainer.run_training()
    assert trainer.log == [f"epoch {epoch}" for epoch in range(4)]
    if mixin is NACLMixin:
        (added,) = (cell.cell_contents for cell in trainer.loss.__closure__)
        assert isinstance(added.loss, LossWithTerm)
        assert added.loss.weight == mixin.nacl_weight
        assert trainer.told["calibration"]["nacl_weight"] == mixin.nacl_weight


class Later:
    """Changes its loss after the first epoch."""

    def on_train_epoch_end(self, train_outputs):
        """End an epoch."""
        super().on_train_epoch_end(train_outputs)
        self.loss = Own()


def test_replaced_on_the_way():
    """A trainer that changes its loss in a later epoch is not stopped, and the log says since when it is another."""
    trainer = make(Later, NACLMixin)
    trainer.num_epochs = 3
    trainer.run_training()
    told = "WARNING: From epoch 1 on the loss lacks NACLLoss: this training is not calibrated as its hyperparameters"
    assert [line.startswith(told) for line in trainer.log] == [False, True, False, False]


class OwnStep:
    """Trains with another loss than self.loss."""

    def train_step(self):
        """Return the loss of a batch."""
        return Own()(*batch(MODES["labels"], deep=True))


class OwnFirstStep(OwnStep):
    """Does so in the first epoch."""

    def train_step(self):
        """Return the loss of a batch."""
        step = super() if self.current_epoch == 0 else super(OwnStep, self)
        return step.train_step()


def test_never_called():
    """Training steps that call another loss than self.loss are told in the first epoch."""
    trainer = make(OwnStep, NACLMixin)
    trainer.run_training()
    assert "No training step has called the loss with NACLLoss" in trainer.log[1]
    assert [line.partition(":")[0] for line in trainer.log] == ["epoch 0", "WARNING", "epoch 1"]


@pytest.mark.parametrize(
    ("bases", "expected"),
    [
        ((OwnStep, NACLMixin), ["NACLLoss"]),
        ((OwnStep, NACLMixin, ML1ACEMixin), ["ML1ACELoss", "NACLLoss"]),
        ((OwnFirstStep, NACLMixin), []),
        ((Later, NACLMixin), ["NACLLoss"]),
        ((NACLMixin,), []),
    ],
)
def test_recorded(bases, expected, tmp_path):
    """What the last epoch was trained without stands in the fold's folder; an earlier training's record does not."""
    record_untrained(tmp_path, ["SVLSLoss"])
    trainer = make(*bases)
    trainer.output_folder, trainer.local_rank = str(tmp_path), 0
    trainer.run_training()
    assert untrained_terms(tmp_path) == expected


def test_failures_cost_nothing(monkeypatch):
    """Neither the search nor the loggers nor the schedule end a training; each is told."""

    def fail(*arguments):
        raise RuntimeError("out of order")

    trainer = make(NACLMixin)
    trainer.logger.update_config = fail
    trainer.term_weights = fail
    monkeypatch.setattr("nnunet_calib.nnunet.training.mixins.missing_terms", fail)
    trainer.run_training()
    assert "epoch 1" in trainer.log
    told = "".join(trainer.log)
    for text in ("hyperparameters were not logged", "could not be searched", "calibration losses were not changed"):
        assert text in told


def test_a_logger_that_fails():
    """Its epochs go on with the weights that they should have, and the failure is told once."""

    def log(key, value, step):
        logged.append((key, value, step))
        if step == 1:
            raise RuntimeError("no connection")

    logged: list = []
    trainer = make(NACLMixin)
    trainer.num_epochs = 4
    trainer.logger.loggers = [SimpleNamespace(log=log)]
    trainer.run_training()
    weights = [trainer.term_weights(epoch)[NACLLoss] for epoch in range(2)]
    assert logged == [("calibration/weight_NACLLoss", weight, epoch) for epoch, weight in enumerate(weights)]
    assert trainer.loss.loss.weight == trainer.term_weights(3)[NACLLoss]
    assert len([line for line in trainer.log if "were not logged" in line]) == 1


def test_two_terms():
    """Both count as called where they are computed at once, as they are when the warm-up is over."""

    class Whole:
        nacl_warmup_epochs = ml1_ace_warmup_epochs = 0

    trainer = make(Whole, NACLMixin, ML1ACEMixin)
    trainer.run_training()
    assert trainer.log == ["epoch 0", "epoch 1"]


class Format(nn.Module):
    """Returns something else than a tensor, in every epoch."""

    def forward(self, x, y):
        """Return anything."""
        return {"loss": x[0].mean()}


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_other_formats(weight):
    """In the first step, though the warm-up begins without the term, and in one sentence."""
    outputs, targets = batch(MODES["labels"], deep=True)
    with pytest.raises(TypeError, match="expected a tensor from Format, to which NACLLoss is added, got dict: return"):
        add_term(Format(), NACLLoss(), weight)(outputs, targets)
    loss = add_term(lambda x, y: x["logits"].mean(), NACLLoss(), weight)
    with pytest.raises(
        TypeError, match="expected a loss to be called with logits and labels like nnU-Net's, got dict and"
    ):
        loss({"logits": outputs[0]}, targets)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_more_arguments(weight):
    """What a loss takes besides output and target is passed on."""
    outputs, targets = batch(MODES["labels"], deep=True)
    loss = add_term(lambda x, y, epoch, factor: factor * epoch * x[0].mean(), NACLLoss(), weight)
    expected = 6 * outputs[0].mean() + weight * NACLLoss()(outputs[0], targets[0])
    assert torch.equal(loss(outputs, targets, 2, factor=3), expected)

"""The weight of NACL over the epochs."""

import pytest

from nnunet_calib.nnunet.training.weight_schedule import scheduled_weight, warmed_up
from nnunet_calib.trainers import nnUNetTrainerNACL, nnUNetTrainerNACLML1ACE


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.1, 0.1, 0.1, 0.1, 0.1]),
        ("add", [0.1, 2.1, 4.1, 5.0, 5.0]),
        ("multiply", [0.1, 0.2, 0.4, 0.8, 1.6]),
        ("step", [0.1, 0.1, 0.2, 0.2, 0.4]),
    ],
)
def test_by_hand(schedule, expected):
    """Five epochs, rate 2, a step every second epoch, cap 5."""
    weights = [scheduled_weight(0.1, e, schedule=schedule, rate=2, every=2, maximum=5) for e in range(5)]
    assert weights == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("schedule", "every"), [("multiply", 1), ("step", 1)])
@pytest.mark.parametrize("rate", [10, 10.0])
def test_overflow(schedule, every, rate):
    """A weight beyond all floats, in a late epoch, is the largest allowed; nothing is still nothing."""
    options = {"schedule": schedule, "rate": rate, "every": every, "maximum": 5}
    assert scheduled_weight(0.1, 999, **options) == 5
    assert scheduled_weight(0.0, 999, **options) == 0


@pytest.mark.parametrize(("schedule", "every"), [("linear", 1), ("step", 0)])
def test_refused(schedule, every):
    """In one sentence, when the loss is built, before the first epoch."""
    with pytest.raises(ValueError, match="expected the schedule to be constant, add, multiply or step"):
        scheduled_weight(0.1, 0, schedule=schedule, rate=1, every=every, maximum=1)


@pytest.mark.parametrize(
    ("warmup_epochs", "num_epochs", "expected"),
    [(4, 1000, [0, 0.5, 1, 1.5, 2, 2]), (4, 5, [0, 1, 2, 2, 2]), (0, 1000, [2, 2]), (4, 1, [2])],
)
def test_warmup_by_hand(warmup_epochs, num_epochs, expected):
    """From 0 up in even steps; a short training has the whole term for half of its epochs."""
    weights = [warmed_up(2, e, warmup_epochs=warmup_epochs, num_epochs=num_epochs) for e in range(len(expected))]
    assert weights == pytest.approx(expected, rel=1e-12)


class Growing(nnUNetTrainerNACL):
    """A tenth more every epoch."""

    nacl_weight = 0.1
    nacl_schedule = "add"
    nacl_schedule_rate = 0.1
    nacl_warmup_epochs = 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_training_uses_it(world):
    """Each epoch's start sets the weight inside deep supervision; a continued training begins with its epoch's."""
    from tests.worlds.made_trainers import make

    trainer = make(Growing, world)
    trainer.initialize()
    term = trainer.loss.loss
    assert term.weight == pytest.approx(0.1)
    for epoch in (0, 1, 7):
        trainer.current_epoch = epoch
        trainer.on_train_epoch_start()
        assert term.weight == pytest.approx(0.1 + 0.1 * epoch)
    assert trainer._build_loss().loss.weight == pytest.approx(0.8)


class Warm(nnUNetTrainerNACLML1ACE):
    """Two terms, each with a warm-up of its own."""

    ml1_ace_warmup_epochs = 5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_warmup_of_two_terms(world):
    """Each term gets its own weight, inside the other; without an epoch's start both are whole."""
    from tests.worlds.made_trainers import make

    trainer = make(Warm, world)
    trainer.initialize()
    weights = {type(m.term).__name__: m for m in trainer.loss.modules() if hasattr(m, "term")}
    assert {name: module.weight for name, module in weights.items()} == {"NACLLoss": 0.01, "ML1ACELoss": 1.0}
    for epoch, nacl, ml1_ace in ((0, 0, 0), (1, 0.001, 0.2), (5, 0.005, 1), (999, 0.01, 1)):
        trainer.current_epoch = epoch
        trainer.on_train_epoch_start()
        found = {name: module.weight for name, module in weights.items()}
        assert found == pytest.approx({"NACLLoss": nacl, "ML1ACELoss": ml1_ace})

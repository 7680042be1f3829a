"""The weight of NACL over the epochs."""

import pytest

from nnunet_calib.integration.schedule import scheduled_weight
from nnunet_calib.trainers import nnUNetTrainerNACL


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


@pytest.mark.parametrize(("schedule", "every"), [("linear", 1), ("step", 0)])
def test_refused(schedule, every):
    """In one sentence, when the loss is built, before the first epoch."""
    with pytest.raises(ValueError, match="expected the schedule to be constant, add, multiply or step"):
        scheduled_weight(0.1, 0, schedule=schedule, rate=1, every=every, maximum=1)


class Growing(nnUNetTrainerNACL):
    """A tenth more every epoch."""

    nacl_schedule = "add"
    nacl_schedule_rate = 0.1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_training_uses_it(world):
    """Each epoch's start sets the weight inside deep supervision; a continued training begins with its epoch's."""
    from tests.nnunet.test_mixins import make

    trainer = make(Growing, world)
    trainer.initialize()
    term = trainer.loss.loss
    assert term.weight == pytest.approx(0.1)
    for epoch in (0, 1, 7):
        trainer.current_epoch = epoch
        trainer.on_train_epoch_start()
        assert term.weight == pytest.approx(0.1 + 0.1 * epoch)
    assert trainer._build_loss().loss.weight == pytest.approx(0.8)

"""torch.compile as nnU-Net uses it on a GPU (the network, and the Dice inside the loss), here on the CPU."""

import os
import shutil
import sysconfig
from pathlib import Path

import pytest
import torch
from torch._dynamo import OptimizedModule

from nnunet_calib.trainers import nnUNetTrainerML1ACE, nnUNetTrainerNACL, nnUNetTrainerSVLS
from tests.nnunet.training.test_compatibility import batch
from tests.nnunet.training.test_pseudo_ace import validate
from tests.worlds.made_trainers import make

HEADERS = Path(sysconfig.get_path("include")) / "Python.h"
CAN_COMPILE = HEADERS.is_file() and shutil.which(os.environ.get("CXX", "g++")) is not None

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not CAN_COMPILE, reason="torch.compile wants a C++ compiler and Python's headers"),
]
every_loss = pytest.mark.parametrize("cls", [nnUNetTrainerNACL, nnUNetTrainerSVLS, nnUNetTrainerML1ACE])


@pytest.fixture(autouse=True)
def _fresh():
    """What one test compiled does not count against the next one's limit of recompilations."""
    torch._dynamo.reset()


def compiling(cls):
    """The trainer, compiling as on a GPU with nnUNet_compile on; on a CPU nnU-Net itself never does."""
    return type(f"{cls.__name__}Compiled", (cls,), {"_do_i_compile": lambda self: True})


def loss_and_gradients(trainer) -> tuple[torch.Tensor, ...]:
    outputs, targets = batch(trainer)
    loss = trainer._build_loss()(outputs, targets)
    loss.backward()
    return loss.detach(), *(z.grad for z in outputs if z.grad is not None)


@every_loss
@pytest.mark.parametrize("world", ["labels", "regions"], indirect=True)
def test_compiled_dice(world, cls):
    """Value and gradients of the whole loss, at every resolution, are those without compiling."""
    compiled = make(compiling(cls), world)
    assert any(isinstance(module, OptimizedModule) for module in compiled._build_loss().modules())
    actual, expected = loss_and_gradients(compiled), loss_and_gradients(make(cls, world))
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-5, atol=1e-6)
    assert len(actual) == len(expected) > 1
    for ours, plain in zip(actual[1:], expected[1:], strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-6 * float(plain.abs().max()))


def test_compiled_training(world):
    """Training and validation steps of a compiled network and Dice: the losses of the same steps without compiling."""
    plain, compiled = make(nnUNetTrainerML1ACE, world), make(compiling(nnUNetTrainerML1ACE), world)
    plain.on_train_start()
    compiled.on_train_start()
    assert isinstance(compiled.network, OptimizedModule)
    compiled.network._orig_mod.load_state_dict(plain.network.state_dict())
    batches = [next(plain.dataloader_train) for _ in range(2)]
    losses = [[float(trainer.train_step(b)["loss"]) for b in batches] for trainer in (plain, compiled)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    pseudo_ace = "mean_fg_pseudo_ace"
    for trainer in (plain, compiled):
        validate(trainer, batches[0])
    assert compiled.logger.get_value(pseudo_ace, 0) == pytest.approx(plain.logger.get_value(pseudo_ace, 0), rel=1e-2)

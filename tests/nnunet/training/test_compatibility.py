"""Every trainer that nnU-Net ships with every loss: works, or refuses with a reason, as the table in the docs says."""

import importlib
import pkgutil
from importlib import metadata
from pathlib import Path

import nnunetv2.training.nnUNetTrainer
import numpy as np
import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunet_calib.trainers import (
    DSCPlusPlusMixin,
    ECPMixin,
    FocalMixin,
    LSMixin,
    MbLSMixin,
    MDCAMixin,
    ML1ACEMixin,
    NACLMixin,
    SVLSMixin,
)
from tests.worlds.made_trainers import make

PAGE = Path(__file__).parents[3] / "docs" / "compatibility.md"
# of each kind of loss, one for all trainers, and those that must do as it does where any kind does not work
KINDS = {
    NACLMixin: (ML1ACEMixin, MbLSMixin, ECPMixin, MDCAMixin),
    SVLSMixin: (LSMixin, FocalMixin),
    DSCPlusPlusMixin: (),
}

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def shipped_trainers() -> list[type]:
    """All trainer classes of the installed nnU-Net, the plain one first."""
    package = nnunetv2.training.nnUNetTrainer
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)

    def below(cls: type) -> set[type]:
        return {cls}.union(*(below(sub) for sub in cls.__subclasses__()))

    own = [
        cls
        for cls in below(nnUNetTrainer)
        # the benchmark trainers want a GPU and do not validate
        if cls.__module__.startswith("nnunetv2.") and "Benchmark" not in cls.__name__
    ]
    return sorted(own, key=lambda cls: (cls is not nnUNetTrainer, cls.__name__.lower()))


def batch(trainer) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Outputs and targets of a training step at every resolution, as the network and the data loader give them."""
    generator = torch.Generator().manual_seed(3)
    manager, patch = trainer.label_manager, np.array(trainer.configuration_manager.patch_size)
    heads, outputs, targets = manager.num_segmentation_heads, [], []
    for scale in trainer._get_deep_supervision_scales() or [np.ones(len(patch))]:
        shape = [int(n) for n in np.round(patch * np.array(scale))]
        outputs.append(torch.randn(2, heads, *shape, generator=generator).requires_grad_())
        if manager.has_regions:
            targets.append(torch.randint(0, 2, (2, heads, *shape), generator=generator).bool())
        else:
            targets.append(torch.randint(0, heads, (2, 1, *shape), generator=generator))
    return outputs, targets


def step(trainer) -> float:
    """Value of the loss of such a step, after a backward pass; asserts that the gradient is finite."""
    outputs, targets = batch(trainer)
    arguments = (outputs, targets) if trainer.enable_deep_supervision else (outputs[0], targets[0])
    loss = trainer._build_loss()(*arguments)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(outputs[0].grad).all()
    return loss.item()


def outcome(stock: type, mixin: type, world, plain: float | None) -> str:
    """What happens when a mixin is put before a stock trainer, whose own loss is given unless it fails."""
    if plain is None:
        return "nnU-Net's own fails"
    options = {"mbls_margin": 1.0} if mixin is MbLSMixin else {}  # of random logits none is 10 from the largest
    try:
        value = step(make(type("Combined", (mixin, stock), options), world))
    except TypeError as error:
        part = "Dice" if mixin is DSCPlusPlusMixin else "cross-entropy"
        reason = f"expected nnU-Net's Dice + cross-entropy loss, whose {part} is to be replaced"
        return "refuses" if reason in str(error) else f"fails: {error}"
    assert value != plain
    return "works"


def value_of(stock: type, world) -> float | None:
    """The loss of a step with a stock trainer, None if that fails."""
    try:
        return step(make(stock, world))
    except Exception:
        return None


@pytest.mark.parametrize("world", ["labels", "regions"], indirect=True)
def test_table(world):
    """The table in the docs is what happens today with the installed nnU-Net."""
    mode = world.dataset.split("_", 1)[1]
    rows = {}
    for stock in shipped_trainers():
        plain = value_of(stock, world)
        row = [outcome(stock, mixin, world, plain) for mixin in KINDS]
        rows[stock.__name__] = row
        if stock is nnUNetTrainer or set(row) != {"works"}:
            for said, others in zip(row, KINDS.values(), strict=True):
                assert [outcome(stock, mixin, world, plain) for mixin in others] == [said] * len(others), stock
    page = PAGE.read_text(encoding="utf-8")
    installed = metadata.version("nnunetv2")
    if f"nnU-Net {installed} " not in page:
        pytest.skip(f"the page is not of nnU-Net {installed}")
    usual = [name for name, row in rows.items() if set(row) == {"works"}]
    table = [f"| `{name}` | {' | '.join(row)} |" for name, row in rows.items() if name not in usual]
    said = page.split(f"<!-- {mode} -->")[1].split("<!-- end -->")[0]
    listed = [line for line in said.splitlines() if line.startswith("| `")]
    assert listed == table, "the table should be:\n" + "\n".join(table)
    assert f"the other {len(usual)}" in said

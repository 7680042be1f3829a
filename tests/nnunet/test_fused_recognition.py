"""Where nnU-Net's loss and mL1-ACE are computed at once: exactly that pair, equal to the sum, on a CPU."""

from __future__ import annotations

import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss, SoftDiceLoss
from torch import nn

from nnunet_calib.integration import loss as integration
from nnunet_calib.integration.loss import LossWithTerm, add_term, fused_options, fusible, replace_cross_entropy
from nnunet_calib.losses import ML1ACELoss, NACLLoss, SVLSLoss

IGNORE = 3


def nnunet_loss(ignore_label=None, dice_class=MemoryEfficientSoftDiceLoss, ce=None, weights=(1, 1), **dice):
    """As `nnUNetTrainer._build_loss` makes it."""
    dice = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False} | dice
    weight_ce, weight_dice = weights
    return DC_and_CE_loss(
        dice, dict(ce or {}), weight_ce=weight_ce, weight_dice=weight_dice, ignore_label=ignore_label,
        dice_class=dice_class,
    )


def batch(ignore_label=None, everything_ignored=False, shape=(9, 8, 7)):
    generator = torch.Generator().manual_seed(3)
    logits = (4 * torch.randn(2, 3, *shape, generator=generator)).requires_grad_()
    target = torch.randint(0, 3, (2, 1, *shape), generator=generator)
    if ignore_label is not None:
        target[torch.rand(target.shape, generator=generator) < (1.1 if everything_ignored else 0.3)] = ignore_label
    return logits, target.to(torch.int16)


def value_and_gradient(loss, logits, target):
    logits.grad = None
    value = loss(logits, target)
    value.backward()
    return value.detach(), logits.grad


@pytest.fixture(autouse=True)
def fuse(monkeypatch):
    """It is off unless asked for."""
    assert not LossWithTerm.fuse
    monkeypatch.setattr(LossWithTerm, "fuse", True)


@pytest.fixture
def calls(monkeypatch):
    """The calls of the fused loss."""
    made = []

    def counted(*args, **options):
        made.append(options)
        return fused_loss(*args, **options)

    fused_loss = integration.fused_loss
    monkeypatch.setattr(integration, "fused_loss", counted)
    return made


@pytest.mark.parametrize("everything_ignored", [False, True])
@pytest.mark.parametrize("ignore_label", [None, IGNORE])
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("weights", [(1, 1), (0.5, 2)])
@pytest.mark.parametrize("shape", [(9, 8, 7), (40, 30)], ids=["3d", "2d"])
def test_equal_to_the_sum(calls, ignore_label, batch_dice, weights, shape, everything_ignored):
    """Value and gradient to 1e-6 of nnU-Net's loss + weight * term."""
    term = ML1ACELoss(ignore_label=ignore_label, num_bins=10, absent_classes="keep")
    loss = add_term(nnunet_loss(ignore_label, batch_dice=batch_dice, weights=weights), term, 3.0)
    logits, target = batch(ignore_label, everything_ignored, shape)
    actual = value_and_gradient(loss, logits, target)
    assert len(calls) == 1
    loss.fuse = False
    expected = value_and_gradient(loss, logits, target)
    assert len(calls) == 1
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(actual[1], expected[1], rtol=0, atol=1e-6 * float(expected[1].abs().max()))


def test_deep_supervision(calls):
    """At each resolution; a term at the full resolution only is computed by itself."""
    loss = add_term(DeepSupervisionWrapper(nnunet_loss(), (0.7, 0.3)), ML1ACELoss(), 1.0)
    small, large = batch(shape=(6, 5)), batch(shape=(12, 10))
    outputs, targets = zip(large, small, strict=True)
    loss(list(outputs), list(targets)).backward()
    assert len(calls) == 2
    loss = add_term(DeepSupervisionWrapper(nnunet_loss(), (0.7, 0.3)), ML1ACELoss(), 1.0, every_resolution=False)
    loss(list(outputs), list(targets)).backward()
    assert len(calls) == 2


class OtherDice(MemoryEfficientSoftDiceLoss):
    """It may compute anything."""


class OtherLoss(DC_and_CE_loss):
    """The same."""


OTHERS = {
    "dice": lambda: (nnunet_loss(dice_class=SoftDiceLoss), ML1ACELoss()),
    "subclass of dice": lambda: (nnunet_loss(dice_class=OtherDice), ML1ACELoss()),
    "dice with background": lambda: (nnunet_loss(do_bg=True), ML1ACELoss()),
    "batch dice over ranks": lambda: (nnunet_loss(ddp=True, batch_dice=True), ML1ACELoss()),
    "subclass": lambda: (OtherLoss({"do_bg": False}, {}, dice_class=MemoryEfficientSoftDiceLoss), ML1ACELoss()),
    "class weights": lambda: (nnunet_loss(ce={"weight": torch.ones(3)}), ML1ACELoss()),
    "label smoothing": lambda: (nnunet_loss(ce={"label_smoothing": 0.1}), ML1ACELoss()),
    "sum": lambda: (nnunet_loss(ce={"reduction": "sum"}), ML1ACELoss()),
    "ignore index": lambda: (nnunet_loss(ce={"ignore_index": 2}), ML1ACELoss()),
    "other ignore label": lambda: (nnunet_loss(IGNORE), ML1ACELoss()),
    "soft bins": lambda: (nnunet_loss(), ML1ACELoss(binning="soft")),
    "pooled bins": lambda: (nnunet_loss(), ML1ACELoss(pool="batch")),
    "regions": lambda: (nnunet_loss(), ML1ACELoss(regions=True)),
    "other term": lambda: (nnunet_loss(), NACLLoss()),
    "not a loss of nnU-Net": lambda: (nn.CrossEntropyLoss(), ML1ACELoss()),
    "cross-entropy replaced": lambda: (replace_cross_entropy(nnunet_loss(), SVLSLoss(), 3), ML1ACELoss()),
    "cross-entropy replaced below": lambda: (replace_cross_entropy(nnunet_loss(), SVLSLoss(), 3).base, ML1ACELoss()),
}


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS.keys())
def test_others_are_not_recognised(make):
    """They keep the plain composition."""
    assert fused_options(*make()) is None
    assert fused_options(nnunet_loss(), ML1ACELoss()) is not None


def test_compiled_dice_is_left_alone():
    """nnU-Net compiles the Dice after it has built the loss."""
    base = nnunet_loss()
    base.dc = torch.compile(base.dc)
    assert fused_options(base, ML1ACELoss()) is None


def test_changes_after_the_term_was_added(calls):
    """SVLS may take the place of the cross-entropy of a loss that was fused before."""
    loss = add_term(nnunet_loss(), ML1ACELoss(), 1.0)
    loss(*batch())
    assert len(calls) == 1
    loss = replace_cross_entropy(loss, SVLSLoss(), 3)
    loss(*batch())
    assert len(calls) == 1


def test_tensors():
    """Labels on a CPU only, in single or half precision."""
    logits, target = batch()
    assert fusible(logits, target)
    assert fusible(logits.half(), target)
    assert not fusible(logits.double(), target)
    assert not fusible(logits, target[:, 0])
    assert not fusible(logits, target.expand_as(logits))
    assert not fusible(logits[:, :1], target)
    assert not fusible(logits.to("meta"), target.to("meta"))


def test_weight_zero(calls):
    """nnU-Net's loss to the last bit."""
    loss = add_term(nnunet_loss(), ML1ACELoss(), 0.0)
    assert torch.equal(loss(*batch()), nnunet_loss()(*batch()))
    assert calls == []

"""The comparators inside nnU-Net's own loss: each in its place, with nnU-Net's scales, at every resolution."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import nn

from nnunet_calib.nnunet.training.loss_terms import LossWithTerm, NoDice, NoTerm, add_term, replace_dice
from nnunet_calib.trainers import DSCPlusPlusMixin, ECPMixin, FocalMixin, LSMixin, MbLSMixin, MDCAMixin
from tests.nnunet.training.test_loss_terms import (
    HEADS,
    MODES,
    NaNTerm,
    assert_same,
    every_mode,
    nnunet_loss,
    value_and_gradients,
)
from tests.nnunet.training.test_promised_terms import ARGUMENTS, Base
from tests.worlds.joined_losses import plainly

# mixin -> what stands where a part of nnU-Net's loss was
IN_THE_PLACE = {
    LSMixin: {NoTerm},
    MbLSMixin: set(),
    FocalMixin: {NoTerm},
    ECPMixin: set(),
    DSCPlusPlusMixin: {NoDice},
    MDCAMixin: set(),
}


def loss_of(mixin, mode, base=None, **attributes):
    """What a trainer builds for a label mode from nnU-Net's loss, with deep supervision and batch Dice."""
    labels = SimpleNamespace(
        has_regions=mode["regions"], ignore_label=mode["ignore_label"], num_segmentation_heads=HEADS
    )
    stock = type(
        "Stock", (Base,), {"_build_loss": lambda self: base or nnunet_loss(mode, deep=True), "label_manager": labels}
    )
    return type("MyTrainer", (mixin, stock), attributes)(**ARGUMENTS, device=torch.device("cpu"))._build_loss()


@every_mode
@pytest.mark.parametrize("mixin", IN_THE_PLACE)
def test_place_and_sum(mixin, mode, monkeypatch):
    """The term is at every resolution, the part that it replaces is gone, and all is computed at once."""
    options = {"mbls_margin": 1.0} if mixin is MbLSMixin else {}  # of these logits none is 10 from the largest
    loss = loss_of(mixin, mode, **options)
    assert {type(part) for part in loss.modules()} & {NoTerm, NoDice} == IN_THE_PLACE[mixin]
    (added,) = (part for part in loss.modules() if isinstance(part, LossWithTerm))
    assert type(added.term) is mixin.promised_terms[0]
    expected = plainly(value_and_gradients, loss, mode, True)
    monkeypatch.setattr(type(added.base), "forward", NaNTerm.forward)  # by which nnU-Net's own would be noticed
    assert_same(value_and_gradients(loss, mode, True), expected, atol=2e-6)


@every_mode
def test_scale_of_the_cross_entropy(mode):
    """Without smoothing and without a power, it is nnU-Net's own loss, value and gradient."""
    expected = value_and_gradients(nnunet_loss(mode, deep=True), mode, True)
    for loss in (loss_of(LSMixin, mode, ls_alpha=0.0), loss_of(FocalMixin, mode, focal_gamma=0.0)):
        assert_same(value_and_gradients(loss, mode, True), expected, atol=2e-6)


@every_mode
@pytest.mark.parametrize("changed", [{}, {"batch_dice": False, "smooth": 1.0}, {"do_bg": True}], ids=str)
def test_dice_with_a_power_of_one(mode, changed):
    """It is nnU-Net's Dice + 1, by image or batch, with its smoothing and its background; so are the gradients."""

    def stock(weight_dice):
        loss = nnunet_loss(mode, deep=True, weight_dice=weight_dice)
        for name, value in changed.items():
            setattr(loss.loss.dc, name, value)
        return loss

    value, gradients = value_and_gradients(stock(2.0), mode, True)
    loss = loss_of(DSCPlusPlusMixin, mode, stock(2.0), dsc_plus_plus_gamma=1.0)
    assert_same(value_and_gradients(loss, mode, True), (value + 2.0, gradients), atol=2e-6)


def test_other_losses():
    """Below an added term the Dice is found; a compiled one tells its settings; a loss without one is refused."""
    base = nnunet_loss(MODES["labels"], deep=True)
    base.loss.dc = torch.compile(base.loss.dc)
    given = []
    replace_dice(add_term(base, nn.Identity(), 0.5), lambda **options: given.append(options) or nn.Identity())
    assert given == [{"smooth": 1e-5, "background": False, "pool": "batch"}]
    with pytest.raises(
        TypeError, match=r"whose Dice is to be replaced, got MemoryEfficientSoftDiceLoss: use a trainer"
    ):
        replace_dice(MemoryEfficientSoftDiceLoss(), nn.Identity)

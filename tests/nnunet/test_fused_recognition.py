"""Where nnU-Net's loss and a term are computed at once: exactly that loss, on a CPU."""

from __future__ import annotations

import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss, SoftDiceLoss
from torch import nn

from nnunet_calib.integration.loss import add_term, fused_options, fusible, replace_cross_entropy
from nnunet_calib.losses import ML1ACELoss, NACLLoss, SVLSLoss
from tests.nnunet.fused import (
    IGNORE,
    assert_same,
    batch,
    called_by_themselves,
    nnunet_loss,
    plainly,
    value_and_gradient,
    with_svls,
    without_ce,
)


class OtherDice(MemoryEfficientSoftDiceLoss):
    """It may compute anything."""


class OtherLoss(DC_and_CE_loss):
    """The same."""


OTHERS = {
    "dice": lambda: nnunet_loss(dice_class=SoftDiceLoss),
    "subclass of dice": lambda: nnunet_loss(dice_class=OtherDice),
    "dice with background": lambda: nnunet_loss(do_bg=True),
    "batch dice over ranks": lambda: nnunet_loss(ddp=True, batch_dice=True),
    "subclass": lambda: OtherLoss({"do_bg": False}, {}, dice_class=MemoryEfficientSoftDiceLoss),
    "class weights": lambda: nnunet_loss(ce={"weight": torch.ones(3)}),
    "label smoothing": lambda: nnunet_loss(ce={"label_smoothing": 0.1}),
    "sum": lambda: nnunet_loss(ce={"reduction": "sum"}),
    "ignore index": lambda: nnunet_loss(ce={"ignore_index": 2}),
    "not a loss of nnU-Net": nn.Identity,
    "a term": lambda: with_svls(nnunet_loss(), None),
    "deep supervision": lambda: DeepSupervisionWrapper(nnunet_loss(), (0.7, 0.3)),
}


def test_recognition():
    """nnU-Net's own loss, with an ignore label, without the cross-entropy, and with DDP where images stay apart."""
    options = {"weight_ce": 1, "weight_dice": 1, "batch_dice": False, "smooth": 1e-5, "ignore_label": None}
    assert fused_options(nnunet_loss()) == options
    assert fused_options(nnunet_loss(ddp=True)) == options
    assert fused_options(nnunet_loss(IGNORE, weights=(2, 3), batch_dice=True, smooth=1.0)) == {
        "weight_ce": 2, "weight_dice": 3, "batch_dice": True, "smooth": 1.0, "ignore_label": IGNORE,
    }
    dice = without_ce(nnunet_loss())
    dice.weight_ce = 1  # of a zero
    assert fused_options(dice) == options | {"weight_ce": 0}


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS.keys())
def test_others_are_not_recognised(make):
    """Whatever differs in one setting is another loss."""
    assert fused_options(make()) is None


@pytest.mark.parametrize("name", OTHERS.keys() - {"batch dice over ranks", "not a loss of nnU-Net", "deep supervision"})
def test_others_keep_the_plain_sum(calls, name):
    """To the last bit."""
    base, term, (logits, target) = OTHERS[name](), ML1ACELoss(), batch()
    value = add_term(base, term, 0.5)(logits, target)
    assert len(calls) == (name == "a term")  # SVLS below is fused with what is below it
    assert torch.equal(value, base(logits, target) + 0.5 * term(logits, target))


def test_compiled_dice_is_left_alone():
    """nnU-Net compiles the Dice after it has built the loss."""
    base = nnunet_loss()
    base.dc = torch.compile(base.dc)
    assert fused_options(base) is None


TERMS_WITH_OTHER_LABELS = [ML1ACELoss(ignore_label=2), SVLSLoss(ignore_label=2), NACLLoss(ignore_label=2)]


@pytest.mark.parametrize("put", [lambda b, t: add_term(b, t, 1.0), replace_cross_entropy], ids=["add", "replace"])
@pytest.mark.parametrize("term", TERMS_WITH_OTHER_LABELS, ids=lambda t: type(t).__name__)
def test_term_with_another_ignore_label(term, put):
    """It keeps its own and is computed by itself."""
    loss = put(nnunet_loss(), term)
    expected = plainly(value_and_gradient, loss, *batch())
    by_themselves = called_by_themselves(loss)
    assert_same(value_and_gradient(loss, *batch()), expected)
    assert by_themselves == [type(term).__name__]


@pytest.mark.parametrize(
    ("options", "text"),
    [({"regions": True}, r"expected logits .*\(regions=True"), ({"ignore_label": None}, "expected labels from 0 to 2")],
)
@pytest.mark.parametrize("term", [ML1ACELoss, SVLSLoss, NACLLoss])
@pytest.mark.parametrize("put", [lambda b, t: add_term(b, t, 1.0), replace_cross_entropy], ids=["add", "replace"])
def test_term_that_does_not_fit(term, put, options, text):
    """Its own error is raised, as in the plain sum."""
    loss = put(nnunet_loss(IGNORE), term(**({"ignore_label": IGNORE} | options)))
    for call in (loss, lambda *tensors: plainly(loss, *tensors)):
        with pytest.raises(ValueError, match=text):
            call(*batch(IGNORE))


CHANGES = {
    "weight of the term": lambda loss, base, term: setattr(loss, "weight", 7.0),
    "weight of the CE": lambda loss, base, term: setattr(base, "weight_ce", 5),
    "weight of the Dice": lambda loss, base, term: setattr(base, "weight_dice", 5),
    "batch Dice": lambda loss, base, term: setattr(base.dc, "batch_dice", True),
    "smooth": lambda loss, base, term: setattr(base.dc, "smooth", 100.0),
    "bins": lambda loss, base, term: term.options.update(num_bins=3),
    "binning": lambda loss, base, term: term.options.update(binning="soft"),
    "no CE": lambda loss, base, term: replace_cross_entropy(loss, None),
    "SVLS": lambda loss, base, term: replace_cross_entropy(loss, SVLSLoss()),
    "label smoothing": lambda loss, base, term: setattr(base.ce, "label_smoothing", 0.3),
    "background": lambda loss, base, term: setattr(base.dc, "do_bg", True),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_changes_after_the_term_was_added(change):
    """A mixin or a trainer may change what was fused before."""
    base, term, tensors = nnunet_loss(), ML1ACELoss(), batch()
    loss = add_term(base, term, 1.0)
    before = value_and_gradient(loss, *tensors)
    change(loss, base, term)
    actual = value_and_gradient(loss, *tensors)
    assert abs(actual[0] - before[0]) > 1e-4
    assert_same(actual, plainly(value_and_gradient, loss, *tensors))


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
    assert not fusible(logits, target.to("meta"))
    assert not fusible(logits[..., 0, 0, 0], target[..., 0, 0, 0])


@pytest.mark.parametrize("term", [ML1ACELoss, NACLLoss, SVLSLoss])
def test_weight_zero(calls, term):
    """nnU-Net's loss to the last bit."""
    loss = add_term(nnunet_loss(), term(), 0.0)
    assert torch.equal(loss(*batch()), nnunet_loss()(*batch()))
    loss = replace_cross_entropy(nnunet_loss(weights=(0, 1)), term())
    assert torch.equal(loss(*batch()), nnunet_loss(weights=(0, 1))(*batch()))
    assert calls == []

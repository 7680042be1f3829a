"""Where nnU-Net's loss and a term are computed at once: exactly that loss, on a CPU."""

from __future__ import annotations

import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss, SoftDiceLoss
from torch import nn

from nnunet_calib.losses import ML1ACELoss, NACLLoss, SVLSLoss
from nnunet_calib.losses.joined import DiceCE
from nnunet_calib.nnunet.training.loss_terms import add_term, describe, joinable, replace_cross_entropy
from tests.worlds.joined_losses import (
    IGNORE,
    assert_same,
    batch,
    called_by_themselves,
    nnunet_loss,
    nnunet_region_loss,
    plainly,
    value_and_gradient,
    with_svls,
    without_ce,
)

pytestmark = pytest.mark.pairs


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
    "regions, dice": lambda: nnunet_region_loss(dice_class=SoftDiceLoss),
    "regions without the first": lambda: nnunet_region_loss(do_bg=False),
    "regions, batch dice over ranks": lambda: nnunet_region_loss(ddp=True, batch_dice=True),
    "regions, class weights": lambda: nnunet_region_loss(ce={"pos_weight": torch.ones(3, 1, 1, 1)}),
    "regions, sum": lambda: nnunet_region_loss(ce={"reduction": "sum"}),
    "not a loss of nnU-Net": nn.Identity,
    "a term": lambda: with_svls(nnunet_loss(), None),
    "deep supervision": lambda: DeepSupervisionWrapper(nnunet_loss(), (0.7, 0.3)),
}


def test_recognition():
    """nnU-Net's own loss, with an ignore label, without the cross-entropy, and with DDP where images stay apart."""
    assert describe(nnunet_loss(), 3) == DiceCE()
    assert describe(nnunet_loss(ddp=True), 3) == DiceCE()
    described = describe(nnunet_loss(IGNORE, weights=(2, 3), batch_dice=True, smooth=1.0), 3)
    assert described == DiceCE(2, 3, batch_dice=True, smooth=1.0, ignore_label=IGNORE)
    dice = without_ce(nnunet_loss())
    dice.weight_ce = 1  # of a zero
    assert describe(dice, 3) == DiceCE(weight_ce=0)


def test_recognition_of_regions():
    """The same for regions; with an ignore label nnU-Net's binary cross-entropy is a sum over the heads."""
    assert describe(nnunet_region_loss(), 3) == DiceCE(regions=True)
    described = describe(nnunet_region_loss(ignore=True, weights=(2, 3), batch_dice=True), 4)
    assert described == DiceCE(8, 3, batch_dice=True, regions=True, ignore_label=-1)
    assert describe(without_ce(nnunet_region_loss(ignore=True)), 4) == DiceCE(0, regions=True, ignore_label=-1)


@pytest.mark.parametrize("make", OTHERS.values(), ids=OTHERS.keys())
def test_others_are_not_recognised(make):
    """Whatever differs in one setting is another loss."""
    assert describe(make(), 3) is None


NOT_FOR_ONE_OUTPUT_OF_LABELS = {"batch dice over ranks", "not a loss of nnU-Net", "deep supervision"}


@pytest.mark.parametrize("name", sorted(n for n in OTHERS.keys() - NOT_FOR_ONE_OUTPUT_OF_LABELS if "regions" not in n))
def test_others_keep_the_plain_sum(calls, name):
    """To the last bit."""
    base, term, (logits, target) = OTHERS[name](), ML1ACELoss(), batch()
    value = add_term(base, term, 0.5)(logits, target)
    assert len(calls) == (name == "a term")  # SVLS below is fused with what is below it
    assert torch.equal(value, base(logits, target) + 0.5 * term(logits, target))


@pytest.mark.parametrize("make", [nnunet_loss, nnunet_region_loss])
def test_compiled_dice(make):
    """nnU-Net compiles the Dice after it has built the loss; it is recognised all the same."""
    base = make()
    expected = describe(base, 3)
    base.dc = torch.compile(base.dc)
    assert expected is not None
    assert describe(base, 3) == expected


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
    """In single or half precision, on one device, of shapes that belong together."""
    logits, target = batch()
    labels, regions, ignoring = DiceCE(), DiceCE(regions=True), DiceCE(regions=True, ignore_label=-1)
    assert joinable(logits, target, labels)
    assert joinable(logits.half(), target, labels)
    assert joinable(logits, target.expand_as(logits), regions)
    assert joinable(logits[:, :2], target.expand_as(logits), ignoring)
    assert not joinable(logits.double(), target, labels)
    assert not joinable(logits, target[:, 0], labels)
    assert not joinable(logits, target.expand_as(logits), labels)
    assert not joinable(logits[:, :1], target, labels)
    assert not joinable(logits, target.to("meta"), labels)
    assert not joinable(logits[..., 0, 0, 0], target[..., 0, 0, 0], labels)
    assert not joinable(logits, target, regions)
    assert not joinable(logits, target.expand_as(logits), ignoring)
    assert not joinable(logits[:0], target[:0], labels)


@pytest.mark.parametrize("term", [ML1ACELoss, NACLLoss, SVLSLoss])
def test_weight_zero(calls, term):
    """nnU-Net's loss to the last bit."""
    loss = add_term(nnunet_loss(), term(), 0.0)
    assert torch.equal(loss(*batch()), nnunet_loss()(*batch()))
    loss = replace_cross_entropy(nnunet_loss(weights=(0, 1)), term())
    assert torch.equal(loss(*batch()), nnunet_loss(weights=(0, 1))(*batch()))
    assert calls == []

"""Terms inside nnU-Net's own losses: the sum is right at every resolution, and what was not asked for stays."""

import numpy as np
import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss, DC_and_topk_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import nn

from nnunet_calib.losses import ML1ACELoss, NACLLoss, SVLSLoss
from nnunet_calib.nnunet.training.loss_terms import NoTerm, add_term, replace_cross_entropy

pytestmark = pytest.mark.pairs

HEADS, IGNORE = 3, 3
SIZES = (8, 4, 2)
WEIGHTS = np.array([1, 0.5, 0]) / 1.5  # nnU-Net's: halved at each resolution, none for the lowest
MODES = {
    "labels": {"regions": False, "ignore_label": None},
    "ignore": {"regions": False, "ignore_label": IGNORE},
    "regions": {"regions": True, "ignore_label": None},
    "regions_ignore": {"regions": True, "ignore_label": IGNORE},
}

every_mode = pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
with_and_without = pytest.mark.parametrize("deep", [True, False], ids=["deep_supervision", "single"])


def compound(mode, weight_ce=1.0, weight_dice=1.0):
    """Dice + (B)CE as `nnUNetTrainer._build_loss` makes it."""
    dice = {"batch_dice": True, "smooth": 1e-5, "do_bg": mode["regions"], "ddp": False}
    common = {"weight_ce": weight_ce, "weight_dice": weight_dice, "dice_class": MemoryEfficientSoftDiceLoss}
    if mode["regions"]:
        return DC_and_BCE_loss({}, dice, use_ignore_label=mode["ignore_label"] is not None, **common)
    return DC_and_CE_loss(dice, {}, ignore_label=mode["ignore_label"], **common)


def nnunet_loss(mode, deep, **weights):
    loss = compound(mode, **weights)
    return DeepSupervisionWrapper(loss, WEIGHTS) if deep else loss


def batch(mode, deep, everything_ignored=False):
    """Logits that want gradients, and targets in nnU-Net's types: int16 labels, or bool maps with the mask last."""
    generator = torch.Generator().manual_seed(1)
    outputs, targets = [], []
    for size in SIZES:
        outputs.append((2 * torch.randn(2, HEADS, size, size, generator=generator)).requires_grad_())
        ignored = torch.rand(2, 1, size, size, generator=generator) < (1.1 if everything_ignored else 0.3)
        if mode["regions"]:
            target = torch.rand(2, HEADS, size, size, generator=generator) < 0.4
            target = target if mode["ignore_label"] is None else torch.cat([target, ignored], 1)
        else:
            target = torch.randint(0, HEADS, (2, 1, size, size), generator=generator).to(torch.int16)
            target = target if mode["ignore_label"] is None else target.masked_fill(ignored, IGNORE)
        targets.append(target)
    return (outputs, targets) if deep else (outputs[0], targets[0])


def value_and_gradients(loss, mode, deep, **options):
    outputs, targets = batch(mode, deep, **options)
    value = loss(outputs, targets)
    value.backward()
    gradients = [o.grad for o in (outputs if deep else [outputs])]
    return value.detach(), [torch.zeros(()) if g is None else g for g in gradients]


def assert_same(actual, expected, atol):
    assert any(g.any() for g in expected[1])
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


class NaNTerm(nn.Module):
    """What multiplying by 0 would not remove."""

    def forward(self, net_output, target):
        """NaN."""
        return net_output.sum() * torch.nan


@every_mode
@with_and_without
@pytest.mark.parametrize("every_resolution", [True, False])
def test_sum(mode, deep, every_resolution):
    """The base + weight * term, at each resolution with nnU-Net's weights or once at the full one."""
    term = NACLLoss(**mode)
    loss = add_term(nnunet_loss(mode, deep), term, 0.3, every_resolution=every_resolution)
    outputs, targets = batch(mode, deep)
    if deep:
        pairs = list(zip(WEIGHTS, outputs, targets, strict=True))
        expected = sum(w * compound(mode)(z, t) for w, z, t in pairs)
        terms = [w * term(z, t) for w, z, t in pairs]
        expected += 0.3 * (sum(terms) if every_resolution else term(outputs[0], targets[0]))
    else:
        expected = compound(mode)(outputs, targets) + 0.3 * term(outputs, targets)
    torch.testing.assert_close(loss(outputs, targets), expected.to(torch.float32), rtol=1e-6, atol=0)


@every_mode
@with_and_without
@pytest.mark.parametrize("every_resolution", [True, False])
def test_weight_zero(mode, deep, every_resolution):
    """The base to the last bit, even where the term is NaN."""
    loss = add_term(nnunet_loss(mode, deep), NaNTerm(), 0, every_resolution=every_resolution)
    actual, expected = (value_and_gradients(x, mode, deep) for x in (loss, nnunet_loss(mode, deep)))
    assert_same(actual, expected, atol=0)


@every_mode
@with_and_without
@pytest.mark.parametrize("weights", [{}, {"weight_ce": 0.5, "weight_dice": 2.0}], ids=["equal", "weighted"])
def test_replacement_has_the_scale_of_the_cross_entropy(mode, deep, weights):
    """Without neighbours SVLS is the cross-entropy, so that the loss must be nnU-Net's own, value and gradient."""
    term = SVLSLoss(kernel_size=1, **mode)
    loss = replace_cross_entropy(nnunet_loss(mode, deep, **weights), term, HEADS)
    actual, expected = (value_and_gradients(x, mode, deep) for x in (loss, nnunet_loss(mode, deep, **weights)))
    assert_same(actual, expected, atol=1e-6)


@every_mode
@with_and_without
@pytest.mark.parametrize("every_resolution", [True, False])
def test_replacement_under_an_added_term(mode, deep, every_resolution):
    """`class X(SVLSMixin, NACLMixin, ...)` replaces after the term was added; the term stays."""

    def with_term():
        return add_term(nnunet_loss(mode, deep), NACLLoss(**mode), 0.1, every_resolution=every_resolution)

    loss = replace_cross_entropy(with_term(), SVLSLoss(kernel_size=1, **mode), HEADS)
    assert_same(*(value_and_gradients(x, mode, deep) for x in (loss, with_term())), atol=1e-6)


@every_mode
@with_and_without
def test_dice_is_unchanged(mode, deep):
    """With nothing in the place of the cross-entropy, the Dice term is left, with its weight."""
    dice_alone = value_and_gradients(nnunet_loss(mode, deep, weight_ce=0, weight_dice=2.0), mode, deep)
    loss = replace_cross_entropy(nnunet_loss(mode, deep, weight_dice=2.0), None, HEADS)
    assert_same(value_and_gradients(loss, mode, deep), dice_alone, atol=0)
    loss = replace_cross_entropy(nnunet_loss(mode, deep, weight_dice=2.0), NoTerm(), HEADS)
    assert_same(value_and_gradients(loss, mode, deep), dice_alone, atol=1e-6)


@pytest.mark.parametrize("mode", [MODES["ignore"], MODES["regions_ignore"]], ids=["ignore", "regions_ignore"])
@with_and_without
@pytest.mark.parametrize("term", [NACLLoss, SVLSLoss, ML1ACELoss])
def test_everything_ignored(mode, deep, term):
    """A batch without an annotated voxel gives nnU-Net's own loss, finite, with finite gradients."""
    loss = nnunet_loss(mode, deep)
    loss = replace_cross_entropy(loss, term(**mode), HEADS) if term is SVLSLoss else add_term(loss, term(**mode), 1)
    value, gradients = value_and_gradients(loss, mode, deep, everything_ignored=True)
    expected, _ = value_and_gradients(nnunet_loss(mode, deep), mode, deep, everything_ignored=True)
    assert torch.equal(value, expected)
    assert all(g.isfinite().all() for g in gradients)


@pytest.mark.filterwarnings("ignore:size_average and reduce:UserWarning")  # nnU-Net's TopKLoss
@with_and_without
@pytest.mark.parametrize("added", [True, False])
def test_other_losses_are_refused(deep, added):
    """Top-k cross-entropy is not what SVLS replaces; the sentence names the loss and the way out."""
    loss = DC_and_topk_loss({"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}, {"k": 10})
    loss = DeepSupervisionWrapper(loss, WEIGHTS) if deep else loss
    loss = add_term(loss, NACLLoss(), 0.1) if added else loss
    text = r"cross-entropy loss.*got DC_and_topk_loss: use a trainer that keeps nnU-Net's own loss, or another"
    with pytest.raises(TypeError, match=text):
        replace_cross_entropy(loss, SVLSLoss(), HEADS)


@with_and_without
def test_negative_weight(deep):
    """A negative weight would reward miscalibration."""
    with pytest.raises(ValueError, match=r"weight of a calibration loss to be at least 0, got -0\.1"):
        add_term(nnunet_loss(MODES["labels"], deep), NACLLoss(), -0.1)

"""nnU-Net's loss and a term computed at once: equal to the sum."""

from __future__ import annotations

import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper

from nnunet_calib.losses import ML1ACELoss, NACLLoss, SVLSLoss
from nnunet_calib.losses.module import FunctionalLoss
from nnunet_calib.nnunet.training import loss_terms as integration
from nnunet_calib.nnunet.training.loss_terms import LossWithTerm, add_term
from tests.worlds.joined_losses import (
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

pytestmark = pytest.mark.pairs

# name: (loss from nnU-Net's and its ignore label, the terms that are computed by themselves)
COMBINATIONS = {
    "mL1-ACE": (lambda b, i: add_term(b, ML1ACELoss(ignore_label=i, num_bins=10, absent_classes="keep"), 3.0), []),
    "MCE": (lambda b, i: add_term(b, ML1ACELoss(ignore_label=i, reduction="mce"), 0.5), []),
    "SVLS": (with_svls, []),
    "SVLS, wide": (lambda b, i: with_svls(b, i, kernel_size=5, sigma=3.0), []),
    "SVLS and CE": (lambda b, i: add_term(b, SVLSLoss(ignore_label=i), 0.5), []),
    "NACL": (lambda b, i: add_term(b, NACLLoss(ignore_label=i), 0.1), []),
    "NACL, Gaussian": (
        lambda b, i: add_term(b, NACLLoss(5, prior="gaussian", penalty="l2", sigma=2.0, ignore_label=i), 0.1),
        [],
    ),
    "NACL, median": (lambda b, i: add_term(b, NACLLoss(prior="median", ignore_label=i), 0.1), ["NACLLoss"]),
    "NACL, probabilities": (lambda b, i: add_term(b, NACLLoss(on="probabilities", ignore_label=i), 1.0), ["NACLLoss"]),
    "soft mL1-ACE": (lambda b, i: add_term(b, ML1ACELoss(ignore_label=i, binning="soft"), 1.0), []),
    "pooled mL1-ACE": (lambda b, i: add_term(b, ML1ACELoss(ignore_label=i, pool="batch"), 1.0), []),
    "NACL + mL1-ACE": (
        lambda b, i: add_term(add_term(b, NACLLoss(ignore_label=i), 0.1), ML1ACELoss(ignore_label=i), 1.0),
        [],
    ),
    "mL1-ACE + NACL": (
        lambda b, i: add_term(add_term(b, ML1ACELoss(ignore_label=i), 1.0), NACLLoss(ignore_label=i), 0.1),
        [],
    ),
    "SVLS + mL1-ACE": (lambda b, i: add_term(with_svls(b, i), ML1ACELoss(ignore_label=i), 1.0), []),
    "Dice + mL1-ACE": (lambda b, i: add_term(without_ce(b), ML1ACELoss(ignore_label=i), 1.0), []),
    "Dice + NACL": (lambda b, i: add_term(without_ce(b), NACLLoss(ignore_label=i), 0.1), []),
}
every_combination = pytest.mark.parametrize("name", COMBINATIONS)
IGNORING = {"labels": (None, False), "ignore": (IGNORE, False), "everything ignored": (IGNORE, True)}


@pytest.mark.parametrize(("ignore_label", "everything_ignored"), IGNORING.values(), ids=IGNORING.keys())
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("weights", [(1, 1), (0.5, 2)])
@pytest.mark.parametrize("shape", [(9, 8, 7), (40, 30)], ids=["3d", "2d"])
@every_combination
def test_equal_to_the_sum(calls, name, ignore_label, batch_dice, weights, shape, everything_ignored):
    """Value and gradient to 1e-6 of nnU-Net's loss + weight * term; nnU-Net's loss itself is not called."""
    make, terms = COMBINATIONS[name]
    loss = make(nnunet_loss(ignore_label, batch_dice=batch_dice, weights=weights), ignore_label)
    tensors = batch(ignore_label, everything_ignored, shape)
    expected = plainly(value_and_gradient, loss, *tensors)
    by_themselves = called_by_themselves(loss)
    actual = value_and_gradient(loss, *tensors)
    assert by_themselves == terms
    assert len(calls) == 1
    assert_same(actual, expected)


@every_combination
def test_plain_sum(name):
    """What the others are compared with calls every loss once."""
    loss = COMBINATIONS[name][0](nnunet_loss(), None)
    by_themselves = called_by_themselves(loss)
    plainly(value_and_gradient, loss, *batch())
    assert sorted(by_themselves) == sorted(
        type(x).__name__ for x in loss.modules() if isinstance(x, DC_and_CE_loss | FunctionalLoss)
    )


@every_combination
def test_deep_supervision(calls, name):
    """At each resolution, with nnU-Net's weights."""
    loss = COMBINATIONS[name][0](DeepSupervisionWrapper(nnunet_loss(), (0.7, 0.3)), None)
    outputs, targets = zip(batch(shape=(12, 10)), batch(shape=(6, 5)), strict=True)

    def value_and_gradients():
        leaves = [z.detach().requires_grad_() for z in outputs]
        value = loss(leaves, list(targets))
        value.backward()
        return value.detach(), torch.cat([z.grad.flatten() for z in leaves])

    expected = plainly(value_and_gradients)
    assert not calls
    assert_same(value_and_gradients(), expected)
    assert len(calls) == 2


@pytest.mark.parametrize(("svls", "times"), [(False, 0), (True, 2)])
def test_term_at_the_full_resolution_only(calls, svls, times):
    """It is computed by itself; what lies below it, in deep supervision, is fused as ever."""
    base = DeepSupervisionWrapper(nnunet_loss(), (0.7, 0.3))
    base = with_svls(base, None) if svls else base
    loss = add_term(base, ML1ACELoss(), 1.0, every_resolution=False)
    outputs, targets = (list(x) for x in zip(batch(shape=(12, 10)), batch(shape=(6, 5)), strict=True))
    value = loss(outputs, targets)
    assert len(calls) == times
    torch.testing.assert_close(value, plainly(loss, outputs, targets), rtol=1e-6, atol=1e-6)


@every_combination
def test_double_precision(monkeypatch, calls, name):
    """The plain sum to the last bit."""
    loss, (logits, target) = COMBINATIONS[name][0](nnunet_loss(), None), batch()
    actual = value_and_gradient(loss, logits.double(), target)
    assert not calls
    monkeypatch.setattr(integration, "describe", lambda *_: None)
    assert all(map(torch.equal, actual, value_and_gradient(loss, logits.double(), target)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@every_combination
def test_half_precision(calls, name, dtype):
    """Computed in float32, and the gradient rounded once; for two terms once each."""
    loss, (logits, target) = COMBINATIONS[name][0](nnunet_loss(), None), batch()
    logits = logits.to(dtype)
    value, gradient = value_and_gradient(loss, logits, target)
    assert len(calls) == 1
    assert (value.dtype, gradient.dtype) == (torch.float32, dtype)
    expected = plainly(value_and_gradient, loss, logits.float(), target)
    torch.testing.assert_close(value, expected[0], rtol=1e-6, atol=1e-6)
    eps, of_terms = torch.finfo(dtype).eps, float(expected[1].abs().max())
    atol = eps * of_terms if isinstance(loss.base, LossWithTerm) else 1e-7
    torch.testing.assert_close(gradient.float(), expected[1], rtol=eps, atol=atol)


@every_combination
def test_validation(calls, name):
    """Logits that want no gradient, and gradients that are turned off."""
    loss, (logits, target) = COMBINATIONS[name][0](nnunet_loss(IGNORE), IGNORE), batch(IGNORE)
    expected = plainly(loss, logits, target).detach()
    values = [loss(logits.detach(), target)]
    with torch.no_grad():
        values.append(loss(logits, target))
    assert len(calls) == 2
    for value in values:
        assert not value.requires_grad
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("ignore_label", [None, IGNORE])
@every_combination
def test_graph_used_twice(name, ignore_label):
    """A retained graph gives the same gradient again, one loss may be used in two places, and inputs stay."""
    loss, (plain, target) = COMBINATIONS[name][0](nnunet_loss(ignore_label), ignore_label), batch(ignore_label)
    logits, labels = plain.detach().clone().requires_grad_(), target.clone()
    value = loss(logits, labels)
    value.backward(retain_graph=True)
    once = logits.grad.clone()
    (value + 2 * value).backward()
    torch.testing.assert_close(logits.grad, 4 * once, rtol=0, atol=4e-6 * float(once.abs().max()))
    assert torch.equal(logits, plain)
    assert torch.equal(labels, target)


@every_combination
def test_other_users_of_the_logits(name):
    """Their gradient is added, and what they get stays as it is."""
    loss, (plain, target) = COMBINATIONS[name][0](nnunet_loss(), None), batch()
    expected = value_and_gradient(loss, plain, target)[1]
    parameter, weights = plain.detach().clone().requires_grad_(), torch.linspace(-1, 1, plain.numel()).view(plain.shape)
    logits = 1.0 * parameter
    logits.retain_grad()
    (loss(logits, target) + (weights * logits).sum() + (weights * parameter).sum()).backward()
    tolerance = {"rtol": 0, "atol": 1e-6}
    torch.testing.assert_close(logits.grad, expected + weights, **tolerance)
    torch.testing.assert_close(parameter.grad, expected + 2 * weights, **tolerance)

"""nnU-Net's loss for regions and a term computed at once: equal to the sum."""

from __future__ import annotations

import pytest
import torch
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

from nnunet_calib.losses import ML1ACELoss, NACLLoss, SVLSLoss
from nnunet_calib.nnunet.training.loss_terms import LossWithTerm, add_term, replace_cross_entropy
from tests.worlds.joined_losses import (
    assert_same,
    called_by_themselves,
    nnunet_region_loss,
    plainly,
    region_batch,
    value_and_gradient,
    without_ce,
)

pytestmark = pytest.mark.pairs


def with_svls(base, **mode):
    return replace_cross_entropy(base, SVLSLoss(**mode), 3)


# name: (loss from nnU-Net's and the label mode, the terms that are computed by themselves)
COMBINATIONS = {
    "mL1-ACE": (lambda b, m: add_term(b, ML1ACELoss(num_bins=10, absent_classes="keep", **m), 3.0), []),
    "soft mL1-ACE": (lambda b, m: add_term(b, ML1ACELoss(binning="soft", **m), 1.0), []),
    "pooled MCE": (lambda b, m: add_term(b, ML1ACELoss(reduction="mce", pool="batch", **m), 1.0), []),
    "NACL": (lambda b, m: add_term(b, NACLLoss(**m), 0.1), []),
    "NACL, Gaussian": (lambda b, m: add_term(b, NACLLoss(5, prior="gaussian", penalty="l2", sigma=2.0, **m), 0.1), []),
    "NACL, median": (lambda b, m: add_term(b, NACLLoss(prior="median", **m), 0.1), ["NACLLoss"]),
    "SVLS": (lambda b, m: with_svls(b, **m), []),
    "NACL + mL1-ACE": (lambda b, m: add_term(add_term(b, NACLLoss(**m), 0.1), ML1ACELoss(**m), 1.0), []),
    "Dice + mL1-ACE": (lambda b, m: add_term(without_ce(b), ML1ACELoss(**m), 1.0), []),
}
every_combination = pytest.mark.parametrize("name", COMBINATIONS)
IGNORING = {"regions": (False, False), "ignore": (True, False), "everything ignored": (True, True)}


def mode(ignore):
    return {"regions": True, "ignore_label": 3 if ignore else None}


@pytest.mark.parametrize(("ignore", "everything_ignored"), IGNORING.values(), ids=IGNORING.keys())
@pytest.mark.parametrize(("batch_dice", "weights"), [(False, (1, 1)), (True, (0.5, 2))])
@pytest.mark.parametrize("shape", [(9, 8, 7), (40, 30)], ids=["3d", "2d"])
@every_combination
def test_equal_to_the_sum(calls, name, ignore, batch_dice, weights, shape, everything_ignored):
    """Value and gradient of nnU-Net's loss + weight * term; nnU-Net's loss itself is not called."""
    make, terms = COMBINATIONS[name]
    loss = make(nnunet_region_loss(ignore, batch_dice=batch_dice, weights=weights), mode(ignore))
    tensors = region_batch(ignore, everything_ignored, shape)
    expected = plainly(value_and_gradient, loss, *tensors)
    by_themselves = called_by_themselves(loss)
    actual = value_and_gradient(loss, *tensors)
    assert by_themselves == terms
    assert len(calls) == 1
    # where a soft bin holds little, the rounding of p in float32 is a larger part of its weight
    assert_same(actual, expected, 3e-6 if "soft" in name else 1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@every_combination
def test_half_precision(name, dtype):
    """Computed in float32; the gradient is rounded once for each term."""
    loss, (logits, target) = COMBINATIONS[name][0](nnunet_region_loss(), mode(False)), region_batch()
    logits = logits.detach().to(dtype)
    value, gradient = value_and_gradient(loss, logits, target)
    assert (value.dtype, gradient.dtype) == (torch.float32, dtype)
    expected = plainly(value_and_gradient, loss, logits.float(), target)
    torch.testing.assert_close(value, expected[0], rtol=1e-6, atol=1e-6)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(
        gradient.float(), expected[1], rtol=eps, atol=max(2 * eps * float(expected[1].abs().max()), 1e-7)
    )


@every_combination
def test_compiled_dice(calls, monkeypatch, name):
    """A Dice that nnU-Net has compiled is recognised, and not called."""
    loss, tensors = COMBINATIONS[name][0](nnunet_region_loss(), mode(False)), region_batch()
    expected = plainly(value_and_gradient, loss, *tensors)
    base = loss
    while isinstance(base, LossWithTerm):
        base = base.base
    base.dc = torch.compile(base.dc)
    monkeypatch.setattr(MemoryEfficientSoftDiceLoss, "forward", None)
    assert_same(value_and_gradient(loss, *tensors), expected)
    assert len(calls) == 1

"""nnU-Net's loss and batches, with which the tests compare what is computed at once and one after the other."""

from __future__ import annotations

import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

from nnunet_calib.losses import SVLSLoss, use
from nnunet_calib.losses.module import FunctionalLoss
from nnunet_calib.nnunet.training.loss_terms import replace_cross_entropy

IGNORE = 3


def nnunet_loss(ignore_label=None, dice_class=MemoryEfficientSoftDiceLoss, ce=None, weights=(1, 1), **dice):
    """As `nnUNetTrainer._build_loss` makes it."""
    dice = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False} | dice
    weight_ce, weight_dice = weights
    return DC_and_CE_loss(
        dice,
        dict(ce or {}),
        weight_ce=weight_ce,
        weight_dice=weight_dice,
        ignore_label=ignore_label,
        dice_class=dice_class,
    )


def nnunet_region_loss(ignore=False, dice_class=MemoryEfficientSoftDiceLoss, ce=None, weights=(1, 1), **dice):
    """The same for regions."""
    dice = {"batch_dice": False, "smooth": 1e-5, "do_bg": True, "ddp": False} | dice
    weight_ce, weight_dice = weights
    return DC_and_BCE_loss(
        dict(ce or {}),
        dice,
        weight_ce=weight_ce,
        weight_dice=weight_dice,
        use_ignore_label=ignore,
        dice_class=dice_class,
    )


def batch(ignore_label=None, everything_ignored=False, shape=(9, 8, 7)):
    generator = torch.Generator().manual_seed(3)
    logits = (4 * torch.randn(2, 3, *shape, generator=generator)).requires_grad_()
    target = torch.randint(0, 3, (2, 1, *shape), generator=generator)
    target[1].clamp_(max=1)  # without the last class
    if ignore_label is not None:
        target[torch.rand(target.shape, generator=generator) < (1.1 if everything_ignored else 0.3)] = ignore_label
    return logits, target.to(torch.int16)


def region_batch(ignore=False, everything_ignored=False, shape=(9, 8, 7)):
    """The same with overlapping regions; the last is absent from the second image."""
    logits, _ = batch(shape=shape)
    generator = torch.Generator().manual_seed(4)
    maps = torch.rand(2, 3 + ignore, *shape, generator=generator) < (1.1 if everything_ignored else 0.4)
    maps[1, 2] = False
    return logits, maps


def value_and_gradient(loss, logits, target):
    logits = logits.detach().requires_grad_()
    value = loss(logits, target)
    value.backward()
    return value.detach(), logits.grad


def plainly(of, *args):
    """What a function returns where every loss is computed by itself, as its formula says."""
    with use("reference"):
        return of(*args)


def assert_same(actual, expected, tolerance=1e-6):
    """The value to 1e-6, the gradient to 1e-6, or another tolerance, of its largest entry."""
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(actual[1], expected[1], rtol=0, atol=tolerance * float(expected[1].abs().max()))


def called_by_themselves(loss):
    """A list that the types of nnU-Net's losses and of terms are added to whenever one is called."""
    names = []
    for module in loss.modules():
        if isinstance(module, DC_and_CE_loss | DC_and_BCE_loss | FunctionalLoss):
            module.register_forward_hook(lambda module, *_: names.append(type(module).__name__))
    return names


def without_ce(base):
    return replace_cross_entropy(base, None)


def with_svls(base, ignore_label, **options):
    return replace_cross_entropy(base, SVLSLoss(ignore_label=ignore_label, **options), 3)

"""Dice + cross-entropy + mL1-ACE joined and one after the other, and batches to compare the two on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from nnunet_calib.losses import ML1ACELoss, ml1_ace_loss, use
from nnunet_calib.losses.joined import DiceCE, joined_loss
from tests.losses.conftest import value_and_gradient

IGNORE = 15
SHAPES = {"2d": (2, (120, 121)), "3d": (2, (20, 31, 25)), "one image": (1, (30, 20)), "few voxels": (2, (2, 3, 3))}


def plain_loss(
    logits: Tensor,
    target: Tensor,
    *,
    weight_ce: float = 1.0,
    weight_dice: float = 1.0,
    batch_dice: bool = False,
    smooth: float = 1e-5,
    weight_ml1_ace: float = 1.0,
    ignore_label: int | None = None,
    **options: Any,
) -> Tensor:
    """The same sum, each loss by itself, as its formula says. tests/nnunet compares with nnU-Net's own classes."""
    valid = torch.ones_like(target, dtype=torch.bool) if ignore_label is None else target != ignore_label
    labels = torch.where(valid, target, 0)[:, 0].long()
    z = torch.where(valid, logits, 0)
    ce = (cross_entropy(z, labels, reduction="none") * valid[:, 0]).sum() / valid.sum().clamp_min(1)
    maps = one_hot(labels, logits.shape[1]).movedim(-1, 1) * valid
    p = torch.softmax(z, 1).double() * valid
    over = [0, *range(2, logits.ndim)] if batch_dice else [*range(2, logits.ndim)]
    numerator, denominator = 2 * (p * maps).sum(over) + smooth, (p + maps).sum(over) + smooth
    dice = (numerator / denominator.clamp_min(1e-8))[..., 1:].mean()
    with use("reference"):
        ace = ml1_ace_loss(logits, target, ignore_label=ignore_label, **options) if weight_ml1_ace else 0
    return weight_ce * ce - weight_dice * dice + weight_ml1_ace * ace


def fused_loss(
    logits: Tensor,
    target: Tensor,
    *,
    weight_ce: float = 1.0,
    weight_dice: float = 1.0,
    batch_dice: bool = False,
    smooth: float = 1e-5,
    weight_ml1_ace: float = 1.0,
    ignore_label: int | None = None,
    **options: Any,
) -> Tensor:
    """The joined loss with these options."""
    base = DiceCE(weight_ce, weight_dice, batch_dice, smooth, False, ignore_label)
    terms = [(ML1ACELoss(ignore_label=ignore_label, **options), weight_ml1_ace)] if weight_ml1_ace else []
    loss = joined_loss(logits, target, base, terms)
    assert loss is not None
    return loss


@dataclass(frozen=True)
class Batch:
    """Logits and nnU-Net's int16 labels."""

    logits: Tensor
    target: Tensor
    ignore_label: int | None = None

    def of(self, loss: Any, **options: Any) -> tuple[Tensor, Tensor]:
        """Value and gradient."""
        return value_and_gradient(loss, self.logits, self.target, ignore_label=self.ignore_label, **options)


def make_batch(classes: int, shape: str = "3d", dtype: torch.dtype = torch.float32, ignore: bool = False) -> Batch:
    """Blocks of labels that the logits mostly know; the last image lacks the last class."""
    images, size = SHAPES[shape]
    generator = torch.Generator().manual_seed(classes)
    target = torch.randint(0, classes, (images, 1, *(-(-s // 6) for s in size)), generator=generator)
    for axis, length in enumerate(size, start=2):
        target = target.repeat_interleave(6, axis).narrow(axis, 0, length)
    target = target.clone()
    target[-1].clamp_(max=classes - 2)
    logits = 3 * torch.randn(images, classes, *size, generator=generator, dtype=torch.float64)
    known = torch.rand(target.shape, generator=generator) < 0.8
    logits.scatter_add_(1, target, torch.where(known, 8.0, 0.0).double())
    if ignore:
        target[torch.rand(target.shape, generator=generator) < 0.3] = IGNORE
    return Batch(logits.to(dtype), target.to(torch.int16), IGNORE if ignore else None)

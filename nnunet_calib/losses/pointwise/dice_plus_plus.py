"""DSC++: a Dice loss with errors raised to a power, so that confident errors cost most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor

from nnunet_calib.losses.joined import JoinedLoss
from nnunet_calib.losses.module import FunctionalLoss, check_options
from nnunet_calib.losses.pointwise.sums import joined_sums, pointwise_sums
from nnunet_calib.losses.pooling import Pool, pool_images
from nnunet_calib.losses.targets import activate, loss_type


@dataclass(frozen=True)
class DicePlusPlus:
    """True positives y p, and errors (y (1 - p))^gamma + ((1 - y) p)^gamma."""

    number: ClassVar[int] = 2
    gamma: float

    def __post_init__(self) -> None:
        """Check that gamma is at least 1; below, the derivative of a perfect prediction is infinite."""
        if not self.gamma >= 1:
            raise ValueError(f"expected gamma to be at least 1, got {self.gamma}")

    def terms(self, z: Tensor, y: Tensor, regions: bool) -> tuple[Tensor, ...]:
        """Return true positives and errors."""
        p = activate(z, regions)
        return y * p, (y * (1 - p)) ** self.gamma + ((1 - y) * p) ** self.gamma

    def slope(self, z: Tensor, y: Tensor, regions: bool, *weights: Tensor) -> Tensor:
        """Return the derivative by the logits."""
        of_true, of_errors = weights
        p = activate(z, regions)
        missed, wrong = (y * (1 - p)) ** (self.gamma - 1), ((1 - y) * p) ** (self.gamma - 1)
        by_p = y * of_true + ((1 - y) * wrong - y * missed) * (self.gamma * of_errors)
        if regions:
            return by_p * p * torch.sigmoid(-z)
        return p * (by_p - (by_p * p).sum(1, keepdim=True))


def _check(gamma: float, smooth: float, pool: Pool) -> None:
    DicePlusPlus(gamma)
    if not smooth >= 0:
        raise ValueError(f"expected smooth to be at least 0, got {smooth}")
    check_options(pool=(pool, get_args(Pool)))


def dice_plus_plus_loss(
    logits: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    smooth: float = 1e-5,
    background: bool = False,
    pool: Pool = "image",
    regions: bool = False,
    ignore_label: int | None = None,
) -> Tensor:
    r"""Dice loss with its false positives and false negatives raised to a power, unweighted.

    .. math:: 1 - \mathrm{mean}_{b, c}
        \frac{2 TP + s}{2 TP + \sum_i (y (1 - p))^\gamma + \sum_i ((1 - y) p)^\gamma + s}, \quad TP = \sum_i y p

    With gamma 1 this is 1 - the Dice coefficient as nnU-Net computes it. With gamma 2 the denominator is sum y +
    sum p^2, that of V-Net's Dice loss with labels of 0 and 1.

    Args:
        logits: (B, C, *spatial), 2D or 3D.
        target: labels (B, 1, *spatial), or with `regions` binary maps (B, C, *spatial), followed by one channel that
            marks ignored voxels when `ignore_label` is given.
        gamma: at least 1.
        smooth: s, nnU-Net's.
        background: whether the first class counts too, as published; nnU-Net leaves it out. Of regions all count.
        pool: "image" takes each image by itself; "batch" all images together, in a distributed training those of all
            ranks: nnU-Net's batch Dice.
        regions: whether heads are overlapping regions (sigmoid) rather than exclusive classes (softmax).
        ignore_label: voxels with this label are left out.

    Returns:
        A scalar in at least float32, in [0, 1]; 0 (for a positive s) with zero gradient where no voxel counts. An image
        without a voxel that counts adds 0 to the mean, as with nnU-Net's Dice.

    Raises:
        ValueError: for an unknown option, or shapes and labels that do not belong together.

    References:
        Yeung et al., Calibrating the Dice loss to handle neural network overconfidence for biomedical image
        segmentation, Journal of Digital Imaging 2023, arXiv 2111.00528.
    """
    _check(gamma, smooth, pool)
    options: dict[str, Any] = {"smooth": smooth, "background": background, "pool": pool}
    return _compute(logits, target, gamma=gamma, regions=regions, ignore_label=ignore_label, **options)


def _compute(
    logits: Tensor,
    target: Tensor,
    *,
    gamma: float,
    smooth: float,
    background: bool,
    pool: Pool,
    regions: bool,
    ignore_label: int | None,
) -> Tensor:
    """Return `dice_plus_plus_loss` of options that have been checked."""
    formula = DicePlusPlus(gamma)
    sums = pointwise_sums(logits, target, formula=formula, regions=regions, ignore_label=ignore_label)
    return _of_sums(sums, smooth, background or regions, pool).to(loss_type(logits))


def _of_sums(sums: Tensor, smooth: float, background: bool, pool: Pool) -> Tensor:
    """Return the loss of true positives and errors (2, B, C)."""
    if pool == "batch":
        sums = pool_images(sums)
    of_true, errors = sums if background else sums[..., 1:]
    lacking = 1 - (2 * of_true + smooth) / (2 * of_true + errors + smooth).clamp_min(1e-8)
    loss: Tensor = lacking.sum() / max(lacking.numel(), 1)
    return loss


class DicePlusPlusLoss(FunctionalLoss):
    """Module form of `dice_plus_plus_loss`, which describes the options."""

    def __init__(
        self,
        gamma: float = 2.0,
        smooth: float = 1e-5,
        background: bool = False,
        pool: Pool = "image",
        regions: bool = False,
        ignore_label: int | None = None,
    ) -> None:
        _check(gamma, smooth, pool)
        super().__init__(
            _compute,
            gamma=gamma,
            smooth=smooth,
            background=background,
            pool=pool,
            regions=regions,
            ignore_label=ignore_label,
        )

    def join(self, joined: JoinedLoss, weight: float) -> bool:
        """Add the loss of the formula's sums, and pass the logits on."""
        if not self.fits(joined):
            return False
        labels = {name: self.options[name] for name in ("regions", "ignore_label")}
        sums = joined_sums(joined, formula=DicePlusPlus(self.options["gamma"]), **labels)
        if sums is None:
            return False
        background = self.options["background"] or self.options["regions"]
        value = _of_sums(sums, self.options["smooth"], background, self.options["pool"])
        joined.values.append(weight * value.to(loss_type(joined.logits)))
        return True

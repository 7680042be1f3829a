"""Focal loss: cross-entropy in which confident voxels weigh less."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from nnunet_calib.losses.pointwise.sums import MeanLoss, mean_loss


def _doubt(log_p: Tensor) -> Tensor:
    """Return 1 - p without cancellation, and above 0, where a power below 1 has no derivative."""
    return (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny)


@dataclass(frozen=True)
class Focal:
    """-(1 - p)^gamma log p of the voxel's label; for regions of being inside or outside."""

    number: ClassVar[int] = 1
    gamma: float

    def __post_init__(self) -> None:
        """Check that gamma is not negative."""
        if not self.gamma >= 0:
            raise ValueError(f"expected gamma to be at least 0, got {self.gamma}")

    def terms(self, z: Tensor, y: Tensor, regions: bool) -> tuple[Tensor, ...]:
        """Return the loss of each class, which is 0 for all but the label."""

        def focal(log_p: Tensor) -> Tensor:
            return _doubt(log_p) ** self.gamma * log_p

        if regions:
            return (-y * focal(logsigmoid(z)) - (1 - y) * focal(logsigmoid(-z)),)
        return (-y * focal(torch.log_softmax(z, 1)),)

    def slope(self, z: Tensor, y: Tensor, regions: bool, *weights: Tensor) -> Tensor:
        """Return the derivative by the logits.

        By log p it is (1 - p)^gamma (gamma p log p / (1 - p) - 1).
        """
        (weight,) = weights

        def by_log_p(log_p: Tensor) -> Tensor:
            doubt = _doubt(log_p)
            return doubt**self.gamma * (self.gamma * log_p.exp() * (log_p / doubt) - 1)

        if regions:
            inside, outside = by_log_p(logsigmoid(z)), by_log_p(logsigmoid(-z))
            return (y * inside * torch.sigmoid(-z) - (1 - y) * outside * torch.sigmoid(z)) * weight
        log_p = torch.log_softmax(z, 1)
        slope = y * weight * by_log_p(log_p)
        return slope - log_p.exp_() * slope.sum(1, keepdim=True)


def focal_loss(
    logits: Tensor, target: Tensor, *, gamma: float = 3.0, regions: bool = False, ignore_label: int | None = None
) -> Tensor:
    r"""Cross-entropy of each voxel times a power of 1 - p_y, the probability of other labels, unweighted.

    .. math:: -\frac{1}{B N} \sum_{b, i} (1 - p_{b,i,y})^\gamma \log p_{b,i,y}

    For regions the same of each head's two classes, averaged over voxels and heads.

    Args:
        logits: (B, C, *spatial), 2D or 3D.
        target: labels (B, 1, *spatial), or with `regions` binary maps (B, C, *spatial), followed by one channel that
            marks ignored voxels when `ignore_label` is given.
        gamma: at least 0; 0 gives the cross-entropy.
        regions: whether heads are overlapping regions (sigmoid) rather than exclusive classes (softmax).
        ignore_label: voxels with this label are left out.

    Returns:
        A scalar in at least float32, at least 0; 0 with zero gradient where no voxel counts.

    Raises:
        ValueError: for a negative gamma, or shapes and labels that do not belong together.

    References:
        Lin et al., Focal loss for dense object detection, ICCV 2017, arXiv 1708.02002; Mukhoti et al., Calibrating deep
        neural networks using focal loss, NeurIPS 2020, arXiv 2002.09437, whose gamma is 3.
    """
    return mean_loss(logits, target, formula=Focal(gamma), regions=regions, ignore_label=ignore_label)


class FocalLoss(MeanLoss):
    """Module form of `focal_loss`, which describes the options."""

    def __init__(self, gamma: float = 3.0, regions: bool = False, ignore_label: int | None = None) -> None:
        super().__init__(Focal(gamma), regions, ignore_label)

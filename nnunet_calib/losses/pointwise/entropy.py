"""Entropy penalty (explicit confidence penalty, ECP), which grows with the network's confidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from nnunet_calib.losses.pointwise.sums import MeanLoss, mean_loss


@dataclass(frozen=True)
class NegativeEntropy:
    """p log p of each class; for regions of being inside and outside."""

    number: ClassVar[int] = 1

    def terms(self, z: Tensor, y: Tensor, regions: bool) -> tuple[Tensor, ...]:
        """Return each class's part of the negative entropy."""
        if regions:
            return (torch.sigmoid(z) * logsigmoid(z) + torch.sigmoid(-z) * logsigmoid(-z),)
        log_p = torch.log_softmax(z, 1)
        return (log_p.exp() * log_p,)

    def slope(self, z: Tensor, y: Tensor, regions: bool, *weights: Tensor) -> Tensor:
        """Return the derivative by the logits."""
        (weight,) = weights
        if regions:
            return z * torch.sigmoid(z) * torch.sigmoid(-z) * weight
        log_p = torch.log_softmax(z, 1)
        p, slope = log_p.exp(), (log_p + 1) * weight
        return p * (slope - (p * slope).sum(1, keepdim=True))


def entropy_penalty(
    logits: Tensor, target: Tensor, *, regions: bool = False, ignore_label: int | None = None
) -> Tensor:
    r"""Negative entropy of the predictions, in nats, unweighted.

    .. math:: \frac{1}{B N} \sum_{b, i} \sum_c p_{b,i,c} \log p_{b,i,c}

    It depends on the labels only through the voxels to ignore. The published total is cross-entropy + 0.1 times
    this. For regions the same of each head's two classes, averaged over voxels and heads.

    Args:
        logits: (B, C, *spatial), 2D or 3D.
        target: labels (B, 1, *spatial), or with `regions` binary maps (B, C, *spatial), followed by one channel that
            marks ignored voxels when `ignore_label` is given.
        regions: whether heads are overlapping regions (sigmoid) rather than exclusive classes (softmax).
        ignore_label: voxels with this label are left out.

    Returns:
        A scalar in at least float32, from -log C (regions: -log 2) to 0; 0 with zero gradient where no voxel counts.

    Raises:
        ValueError: for shapes and labels that do not belong together.

    References:
        Pereyra et al., Regularizing neural networks by penalizing confident output distributions, 2017, arXiv
        1701.06548. The code of Murugesan et al. takes the mean over the classes too, which is 1/C of this.
    """
    return mean_loss(logits, target, formula=NegativeEntropy(), regions=regions, ignore_label=ignore_label)


class EntropyPenalty(MeanLoss):
    """Module form of `entropy_penalty`, which describes the options."""

    def __init__(self, regions: bool = False, ignore_label: int | None = None) -> None:
        super().__init__(NegativeEntropy(), regions, ignore_label)

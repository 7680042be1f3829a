"""Label smoothing: cross-entropy against labels of which every class gets a share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from nnunet_calib.losses.pointwise.sums import MeanLoss, mean_loss


@dataclass(frozen=True)
class LabelSmoothing:
    """Cross-entropy against (1 - alpha) y + alpha / C, for regions against (1 - alpha) y + alpha / 2."""

    number: ClassVar[int] = 1
    alpha: float

    def __post_init__(self) -> None:
        """Check that alpha is a share."""
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"expected alpha to be from 0 to 1, got {self.alpha}")

    def _soft(self, y: Tensor, regions: bool) -> Tensor:
        return (1 - self.alpha) * y + self.alpha / (2 if regions else y.shape[1])

    def terms(self, z: Tensor, y: Tensor, regions: bool) -> tuple[Tensor, ...]:
        """Return the cross-entropy of each class, the binary one of each region."""
        soft = self._soft(y, regions)
        if regions:
            return (-soft * logsigmoid(z) - (1 - soft) * logsigmoid(-z),)
        return (-soft * torch.log_softmax(z, 1),)

    def slope(self, z: Tensor, y: Tensor, regions: bool, *weights: Tensor) -> Tensor:
        """Return the derivative by the logits."""
        (weight,) = weights
        soft = self._soft(y, regions)
        if regions:
            return (torch.sigmoid(z) - soft) * weight
        soft = soft * weight
        return torch.softmax(z, 1) * soft.sum(1, keepdim=True) - soft


def label_smoothing_loss(
    logits: Tensor, target: Tensor, *, alpha: float = 0.1, regions: bool = False, ignore_label: int | None = None
) -> Tensor:
    r"""Cross-entropy with a share of each label spread over all classes, unweighted.

    .. math:: -\frac{1}{B N} \sum_{b, i}
        \Big( (1 - \alpha) \log p_{b,i,y} + \frac{\alpha}{C} \sum_c \log p_{b,i,c} \Big)

    For regions each head is a two-class softmax: its binary label becomes (1 - alpha) y + alpha / 2, and the loss is
    the binary cross-entropy, averaged over voxels and heads.

    Args:
        logits: (B, C, *spatial), 2D or 3D.
        target: labels (B, 1, *spatial), or with `regions` binary maps (B, C, *spatial), followed by one channel that
            marks ignored voxels when `ignore_label` is given.
        alpha: share of each label that is divided among all classes, its own included; 0 gives the cross-entropy.
        regions: whether heads are overlapping regions (sigmoid) rather than exclusive classes (softmax).
        ignore_label: voxels with this label are left out.

    Returns:
        A scalar in at least float32, at least 0; 0 with zero gradient where no voxel counts.

    Raises:
        ValueError: for an alpha outside [0, 1], or shapes and labels that do not belong together.

    References:
        Szegedy et al., Rethinking the Inception architecture for computer vision, CVPR 2016, arXiv 1512.00567.
    """
    return mean_loss(logits, target, formula=LabelSmoothing(alpha), regions=regions, ignore_label=ignore_label)


class LabelSmoothingLoss(MeanLoss):
    """Module form of `label_smoothing_loss`, which describes the options."""

    def __init__(self, alpha: float = 0.1, regions: bool = False, ignore_label: int | None = None) -> None:
        super().__init__(LabelSmoothing(alpha), regions, ignore_label)

"""Margin-based label smoothing (MbLS): logits held within a margin of the largest one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from nnunet_calib.losses.pointwise.sums import MeanLoss, mean_loss


@dataclass(frozen=True)
class Margin:
    """Distance from the largest logit beyond a margin, as a mean over the classes; for regions over both of a head."""

    number: ClassVar[int] = 1
    margin: float

    def __post_init__(self) -> None:
        """Check that the margin is not negative."""
        if not self.margin >= 0:
            raise ValueError(f"expected margin to be at least 0, got {self.margin}")

    def terms(self, z: Tensor, y: Tensor, regions: bool) -> tuple[Tensor, ...]:
        """Return each class's part of the mean."""
        if regions:
            return ((z.abs() - self.margin).relu() / 2,)
        return ((z.max(1, keepdim=True).values - z - self.margin).relu() / z.shape[1],)

    def slope(self, z: Tensor, y: Tensor, regions: bool, *weights: Tensor) -> Tensor:
        """Return the derivative by the logits."""
        (weight,) = weights
        if regions:
            return z.sign() * (z.abs() > self.margin) * (weight / 2)
        largest = z.max(1, keepdim=True)
        pull = (largest.values - z > self.margin) * (weight / z.shape[1])
        return (-pull).scatter_(1, largest.indices, pull.sum(1, keepdim=True))  # which is not pulled itself


def margin_label_smoothing_loss(
    logits: Tensor, target: Tensor, *, margin: float = 10.0, regions: bool = False, ignore_label: int | None = None
) -> Tensor:
    r"""Mean by which logits lie further than a margin below the largest one of their voxel, unweighted.

    .. math:: \frac{1}{B C N} \sum_{b, c, i} \max(0, \max_j z_{b,j,i} - z_{b,c,i} - m)

    z are the raw logits, whose distances the loss bounds; it does not depend on the labels. The published total is
    cross-entropy + 0.1 times this. For regions a head is a two-class softmax whose logit is the difference of two, and
    the mean over both classes is max(0, abs(z) - m) / 2.

    Args:
        logits: (B, C, *spatial), 2D or 3D.
        target: labels (B, 1, *spatial), or with `regions` binary maps (B, C, *spatial), followed by one channel that
            marks ignored voxels when `ignore_label` is given.
        margin: m, at least 0. The authors' code uses 10, and 5 in its example on medical images.
        regions: whether heads are overlapping regions (sigmoid) rather than exclusive classes (softmax).
        ignore_label: voxels with this label are left out.

    Returns:
        A scalar in at least float32, at least 0; 0 with zero gradient where no voxel counts.

    Raises:
        ValueError: for a negative margin, or shapes and labels that do not belong together.

    References:
        Liu et al., The devil is in the margin, CVPR 2022, arXiv 2111.15430; Murugesan et al., Calibrating segmentation
        networks with margin-based label smoothing, Medical Image Analysis 2023, arXiv 2209.09641.
    """
    return mean_loss(logits, target, formula=Margin(margin), regions=regions, ignore_label=ignore_label)


class MarginLabelSmoothingLoss(MeanLoss):
    """Module form of `margin_label_smoothing_loss`, which describes the options."""

    def __init__(self, margin: float = 10.0, regions: bool = False, ignore_label: int | None = None) -> None:
        super().__init__(Margin(margin), regions, ignore_label)

"""Difference of mean confidence and frequency, class by class (MDCA)."""

from __future__ import annotations

from torch import Tensor

from nnunet_calib.losses.ml1_ace import ML1ACELoss, ml1_ace_loss
from nnunet_calib.losses.pooling import Pool


def mdca_loss(
    logits: Tensor, target: Tensor, *, pool: Pool = "image", regions: bool = False, ignore_label: int | None = None
) -> Tensor:
    r"""Distance of a class's mean probability from its frequency, as a mean over classes and images, unweighted.

    .. math:: \frac{1}{B C} \sum_{b, c} \Big| \frac{1}{N} \sum_i p_{b,c,i} - \frac{1}{N} \sum_i [y_{b,i} = c] \Big|

    This is the ECE form of `ml1_ace_loss` with a single bin, in which absent classes count as those of frequency 0.

    Args:
        logits: (B, C, *spatial), 2D or 3D.
        target: labels (B, 1, *spatial), or with `regions` binary maps (B, C, *spatial), followed by one channel that
            marks ignored voxels when `ignore_label` is given.
        pool: "image" compares within each image; "batch" over all images together, as published for the classification
            of images, and in a distributed training over those of all ranks.
        regions: whether heads are overlapping regions (sigmoid) rather than exclusive classes (softmax).
        ignore_label: voxels with this label are left out.

    Returns:
        A scalar in at least float32, in [0, 1]; 0 with zero gradient where no voxel counts.

    Raises:
        ValueError: for an unknown option, or shapes and labels that do not belong together.

    References:
        Hebbalaguppe et al., A stitch in time saves nine, CVPR 2022, arXiv 2203.13834.
    """
    return ml1_ace_loss(
        logits,
        target,
        num_bins=1,
        reduction="ece",
        absent_classes="keep",
        pool=pool,
        regions=regions,
        ignore_label=ignore_label,
    )


class MDCALoss(ML1ACELoss):
    """Module form of `mdca_loss`, which describes the options."""

    def __init__(self, pool: Pool = "image", regions: bool = False, ignore_label: int | None = None) -> None:
        super().__init__(
            num_bins=1, reduction="ece", absent_classes="keep", pool=pool, regions=regions, ignore_label=ignore_label
        )

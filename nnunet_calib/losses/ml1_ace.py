"""Marginal L1 average calibration error (mL1-ACE) and its ECE and MCE forms as training losses."""

from __future__ import annotations

from typing import Any, get_args

import torch
from torch import Tensor

from nnunet_calib.binning import bin_index
from nnunet_calib.losses.backends import Binning, compute
from nnunet_calib.losses.bin_errors import MIN_SOFT_BIN_WEIGHT, AbsentClasses, ErrorOfBins, Reduction, error_of_sums
from nnunet_calib.losses.joined import JoinedLoss
from nnunet_calib.losses.module import FunctionalLoss, check_options
from nnunet_calib.losses.pooling import Pool, pool_images
from nnunet_calib.losses.targets import activate, check_shapes, loss_type, prepare, widest


def _check(num_bins: int, reduction: Reduction, binning: Binning, absent_classes: AbsentClasses, pool: Pool) -> None:
    if num_bins < 1:
        raise ValueError(f"expected num_bins to be at least 1, got {num_bins}")
    check_options(
        reduction=(reduction, get_args(Reduction)),
        binning=(binning, get_args(Binning)),
        absent_classes=(absent_classes, get_args(AbsentClasses)),
        pool=(pool, get_args(Pool)),
    )


def _bin_shares(p: Tensor, num_bins: int, binning: Binning) -> list[tuple[Tensor, Tensor]]:
    """Return (index, weight) pairs: the bins that each probability belongs to, and its share in each.

    Soft binning shares a probability linearly between the two nearest bin centres (m + 1/2) / M; below the first and
    above the last centre it belongs wholly to the end bin.
    """
    if binning == "hard":
        return [(bin_index(p, num_bins), torch.ones_like(p))]
    position = (p * num_bins - 0.5).clamp(0, num_bins - 1)
    lower = position.detach().long().clamp_(0, max(num_bins - 2, 0))
    upper_weight = position - lower
    return [(lower, 1 - upper_weight), ((lower + 1).clamp_(max=num_bins - 1), upper_weight)]


def _bin_sums(p: Tensor, y: Tensor, valid: Tensor | None, num_bins: int, binning: Binning) -> tuple[Tensor, ...]:
    """Return weight, probability and positives (B, C, M) of each bin, per image and head, in float64 if available.

    A float32 sum stalls: added to 2^20, a probability of .9999 is rounded to a multiple of 1/8, and half a patch may
    lie in one bin.
    """
    p, y = (x.flatten(2).to(widest(p.device)) for x in (p, y))
    sums = [p.new_zeros((*p.shape[:2], num_bins + 1)) for _ in range(3)]
    for index, weight in _bin_shares(p, num_bins, binning):
        if valid is not None:
            index = torch.where(valid.flatten(2), index, num_bins)  # ignored voxels go to an extra bin, cut off below
        for k, values in enumerate((weight, weight * p, weight * y)):
            sums[k] = sums[k].scatter_add(2, index, values)
    return tuple(x[..., :num_bins] for x in sums)


def ml1_ace_loss(  # noqa: PLR0913
    logits: Tensor,
    target: Tensor,
    *,
    num_bins: int = 20,
    reduction: Reduction = "ace",
    binning: Binning = "hard",
    absent_classes: AbsentClasses = "skip",
    pool: Pool = "image",
    regions: bool = False,
    ignore_label: int | None = None,
) -> Tensor:
    r"""Marginal calibration error of a batch, per image and class, unweighted.

    The probabilities of one class in one image are put into M equal-width bins on [0, 1]. With e_m the mean
    probability and o_m the observed frequency of the class among the n_m voxels of bin m, and N the voxels that count:

    .. math::
        \mathrm{ACE} = \frac{1}{|\{m : n_m > 0\}|} \sum_{n_m > 0} |o_m - e_m|, \quad
        \mathrm{ECE} = \sum_m \frac{n_m}{N} |o_m - e_m|, \quad
        \mathrm{MCE} = \max_m |o_m - e_m|

    then the mean over classes, then over images. Hard bins are differentiable as they stand: for voxel i in bin m,
    d ACE / d p_i = sign(e_m - o_m) / (|non-empty bins| n_m).

    Args:
        logits: (B, C, *spatial), 2D or 3D. Background takes part.
        target: labels (B, 1, *spatial), or with `regions` binary maps (B, C, *spatial), followed by one channel that
            marks ignored voxels when `ignore_label` is given.
        num_bins: M.
        reduction: "ace", "ece" or "mce".
        binning: "hard", or "soft" to share each probability linearly between the two nearest bin centres.
        absent_classes: how a class counts in an image without a voxel of it. "skip": not at all, the mean runs over
            the classes present. "zero": with error 0 (as published in 2025). "keep": with the error of a class of
            frequency 0 (as published in 2024).
        pool: "image" bins each image by itself; "batch" bins all images together, in a distributed training those of
            all ranks, as nnU-Net does for its batch Dice.
        regions: whether heads are overlapping regions (sigmoid) rather than exclusive classes (softmax).
        ignore_label: voxels with this label are left out.

    Returns:
        A scalar in at least float32, in [0, 1]; 0 with zero gradient where no voxel (or, for "skip", no class) counts.

    Raises:
        ValueError: for an unknown option, or shapes and labels that do not belong together.

    References:
        Barfoot et al., Average calibration error, MICCAI 2024, arXiv 2403.06759; follow-up with soft bins, 2025,
        arXiv 2506.03942.
    """
    _check(num_bins, reduction, binning, absent_classes, pool)
    return _compute(
        logits,
        target,
        num_bins=num_bins,
        reduction=reduction,
        binning=binning,
        absent_classes=absent_classes,
        pool=pool,
        regions=regions,
        ignore_label=ignore_label,
    )


def _compute(
    logits: Tensor,
    target: Tensor,
    *,
    num_bins: int,
    binning: Binning,
    regions: bool,
    ignore_label: int | None,
    **of_error: Any,
) -> Tensor:
    """Return `ml1_ace_loss` of options that have been checked."""
    check_shapes(logits, target, regions=regions, ignore_label=ignore_label)
    labels: dict[str, Any] = {"regions": regions, "ignore_label": ignore_label}
    computed = compute("voxel_sums", logits, target, num_bins=num_bins, binning=binning, **labels)
    sums: tuple[Tensor, ...]
    error_of_bins: ErrorOfBins = error_of_sums
    if computed is not None:
        sums, error_of_bins = (computed.weight, computed.probability, computed.positive), computed.error_of_bins
    else:
        z, maps, valid = prepare(logits, target, **labels)
        sums = _bin_sums(activate(z, regions), maps, valid, num_bins, binning)
    return _error(sums, error_of_bins, binning=binning, **of_error).to(loss_type(logits))


def _error(
    sums: tuple[Tensor, ...],
    error_of_bins: ErrorOfBins,
    reduction: Reduction,
    binning: Binning,
    absent_classes: AbsentClasses,
    pool: Pool,
) -> Tensor:
    """Return the error, given the bins' weights, sums of p and positives, each (B, C, M)."""
    weight, probability, positive = sums if pool == "image" else pool_images(torch.stack(sums))
    least = MIN_SOFT_BIN_WEIGHT if binning == "soft" else 1
    return error_of_bins(weight, probability, positive, least, reduction, absent_classes)


class ML1ACELoss(FunctionalLoss):
    """Module form of `ml1_ace_loss`, which describes the options."""

    def __init__(
        self,
        num_bins: int = 20,
        reduction: Reduction = "ace",
        binning: Binning = "hard",
        absent_classes: AbsentClasses = "skip",
        regions: bool = False,
        ignore_label: int | None = None,
        pool: Pool = "image",
    ) -> None:
        _check(num_bins, reduction, binning, absent_classes, pool)
        super().__init__(
            _compute,
            num_bins=num_bins,
            reduction=reduction,
            binning=binning,
            absent_classes=absent_classes,
            pool=pool,
            regions=regions,
            ignore_label=ignore_label,
        )

    def join(self, joined: JoinedLoss, weight: float) -> bool:
        """Ask for bins among the sums, unless another term has asked for other bins."""
        bins: tuple[int, Binning] = (self.options["num_bins"], self.options["binning"])
        if not self.fits(joined) or (joined.bins[0] and joined.bins != bins):
            return False
        joined.bins = bins
        options = {name: self.options[name] for name in ("reduction", "binning", "absent_classes", "pool")}
        joined.of_sums.append(
            lambda sums: weight * _error((sums.weight, sums.probability, sums.positive), sums.error_of_bins, **options)
        )
        return True

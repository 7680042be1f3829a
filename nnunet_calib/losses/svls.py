"""Spatially varying label smoothing (SVLS): cross-entropy against labels softened near their borders."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from nnunet_calib.losses.backends import compute
from nnunet_calib.losses.joined import JoinedLoss, cross_entropy
from nnunet_calib.losses.module import FunctionalLoss
from nnunet_calib.losses.neighbourhood import KernelSize, check_kernel_size, check_sigma, spatially_varying_labels
from nnunet_calib.losses.targets import check_shapes, loss_type, masked_mean, prepare


def svls_loss(
    logits: Tensor,
    target: Tensor,
    *,
    kernel_size: KernelSize = 3,
    sigma: float = 1.0,
    regions: bool = False,
    ignore_label: int | None = None,
) -> Tensor:
    r"""Cross-entropy with spatially smoothed labels, unweighted.

    .. math:: -\frac{1}{B N} \sum_{b, i} \sum_c \tilde y_{b,c,i} \log \mathrm{softmax}(z_{b,i})_c

    where y~ is the one-hot map smoothed by `spatially_varying_labels`: the voxel itself weighs 1/2, its neighbours
    share the other half by a Gaussian. Away from label borders this is the ordinary cross-entropy. For regions each
    head smooths its own binary map, and the loss is the binary cross-entropy, averaged over voxels and heads.

    Args:
        logits: (B, C, *spatial), 2D or 3D.
        target: labels (B, 1, *spatial), or with `regions` binary maps (B, C, *spatial), followed by one channel that
            marks ignored voxels when `ignore_label` is given.
        kernel_size: odd k, or one per axis (1 leaves an axis out).
        sigma: standard deviation of the Gaussian, in voxels.
        regions: whether heads are overlapping regions (sigmoid) rather than exclusive classes (softmax).
        ignore_label: voxels with this label neither contribute nor soften their neighbours' labels.

    Returns:
        A scalar in at least float32, at least 0; 0 with zero gradient where every voxel is ignored.

    Raises:
        ValueError: for an even kernel size, a sigma below 0.1, or shapes and labels that do not belong together.

    References:
        Islam and Glocker, Spatially varying label smoothing, IPMI 2021, arXiv 2104.05788.
    """
    _check(kernel_size, sigma)
    return _compute(logits, target, kernel_size=kernel_size, sigma=sigma, regions=regions, ignore_label=ignore_label)


def _check(kernel_size: KernelSize, sigma: float) -> None:
    check_kernel_size(kernel_size)
    check_sigma(sigma)


def _compute(
    logits: Tensor, target: Tensor, *, kernel_size: KernelSize, sigma: float, regions: bool, ignore_label: int | None
) -> Tensor:
    """Return `svls_loss` of options that have been checked."""
    check_shapes(logits, target, regions=regions, ignore_label=ignore_label)
    labels: dict[str, Any] = {"regions": regions, "ignore_label": ignore_label}
    smoothed = compute("label_smoothing", logits, target, kernel_size=kernel_size, sigma=sigma, **labels)
    if smoothed is not None:
        z, more = smoothed
        sums = compute("voxel_sums", z, target, num_bins=0, binning="hard", **labels)
        if sums is not None:
            return cross_entropy(sums, regions).to(loss_type(z)) + more
    z, maps, valid = prepare(logits, target, regions=regions, ignore_label=ignore_label)
    soft = spatially_varying_labels(maps, valid, kernel_size, sigma)
    if regions:
        return masked_mean(binary_cross_entropy_with_logits(z, soft, reduction="none"), valid)
    return masked_mean(-(soft * torch.log_softmax(z, dim=1)).sum(1, keepdim=True), valid)


class SVLSLoss(FunctionalLoss):
    """Module form of `svls_loss`, which describes the options."""

    def __init__(
        self, kernel_size: KernelSize = 3, sigma: float = 1.0, regions: bool = False, ignore_label: int | None = None
    ) -> None:
        _check(kernel_size, sigma)
        super().__init__(_compute, kernel_size=kernel_size, sigma=sigma, regions=regions, ignore_label=ignore_label)

    def join(self, joined: JoinedLoss, weight: float) -> bool:
        """Share the cross-entropy, add the smoothing term, which is linear in the logits, and pass the logits on."""
        if not self.fits(joined):
            return False
        smoothed = compute("label_smoothing", joined.logits, joined.target, **self.options)
        if smoothed is None:
            return False
        joined.logits, more = smoothed
        joined.weight_ce += weight
        joined.values.append(weight * more)
        return True

"""Spatially varying label smoothing (SVLS): cross-entropy against labels softened near their borders."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from nnunet_calib.losses.autocast import custom_bwd, custom_fwd
from nnunet_calib.losses.borders import Borders, find_borders
from nnunet_calib.losses.module import FunctionalLoss
from nnunet_calib.losses.neighbourhood import KernelSize, check_kernel_size, check_sigma, spatially_varying_labels
from nnunet_calib.losses.targets import at_least_float32, for_cpu, masked_mean, prepare


class _AtBorders(torch.autograd.Function):
    """Logits as they are, and what the soft labels at borders add to their cross-entropy, a sum over voxels.

    What is computed from the logits returned brings a gradient of full size; the sum's is added to it in place.
    """

    @staticmethod
    @custom_fwd(device_type="cpu")
    def forward(ctx: Any, z: Tensor, borders: Borders) -> tuple[Tensor, Tensor]:
        """The sum in float64."""
        at_true = borders.own(borders.of_batch, z.shape[1])
        ctx.save_for_backward(borders.at, borders.soft, at_true)
        own, others = (z.view(-1).index_select(0, at) for at in (at_true, borders.at))
        total = own.sum(dtype=torch.float64) - others.mul_(borders.soft).sum(dtype=torch.float64)
        return z.view_as(z), total

    @staticmethod
    @custom_bwd(device_type="cpu")
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, d_sum: Tensor) -> tuple[Tensor, None]:
        """The gradient with the labels' factors added."""
        (at, soft, at_true), scale, gradient = ctx.saved_tensors, float(d_sum), gradient.contiguous()
        gradient.view(-1).scatter_add_(0, at, soft * -scale)
        gradient.view(-1).scatter_add_(0, at_true, soft.new_full(at_true.shape, scale))
        return gradient, None


def border_term(
    logits: Tensor, target: Tensor, *, kernel_size: KernelSize, sigma: float, ignore_label: int | None
) -> tuple[Tensor, Tensor]:
    r"""What the soft labels add to the ordinary cross-entropy, the mean over the voxels that count, on a CPU.

    .. math:: \frac{1}{N} \sum_i \Big( z_{i, y_i} - \sum_c \tilde y_{i,c} z_{i,c} \Big)

    The softmax is not needed, since both kinds of labels sum to 1 and its logarithm is z plus a constant. The logits
    are at least float32.

    Returns:
        The logits, from which the cross-entropy is to be computed, and the term: only so does its gradient, which is
        sparse, cost no pass over all voxels.
    """
    borders = find_borders(logits, target, kernel_size=kernel_size, sigma=sigma, ignore_label=ignore_label)
    logits, total = _AtBorders.apply(logits.contiguous(), borders)
    return logits, (total / max(borders.count, 1)).to(logits.dtype)


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
    if for_cpu(logits, regions=regions):
        z, labels = at_least_float32(logits), target.long()
        z, more = border_term(z, target, kernel_size=kernel_size, sigma=sigma, ignore_label=ignore_label)
        if ignore_label is not None:
            ignored = target == ignore_label
            z, labels = torch.where(ignored, 0, z), labels.masked_fill(ignored, -1)
        ce = cross_entropy(z, labels[:, 0], ignore_index=-1, reduction="sum")
        return ce / (labels >= 0).sum().clamp_min(1) + more
    z, maps, valid = prepare(logits, target, regions=regions, ignore_label=ignore_label)
    soft = spatially_varying_labels(maps, valid, kernel_size, sigma)
    if regions:
        return masked_mean(binary_cross_entropy_with_logits(z, soft, reduction="none"), valid)
    return masked_mean(-(soft * torch.log_softmax(z, dim=1)).sum(1, keepdim=True), valid)


class SVLSLoss(FunctionalLoss):
    """Module form of `svls_loss`, which describes the options."""

    def __init__(
        self,
        kernel_size: KernelSize = 3,
        sigma: float = 1.0,
        regions: bool = False,
        ignore_label: int | None = None,
    ) -> None:
        check_kernel_size(kernel_size)
        check_sigma(sigma)
        super().__init__(svls_loss, kernel_size=kernel_size, sigma=sigma, regions=regions, ignore_label=ignore_label)

"""Neighbour-aware calibration (NACL): keeps logits near the class proportions around each voxel."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from nnunet_calib.losses.backends import compute
from nnunet_calib.losses.joined import JoinedLoss
from nnunet_calib.losses.module import FunctionalLoss, check_options
from nnunet_calib.losses.neighbourhood import (
    KernelSize,
    check_kernel_size,
    check_sigma,
    label_counts,
    spatially_varying_labels,
)
from nnunet_calib.losses.targets import activate, check_shapes, masked_mean, prepare

Prior = Literal["mean", "gaussian", "max", "min", "median", "mode"]
Penalty = Literal["l1", "l2"]
On = Literal["logits", "probabilities"]


def _order_statistic(counts: Tensor, total: Tensor, prior: Prior) -> Tensor:
    """Return a one-hot map of the largest, smallest, median or most frequent label of the neighbourhood.

    `counts` (B, C, *spatial) has the classes in rising order. Ties go to the lower label: the lower of two middle
    labels is the median, the lower of two equally frequent labels the mode.
    """
    classes = counts.shape[1]
    if prior == "mode":
        label = counts.argmax(1, keepdim=True)
    elif prior == "max":
        label = classes - 1 - (counts > 0).flip(1).byte().argmax(1, keepdim=True)
    elif prior == "min":
        label = (counts > 0).byte().argmax(1, keepdim=True)
    else:
        # integers, since CUDA's cumsum of floats is not deterministic
        label = (counts.int().cumsum(1, dtype=torch.int32) * 2 >= total).byte().argmax(1, keepdim=True)
    return torch.zeros_like(counts).scatter_(1, label, 1)


def _check(kernel_size: KernelSize, prior: Prior, penalty: Penalty, on: On, sigma: float) -> None:
    check_kernel_size(kernel_size)
    if prior == "gaussian":
        check_sigma(sigma)
    check_options(prior=(prior, get_args(Prior)), penalty=(penalty, get_args(Penalty)), on=(on, get_args(On)))


@torch.no_grad()
def neighbour_prior(
    maps: Tensor, valid: Tensor | None, *, kernel_size: KernelSize, prior: Prior, sigma: float, regions: bool
) -> Tensor:
    """Return the prior tau (B, C, *spatial), in [0, 1]; see `nacl_loss`."""
    if prior == "gaussian":
        return spatially_varying_labels(maps, valid, kernel_size, sigma)
    counts, total = label_counts(maps, valid, kernel_size)
    if prior == "mean":
        return counts / total.clamp_min(1)
    if not regions:
        return _order_statistic(counts, total, prior)
    # each region is a map of two labels: 0 outside, 1 inside
    heads = [
        _order_statistic(torch.cat([total - c, c], dim=1), total, prior)[:, 1:]
        for c in counts.tensor_split(counts.shape[1], dim=1)
    ]
    return torch.cat(heads, dim=1)


def nacl_loss(  # noqa: PLR0913
    logits: Tensor,
    target: Tensor,
    *,
    kernel_size: KernelSize = 3,
    prior: Prior = "mean",
    penalty: Penalty = "l1",
    on: On = "logits",
    sigma: float = 1.0,
    regions: bool = False,
    ignore_label: int | None = None,
) -> Tensor:
    r"""Distance of the logits from the class proportions in each voxel's neighbourhood, unweighted.

    .. math:: \frac{1}{B C N} \sum_{b, c, i} | \tau_{b,c,i} - z_{b,c,i} |

    z are the raw logits (the penalty bounds them), tau the prior: the proportion of class c among the labels of the
    k x k (x k) voxels around i, itself included. The published total is cross-entropy + 0.1 times this.

    A region's sigmoid head is a two-class softmax with the logit z_fg - z_bg. Holding z_fg to tau and z_bg to 1 - tau
    holds this difference to 2 tau - 1, which is the prior used for regions.

    Args:
        logits: (B, C, *spatial), 2D or 3D.
        target: labels (B, 1, *spatial), or with `regions` binary maps (B, C, *spatial), followed by one channel that
            marks ignored voxels when `ignore_label` is given.
        kernel_size: odd k, or one per axis (1 leaves an axis out).
        prior: "mean" (proportions), "gaussian" (the weights of `spatially_varying_labels`), or the one-hot map of the
            neighbourhood's "max", "min", "median" or "mode" label (for regions: of the binary map).
        penalty: "l1" (absolute) or "l2" (squared difference).
        on: "logits", or "probabilities" to compare tau with softmax(z) or sigmoid(z).
        sigma: of the "gaussian" prior, in voxels.
        regions: whether heads are overlapping regions (sigmoid) rather than exclusive classes (softmax).
        ignore_label: voxels with this label are left out of the mean and of their neighbours' proportions.

    Returns:
        A scalar in at least float32, at least 0; 0 with zero gradient where every voxel is ignored. Borders replicate
        the label map, so that proportions always sum to 1.

    Raises:
        ValueError: for an unknown option, an even kernel size, or shapes and labels that do not belong together.

    References:
        Murugesan et al., Trust your neighbours, MICCAI 2023, arXiv 2303.06268; Neighbor-aware calibration of
        segmentation networks, Medical Image Analysis 2024, arXiv 2401.14487.
    """
    _check(kernel_size, prior, penalty, on, sigma)
    return _compute(
        logits,
        target,
        kernel_size=kernel_size,
        prior=prior,
        penalty=penalty,
        on=on,
        sigma=sigma,
        regions=regions,
        ignore_label=ignore_label,
    )


def _compute(
    logits: Tensor,
    target: Tensor,
    *,
    penalty: Penalty,
    on: On,
    regions: bool,
    ignore_label: int | None,
    **of_prior: Any,
) -> Tensor:
    """Return `nacl_loss` of options that have been checked."""
    check_shapes(logits, target, regions=regions, ignore_label=ignore_label)
    labels: dict[str, Any] = {"regions": regions, "ignore_label": ignore_label}
    computed = compute("nacl", logits, target, penalty=penalty, on=on, **labels, **of_prior)
    if computed is not None:
        return computed[1]
    z, maps, valid = prepare(logits, target, **labels)
    tau = neighbour_prior(maps, valid, regions=regions, **of_prior)
    if on == "probabilities":
        z = activate(z, regions)
    elif regions:
        tau = 2 * tau - 1
    difference = z - tau
    return masked_mean(difference.abs() if penalty == "l1" else difference.square(), valid)


class NACLLoss(FunctionalLoss):
    """Module form of `nacl_loss`, which describes the options."""

    def __init__(
        self,
        kernel_size: KernelSize = 3,
        prior: Prior = "mean",
        penalty: Penalty = "l1",
        on: On = "logits",
        sigma: float = 1.0,
        regions: bool = False,
        ignore_label: int | None = None,
    ) -> None:
        _check(kernel_size, prior, penalty, on, sigma)
        super().__init__(
            _compute,
            kernel_size=kernel_size,
            prior=prior,
            penalty=penalty,
            on=on,
            sigma=sigma,
            regions=regions,
            ignore_label=ignore_label,
        )

    def join(self, joined: JoinedLoss, weight: float) -> bool:
        """Add the distance of the logits from the prior, and pass the logits on."""
        if not self.fits(joined):
            return False
        computed = compute("nacl", joined.logits, joined.target, **self.options)
        if computed is None:
            return False
        joined.logits, value = computed
        joined.values.append(weight * value)
        return True

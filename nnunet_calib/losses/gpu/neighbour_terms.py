"""NACL, and the term that SVLS adds to the cross-entropy, by the kernels of `neighbour_kernels`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nnunet_calib.losses.gpu import neighbour_kernels as kernels
from nnunet_calib.losses.gpu.launch import launch
from nnunet_calib.losses.gpu.targets import flat_target, require_labels
from nnunet_calib.losses.neighbourhood import KernelSize, check_sigma, sizes_per_axis

BLOCK = 256
PRIORS = {
    "mean": kernels.WEIGHTED,
    "gaussian": kernels.WEIGHTED,
    "max": kernels.MAX,
    "min": kernels.MIN,
    "median": kernels.MEDIAN,
    "mode": kernels.MODE,
}
PENALTIES = {"l1": kernels.L1, "l2": kernels.L2}


def _three(values: Sequence[int]) -> tuple[int, ...]:
    """Return sizes for three axes, with a leading 1 for a 2D image."""
    return (1,) * (3 - len(values)) + tuple(values)


def weights(sizes: Sequence[int], sigma: float | None) -> tuple[float, float]:
    """Return the falloff of a neighbour's weight with the squared distance, and the voxel's own weight.

    Without sigma all voxels weigh the same. With it, the voxel weighs as much as all its neighbours together, as in
    `spatially_varying_labels`; a neighbourhood of one voxel smooths nothing.
    """
    if sigma is None:
        return 0.0, 1.0
    falloff = 0.5 / sigma**2
    offsets = product(*(range(-(size // 2), size // 2 + 1) for size in sizes))
    others = math.fsum(math.exp(-falloff * sum(o * o for o in offset)) for offset in offsets if any(offset))
    return falloff, others or 1.0


class _Term(torch.autograd.Function):
    """The unchanged logits (B, C, N), and sums over the voxels that count; see `labels_kernel`."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        y: Tensor,
        spatial: Sequence[int],
        ignore_label: int | None,
        regions: bool,
        shape: tuple[float, float],
        constants: dict[str, Any],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the logits, the sum, and the numbers of voxels that count and that have no head, in float64."""
        images, heads, voxels = z.shape
        blocks = -(-voxels // BLOCK)
        ctx.kernel = kernels.regions_kernel if regions else kernels.labels_kernel
        ctx.grid = (blocks * heads if regions else blocks, images)
        ignore = [] if regions else [-1 if ignore_label is None else ignore_label]
        ctx.sizes = (voxels, heads, *_three(spatial), *ignore, *shape)
        ctx.constants = {**constants, "HAS_IGNORE": ignore_label is not None, "BLOCK": BLOCK}
        ctx.save_for_backward(z, y)
        ctx.set_materialize_grads(False)
        parts = z.new_empty((images, ctx.grid[0], 3), dtype=torch.float32)
        launch(ctx.kernel, ctx.grid, z, y, parts, parts, *ctx.sizes, BACKWARD=False, **ctx.constants)
        sums = parts.sum((0, 1), dtype=torch.float64)
        total, numbers = sums[0], sums[1:]
        ctx.mark_non_differentiable(numbers)
        return z.view_as(z), total, numbers

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, slope: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        """Return the incoming gradient, with this term's added in place."""
        z, y = ctx.saved_tensors
        gradient = torch.zeros_like(z) if gradient is None else gradient.contiguous()
        if slope is not None:
            launch(ctx.kernel, ctx.grid, z, y, slope, gradient, *ctx.sizes, BACKWARD=True, **ctx.constants)
        return gradient, None, None, None, None, None, None


def _term(
    logits: Tensor,
    target: Tensor,
    *,
    kernel_size: KernelSize,
    sigma: float | None,
    kind: Any,
    prior: Any,
    regions: bool,
    ignore_label: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the logits, the sum over voxels and heads, and the number of voxels (for regions: times heads)."""
    spatial = logits.shape[2:]
    sizes = _three(sizes_per_axis(kernel_size, len(spatial)))
    constants = {"KD": sizes[0], "KH": sizes[1], "KW": sizes[2], "KIND": kind.value, "PRIOR": prior.value}
    z, y = logits.flatten(2).contiguous(), flat_target(target, regions)
    z, total, numbers = _Term.apply(z, y, spatial, ignore_label, regions, weights(sizes, sigma), constants)
    count, headless = numbers.unbind()
    if not regions:
        require_labels(headless == 0, target, logits.shape[1], ignore_label)
    return z.view(logits.shape), total, count


def nacl(
    logits: Tensor,
    target: Tensor,
    *,
    kernel_size: KernelSize,
    prior: str,
    penalty: str,
    sigma: float,
    regions: bool,
    ignore_label: int | None,
) -> tuple[Tensor, Tensor]:
    """Return the logits, and `nacl_loss` on logits."""
    if prior == "gaussian":
        check_sigma(sigma)
    logits, total, count = _term(
        logits,
        target,
        kernel_size=kernel_size,
        sigma=sigma if prior == "gaussian" else None,
        kind=PENALTIES[penalty],
        prior=PRIORS[prior],
        regions=regions,
        ignore_label=ignore_label,
    )
    per_voxel = 1 if regions else logits.shape[1]
    return logits, (total / (count * per_voxel).clamp_min(1)).float()


def label_smoothing(
    logits: Tensor, target: Tensor, *, kernel_size: KernelSize, sigma: float, regions: bool, ignore_label: int | None
) -> tuple[Tensor, Tensor]:
    """Return the logits, and the term that SVLS adds to their cross-entropy."""
    check_sigma(sigma)
    logits, total, count = _term(
        logits,
        target,
        kernel_size=kernel_size,
        sigma=sigma,
        kind=kernels.SMOOTHING,
        prior=kernels.WEIGHTED,
        regions=regions,
        ignore_label=ignore_label,
    )
    return logits, (total / count.clamp_min(1)).float()

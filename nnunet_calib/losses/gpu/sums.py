"""The sums over voxels, by the kernels of `voxel_kernels`, and the gradient through them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nnunet_calib.losses.backends import VoxelSums
from nnunet_calib.losses.gpu import voxel_kernels as kernels
from nnunet_calib.losses.gpu.bin_error import bin_error
from nnunet_calib.losses.gpu.launch import launch
from nnunet_calib.losses.gpu.targets import flat_target, require_labels

BLOCK = 512
MANY_CLASSES = 16  # enough programs to keep a GPU busy, so that chunks may be longer


def chunks_of(voxels: int, classes: int) -> tuple[int, int]:
    """Return the number of blocks per program of `sums_kernel`, and of programs per class and image."""
    blocks = -(-voxels // BLOCK)
    steps = min(8 if classes < MANY_CLASSES else kernels.MAX_STEPS, blocks)
    return steps, -(-blocks // steps)


class _Sums(torch.autograd.Function):
    """The tensors of `VoxelSums`, given logits (B, C, N) and their target (B, N) or (B, C [+ 1], N)."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, y: Tensor, num_bins: int, soft: bool, regions: bool, ignore_label: int | None
    ) -> tuple[Tensor, ...]:
        """Return the sums in float64."""
        images, heads, voxels = z.shape
        steps, chunks = chunks_of(voxels, heads)
        rows, columns = (4, 1 << max(3, (num_bins - 1).bit_length())) if num_bins else (1, 8)
        rest = z.new_empty((0,) if regions else (images, voxels), dtype=torch.float32)
        top = torch.empty_like(rest, dtype=z.dtype)
        if not regions:
            launch(kernels.normaliser_kernel, (-(-voxels // BLOCK), images), z, top, rest, voxels, heads, BLOCK=BLOCK)
        ignore = {"REGIONS": regions, "HAS_IGNORE": ignore_label is not None}
        ctx.options = -1 if ignore_label is None else ignore_label, {"M": num_bins, "SOFT": soft, **ignore}
        parts = z.new_empty((images, chunks, heads, rows, columns), dtype=torch.float32)
        launch(
            kernels.sums_kernel,
            (chunks * heads, images),
            z,
            y,
            top,
            rest,
            parts,
            voxels,
            heads,
            chunks,
            steps,
            ctx.options[0],
            COLUMNS=columns,
            BLOCK=BLOCK,
            **ctx.options[1],
        )
        ctx.save_for_backward(z, y, top, rest)
        ctx.set_materialize_grads(False)

        sums = parts.sum(1, dtype=torch.float64)
        of_head = sums[:, :, 0]
        nll, of_images = of_head[..., kernels.NLL.value].sum(), of_head[:, 0, kernels.VOXELS.value].sum()
        total, of_true, number = (
            of_head[..., column.value] for column in (kernels.TOTAL, kernels.OF_TRUE, kernels.NUMBER)
        )
        weight, probability, positive = (sums[:, :, min(row, rows - 1), :num_bins] for row in (1, 2, 3))
        ctx.mark_non_differentiable(number, of_images, *([] if soft else [weight, positive]))
        return nll, total, of_true, number, of_images, weight, probability, positive

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor | None) -> tuple[Tensor | None, ...]:
        """Return the gradient in the logits' type; the slope of a sum that the loss does not use is None."""
        z, y, top, rest = ctx.saved_tensors
        images, heads, voxels = z.shape
        ignore, constants = ctx.options
        none = z.new_zeros((images, heads, max(constants["M"], 1)), dtype=torch.float64)  # large enough for each
        by_sum = [none if d is None else d.contiguous() for d in (*slopes[:3], *slopes[5:])]
        gradient = torch.empty_like(z)
        launch(
            kernels.gradient_kernel,
            (-(-voxels // BLOCK), images),
            z,
            y,
            top,
            rest,
            *by_sum,
            gradient,
            voxels,
            heads,
            ignore,
            BLOCK=BLOCK,
            **constants,
        )
        return gradient, None, None, None, None, None


def voxel_sums(
    logits: Tensor, target: Tensor, *, num_bins: int, soft: bool, regions: bool, ignore_label: int | None
) -> VoxelSums:
    """Return the sums; refuse a label without a head as the formulas do, on a GPU without waiting for it."""
    z, y = logits.flatten(2).contiguous(), flat_target(target, regions)
    sums = VoxelSums(*_Sums.apply(z, y, num_bins, soft, regions, ignore_label))._replace(error_of_bins=bin_error)
    if not regions:
        require_labels(sums.number.sum() == sums.voxels, target, logits.shape[1], ignore_label)
    return sums

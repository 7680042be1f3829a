"""The calibration error of binned sums, by the kernel of `table_kernels`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nnunet_calib.losses.bin_errors import MIN_SOFT_BIN_WEIGHT, ROUNDING, AbsentClasses, Reduction, error_of_sums
from nnunet_calib.losses.gpu import table_kernels as kernels
from nnunet_calib.losses.gpu.launch import launch

LARGEST = 2048  # entries of an image's table that fit into the registers of a program
WARPS = 16
REDUCTIONS = {"ace": kernels.ACE, "ece": kernels.ECE, "mce": kernels.MCE}
ABSENT = {"skip": kernels.SKIP, "zero": kernels.ZERO, "keep": kernels.KEEP}


class _Error(torch.autograd.Function):
    """The error of a table (B, C, M) of weights, sums of p and positives in float64."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, probability: Tensor, positive: Tensor, least: float, constants: dict[str, Any]
    ) -> Tensor:
        """Return the error, a scalar, and save its derivatives, which the same kernel computes."""
        images, classes, bins = weight.shape
        tables = [weight, probability, positive]
        if len({x.stride() for x in tables}) > 1 or weight.stride(2) != 1:
            tables = [x.contiguous() for x in tables]
        value, slopes = weight.new_empty(()), weight.new_empty((3, *weight.shape))
        launch(
            kernels.error_kernel,
            (1,),
            *tables,
            value,
            slopes,
            images,
            classes,
            *tables[0].stride()[:2],
            least,
            ROUNDING[torch.float64],
            MIN_SOFT_BIN_WEIGHT,
            M=bins,
            **constants,
        )
        ctx.save_for_backward(slopes)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the derivatives by the sums that need them."""
        (slopes,) = ctx.saved_tensors
        if not (ctx.needs_input_grad[0] or ctx.needs_input_grad[2]):
            return None, slopes[1] * gradient, None, None, None
        return *(slopes * gradient).unbind(), None, None


def bin_error(
    weight: Tensor,
    probability: Tensor,
    positive: Tensor,
    least: float,
    reduction: Reduction,
    absent_classes: AbsentClasses,
) -> Tensor:
    """Return the same as `error_of_sums`, which also takes over tables that are too large for one program."""
    _, classes, bins = weight.shape
    rows, columns = (1 << max(size - 1, 0).bit_length() for size in (classes, bins))
    if rows * columns > LARGEST:
        return error_of_sums(weight, probability, positive, least, reduction, absent_classes)
    constants: dict[str, Any] = {
        "ROWS": rows,
        "COLUMNS": columns,
        "REDUCTION": REDUCTIONS[reduction].value,
        "ABSENT": ABSENT[absent_classes].value,
        "num_warps": WARPS,
    }
    error: Tensor = _Error.apply(weight, probability, positive, float(least), constants)
    return error

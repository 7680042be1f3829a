"""The average, expected and maximum calibration error of binned sums."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import Tensor

Reduction = Literal["ace", "ece", "mce"]
AbsentClasses = Literal["skip", "zero", "keep"]

# A soft bin that holds less than this many voxels' weight counts as empty (Barfoot et al. 2025).
MIN_SOFT_BIN_WEIGHT = 0.01

# A smaller gap is rounding of the sums: its sign would depend on the order of summation.
ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-6}


def error_of_sums(
    weight: Tensor,
    probability: Tensor,
    positive: Tensor,
    least: float,
    reduction: Reduction,
    absent_classes: AbsentClasses,
) -> Tensor:
    """Return the calibration error of bins (B, C, M), given their sums; a bin of less weight than `least` is empty."""
    # negated, since comparisons with NaN are false: a NaN must count, or the loss would hide it
    filled = ~(weight < least)
    difference = positive - probability
    difference = difference.masked_fill(difference.abs() <= ROUNDING[weight.dtype] * weight, 0)
    gap = torch.where(filled, difference.abs() / weight.clamp_min(MIN_SOFT_BIN_WEIGHT), 0)
    if reduction == "ace":
        error = gap.sum(2) / filled.sum(2).clamp_min(1)
    elif reduction == "ece":
        error = (gap * weight).sum(2) / weight.sum(2).clamp_min(1)
    else:
        error = gap.amax(2)

    present = ~(positive.sum(2) <= 0)
    counted = present if absent_classes == "skip" else filled.any(2)
    if absent_classes != "keep":
        error = torch.where(present | error.isnan(), error, 0)  # an absent class may have a NaN of its own (regions)
    per_image = error.sum(1) / counted.sum(1).clamp_min(1)
    return per_image.sum() / counted.any(1).sum().clamp_min(1)


class ErrorOfBins(Protocol):
    """The signature of `error_of_sums` and of backends' versions of it."""

    def __call__(
        self,
        weight: Tensor,
        probability: Tensor,
        positive: Tensor,
        least: float,
        reduction: Reduction,
        absent_classes: AbsentClasses,
    ) -> Tensor:
        """Return the error."""

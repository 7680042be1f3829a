"""Sums over the images of a batch and the ranks of a distributed training."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, distributed

Pool = Literal["image", "batch"]


class _SumOverRanks(torch.autograd.Function):
    """Sum over the ranks of a distributed training; backward, the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _SumOverRanks.forward(ctx, gradient)


def pool_images(sums: Tensor) -> Tensor:
    """Add up the sums (K, B, C, ...) of a batch, over all ranks of a distributed training, as if it were one image.

    Summing the gradients over the ranks is right because DDP then averages them: each parameter gets the gradient that
    one process with the whole batch would give it.
    """
    sums = sums.sum(1, keepdim=True)
    if distributed.is_available() and distributed.is_initialized():
        sums = _SumOverRanks.apply(sums)
    return sums

"""The term that soft labels at borders add to the cross-entropy with one-hot labels, on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nnunet_calib.losses.cpu.autocast import without_autocast
from nnunet_calib.losses.cpu.borders import Borders


class _AtBorders(torch.autograd.Function):
    """The unchanged logits, and the term that the soft labels at borders add to their cross-entropy, a sum over voxels.

    Other losses are computed from the returned logits: their gradient passes through, and the sum's is added in place.
    """

    @staticmethod
    @without_autocast
    def forward(ctx: Any, z: Tensor, borders: Borders) -> tuple[Tensor, Tensor]:
        """Return the logits and the sum, in float64."""
        if z.shape[1] == 1:  # class 1 only
            at, change = borders.at, borders.labels.view(-1).index_select(0, borders.at) - borders.soft
        else:
            at_true = borders.own(borders.of_batch, z.shape[1])
            at, change = (
                torch.cat([at_true, borders.at]),
                torch.cat([borders.soft.new_ones(at_true.shape), -borders.soft]),
            )
        ctx.save_for_backward(at, change)
        total = z.view(-1).index_select(0, at).mul_(change).sum(dtype=torch.float64)
        return z.view_as(z), total

    @staticmethod
    @without_autocast
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, d_sum: Tensor) -> tuple[Tensor, None]:
        """Return the incoming gradient, with the labels' factors added in place."""
        (at, change), gradient = ctx.saved_tensors, gradient.contiguous()
        gradient.view(-1).scatter_add_(0, at, change * float(d_sum))
        return gradient, None


def smoothing_at_borders(logits: Tensor, borders: Borders) -> tuple[Tensor, Tensor]:
    r"""Return the logits, to compute other losses from, and the soft labels' term, a mean over voxels.

    .. math:: \frac{1}{N} \sum_i \Big( z_{i, y_i} - \sum_c \tilde y_{i,c} z_{i,c} \Big)

    The softmax is not needed: its logarithm is z plus a constant, and both kinds of labels sum to 1. For a region only
    the term of class 1 exists. The logits are at least float32.
    """
    logits, total = _AtBorders.apply(logits.contiguous(), borders)
    return logits, (total / max(borders.count, 1)).to(logits.dtype)

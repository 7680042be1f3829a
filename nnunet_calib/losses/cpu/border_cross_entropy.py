"""What soft labels at borders add to the cross-entropy with one-hot labels, on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nnunet_calib.losses.cpu.autocast import without_autocast
from nnunet_calib.losses.cpu.borders import Borders


class _AtBorders(torch.autograd.Function):
    """Logits as they are, and what the soft labels at borders add to their cross-entropy, a sum over voxels.

    What is computed from the logits returned brings a gradient of full size; the sum's is added to it in place.
    """

    @staticmethod
    @without_autocast
    def forward(ctx: Any, z: Tensor, borders: Borders) -> tuple[Tensor, Tensor]:
        """Return the logits and the sum, in float64."""
        at_true = borders.own(borders.of_batch, z.shape[1])
        ctx.save_for_backward(borders.at, borders.soft, at_true)
        own, others = (z.view(-1).index_select(0, at) for at in (at_true, borders.at))
        total = own.sum(dtype=torch.float64) - others.mul_(borders.soft).sum(dtype=torch.float64)
        return z.view_as(z), total

    @staticmethod
    @without_autocast
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, d_sum: Tensor) -> tuple[Tensor, None]:
        """Add the labels' factors to the gradient."""
        (at, soft, at_true), scale, gradient = ctx.saved_tensors, float(d_sum), gradient.contiguous()
        gradient.view(-1).scatter_add_(0, at, soft * -scale)
        gradient.view(-1).scatter_add_(0, at_true, soft.new_full(at_true.shape, scale))
        return gradient, None


def smoothing_at_borders(logits: Tensor, borders: Borders) -> tuple[Tensor, Tensor]:
    r"""Return the logits, to go on with, and what the soft labels add to the cross-entropy, a mean over voxels.

    .. math:: \frac{1}{N} \sum_i \Big( z_{i, y_i} - \sum_c \tilde y_{i,c} z_{i,c} \Big)

    The softmax is not needed, since both kinds of labels sum to 1 and its logarithm is z plus a constant. The logits
    are at least float32.
    """
    logits, total = _AtBorders.apply(logits.contiguous(), borders)
    return logits, (total / max(borders.count, 1)).to(logits.dtype)

"""Training targets in the form that the kernels read."""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet_calib.losses.targets import as_int32, label_error

_AS_THEY_ARE = (torch.int8, torch.uint8, torch.int16, torch.int32)
_FAR = 2**30  # stands for an infinite label, which has no class, in 32 bits


def flat_target(target: Tensor, regions: bool) -> Tensor:
    """Return labels (B, N) in up to 32 bits, or maps (B, C [+ 1], N), contiguous in memory."""
    if not regions and target.dtype not in _AS_THEY_ARE:
        target = target.clamp(-_FAR, _FAR).int() if target.is_floating_point() else as_int32(target)
    return target.flatten(2 if regions else 1).contiguous()


def require_labels(known: Tensor, target: Tensor, heads: int, ignore_label: int | None) -> None:
    """Refuse labels without a head if `known` is false; on a GPU by a device-side assertion, which does not wait.

    Raises:
        ValueError: on a CPU, as the formulas do.
    """
    try:
        torch._assert_async(known)
    except RuntimeError as error:
        if target.device.type != "cpu":
            raise
        labels = target if ignore_label is None else torch.where(target != ignore_label, target, 0)
        raise label_error(labels, heads, ignore_label) from error

"""Conversion of probabilities to logits, and of logits to calibrated probabilities."""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from nnunet_calib.posthoc.calibrator import Calibrator

Array = TypeVar("Array", np.ndarray, torch.Tensor)

# Probabilities are clamped to about the smallest normal float32 for a softmax, and to about the float32 next to 1 for a
# sigmoid. float16 holds the logits of both, but rounds those of all clamped voxels the same way, which would shift the
# temperature of a voxel sample by 1e-4 of its value.
MIN_PROBABILITY = math.exp(-87.3125)
MAX_REGION_LOGIT = 16.625


def log_probabilities(probabilities: Array, *, regions: bool = False) -> Array:
    """Return the logits of probabilities: log p for a softmax (up to a constant per voxel), logit(p) for regions.

    Any shape works. Zeros (and ones, for regions) are clamped to keep the result finite.
    """
    p = as_tensor(probabilities)
    p = p.float() if p.dtype in (torch.float16, torch.bfloat16) else p  # too coarse for the clamps
    if regions:
        p = p.clamp(0, 1)
        logits = (torch.log(p) - torch.log1p(-p)).clamp_(-MAX_REGION_LOGIT, MAX_REGION_LOGIT)
    else:
        logits = torch.log(p.clamp_min(MIN_PROBABILITY))
    return logits if isinstance(probabilities, torch.Tensor) else logits.numpy()


def as_tensor(x: ArrayLike) -> Tensor:
    """Return a tensor, without a copy if PyTorch can share the memory (not for read-only or flipped arrays)."""
    if not isinstance(x, torch.Tensor) and (dtype := np.asarray(x).dtype).kind not in "biuf":
        raise ValueError(
            f"expected an array of numbers, got one of {dtype}: number them with np.unique(x, return_inverse=True)"
        )
    if isinstance(x, np.ndarray):
        x = x.astype(x.dtype.newbyteorder("="), copy=False)
    if isinstance(x, np.ndarray) and not (x.flags.writeable and all(stride >= 0 for stride in x.strides)):
        x = x.copy()
    if isinstance(x, np.ndarray) and x.dtype.kind == "u" and x.itemsize > 1:  # PyTorch lacks most unsigned types
        x = x.astype(np.int64 if x.itemsize > 2 else np.int32)
    return torch.as_tensor(x)


def calibrated(logits: Array, calibrator: Calibrator, *, regions: bool = False) -> Array:
    """Return the calibrated probabilities of logits (C, ...): softmax over the first axis, or sigmoid; same type."""
    z = calibrator.logits(as_tensor(logits), regions=regions)
    p = torch.sigmoid(z) if regions else torch.softmax(z, dim=0)
    return p if isinstance(logits, torch.Tensor) else p.numpy()

"""Checks whether Triton runs here, and the launch of its kernels."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, get_args

import torch
from torch import Tensor

from nnunet_calib.losses.backends import VoxelSums
from nnunet_calib.losses.bin_errors import Reduction

OLDEST = (3, 0)  # Triton with tl.fma and tl.div_rn
LARGEST = 2**31 - 2**16  # voxels of an image, whose positions are 32-bit integers


def interpreted() -> bool:
    """Return whether Triton interprets its kernels on CPU tensors, which it decides when it is imported."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "on", "true", "yes", "y")


@cache
def why_missing() -> str | None:
    """Return why this machine cannot run Triton's kernels at all, or None."""
    if find_spec("triton") is None:
        return "Triton is not installed; it comes with the PyTorch packages for CUDA and ROCm"
    if interpreted():
        return None
    if not torch.cuda.is_available():
        return "PyTorch finds no GPU; set TRITON_INTERPRET=1 to try the kernels on a CPU, very slowly"
    found = _version()
    if found < OLDEST:
        return f"Triton is {'.'.join(map(str, found))}, expected at least {'.'.join(map(str, OLDEST))}"
    return None


def _version() -> tuple[int, ...]:
    """Return the first two numbers of Triton's version; ROCm's package has another name."""
    for name in ("triton", "pytorch-triton-rocm", "triton-rocm", "pytorch-triton"):
        try:
            return tuple(int(part) for part in version(name).split(".")[:2])
        except (PackageNotFoundError, ValueError):
            continue
    return OLDEST


@cache
def why_not_on(device: torch.device) -> str | None:
    """Return why kernels cannot be compiled for a device, or None; tried once, with the smallest kernel.

    Triton needs a C compiler when it is first used, and does not support old GPUs; only a trial shows both.
    """
    logits = torch.zeros((1, 2, 4), device=device)
    try:
        from nnunet_calib.losses.gpu import voxel_kernels as kernels

        top, rest = (torch.empty((1, 4), device=device) for _ in range(2))
        launch(kernels.normaliser_kernel, (1, 1), logits, top, rest, 4, 2, BLOCK=16)
    except Exception as error:  # of Triton, its compilers or the driver; whatever it is, other backends remain
        return f"Triton cannot compile its kernels for {device}: {type(error).__name__}: {str(error)[:200]}"
    return None


_tried: dict[Any, bool] = {}


def works(operation: Callable[..., Any], logits: Tensor, target: Tensor, **options: Any) -> bool:
    """Return whether the kernels of an operation can be compiled for these logits and options.

    Tried once, forward and backward, on a few voxels: a limitation of an older Triton or GPU must not end a training.
    Triton caches the kernels, so that nothing is compiled twice.
    """
    if interpreted():
        return True
    of_target = target.dtype, target.shape[1]
    key = operation.__name__, logits.device, logits.dtype, logits.shape[1], logits.ndim, of_target, repr(options)
    if key not in _tried:
        _tried[key] = _try(operation, logits, target, options)
    return _tried[key]


def _try(operation: Callable[..., Any], logits: Tensor, target: Tensor, options: dict[str, Any]) -> bool:
    """Return whether an operation runs on zeros, forward and backward."""
    few = (4,) * (logits.ndim - 2)
    with torch.inference_mode(False), torch.enable_grad():
        z = torch.zeros((1, logits.shape[1], *few), dtype=logits.dtype, device=logits.device, requires_grad=True)
        y = torch.zeros((1, target.shape[1], *few), dtype=target.dtype, device=target.device)
        try:
            results = operation(z, y, **options)
            values = [x.sum() for x in results if isinstance(x, Tensor) and x.requires_grad]
            if isinstance(results, VoxelSums) and results.weight.numel():
                bins = results.weight, results.probability, results.positive
                values += [results.error_of_bins(*bins, 1, how, "skip") for how in get_args(Reduction)]
            torch.autograd.backward(torch.stack([x.double() for x in values]).sum())
        except Exception as error:  # of Triton, its compilers or the driver, as above
            warnings.warn(f"nnunet_calib computes {operation.__name__} without Triton: {error!r:.300}", stacklevel=2)
            return False
    return True


def why_not(logits: Tensor) -> str | None:
    """Return why the kernels cannot take these logits (B, C, *spatial), or None."""
    if not (logits.device.type == "cuda" or (logits.device.type == "cpu" and interpreted())):
        return f"they are on {logits.device}, and Triton's kernels run on CUDA and ROCm"
    if logits.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"they are {logits.dtype}, and Triton's kernels compute in float32"
    if not 0 < logits[0, 0].numel() < LARGEST or not logits.shape[1]:
        return f"they have the shape {tuple(logits.shape)}"
    return why_missing() or why_not_on(logits.device)


def launch(kernel: Any, grid: Sequence[int], first: Tensor, *arguments: Any, **constants: Any) -> None:
    """Start a kernel on the device of its first argument."""
    with torch.cuda.device(first.get_device()):  # -1 for a CPU: no change
        kernel[tuple(grid)](first, *arguments, **constants)

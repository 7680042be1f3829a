"""The backend "triton": the losses on NVIDIA's and AMD's GPUs, by kernels that store no maps.

Triton comes with PyTorch's packages for CUDA and ROCm, and is imported only when a kernel is first needed. With
TRITON_INTERPRET=1 in the environment the same kernels run, slowly, on CPU tensors; the tests do this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

from nnunet_calib.losses.backends import Binning, VoxelSums
from nnunet_calib.losses.chunked import pointwise as pointwise  # any device's
from nnunet_calib.losses.gpu import launch
from nnunet_calib.losses.neighbourhood import KernelSize

R = TypeVar("R")

MOST_BINS = 64  # a program goes through the bins of a block one by one


def why_missing() -> str | None:
    """Return why this machine cannot run the backend, or None if it can."""
    return launch.why_missing()


def why_not(logits: Tensor, *, regions: bool) -> str | None:
    """Return why the backend cannot take these logits (B, C, *spatial), or None if it can."""
    return launch.why_not(logits)


def voxel_sums(
    logits: Tensor, target: Tensor, *, num_bins: int, binning: Binning, regions: bool, ignore_label: int | None
) -> VoxelSums | None:
    """Return the sums over voxels, or None for more than MOST_BINS bins or maps of fractions."""
    if num_bins > MOST_BINS or _has_fractions(target, regions):
        return None
    from nnunet_calib.losses.gpu import sums

    return _if_it_works(
        sums.voxel_sums,
        logits,
        target,
        num_bins=num_bins,
        soft=binning == "soft",
        regions=regions,
        ignore_label=ignore_label,
    )


def nacl(  # noqa: PLR0913
    logits: Tensor,
    target: Tensor,
    *,
    kernel_size: KernelSize,
    prior: str,
    penalty: str,
    on: str,
    sigma: float,
    regions: bool,
    ignore_label: int | None,
) -> tuple[Tensor, Tensor] | None:
    """Return the logits, and `nacl_loss`; None for a loss on probabilities or maps of fractions."""
    if on != "logits" or _has_fractions(target, regions):
        return None
    from nnunet_calib.losses.gpu import neighbour_terms

    return _if_it_works(
        neighbour_terms.nacl,
        logits,
        target,
        kernel_size=kernel_size,
        prior=prior,
        penalty=penalty,
        sigma=sigma,
        regions=regions,
        ignore_label=ignore_label,
    )


def label_smoothing(
    logits: Tensor, target: Tensor, *, kernel_size: KernelSize, sigma: float, regions: bool, ignore_label: int | None
) -> tuple[Tensor, Tensor] | None:
    """Return the logits, and the term that SVLS adds to the cross-entropy; None for maps of fractions."""
    if _has_fractions(target, regions):
        return None
    from nnunet_calib.losses.gpu import neighbour_terms

    return _if_it_works(
        neighbour_terms.label_smoothing,
        logits,
        target,
        kernel_size=kernel_size,
        sigma=sigma,
        regions=regions,
        ignore_label=ignore_label,
    )


def _if_it_works(operation: Callable[..., R], logits: Tensor, target: Tensor, **options: Any) -> R | None:
    """Return the result of an operation, or None if its kernels cannot be compiled."""
    return operation(logits, target, **options) if launch.works(operation, logits, target, **options) else None


def _has_fractions(target: Tensor, regions: bool) -> bool:
    """Whether a region's map may hold values between 0 and 1; the kernels ask only whether a voxel is inside."""
    return regions and target.is_floating_point()

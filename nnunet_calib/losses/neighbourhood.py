"""Which labels surround a voxel: proportions of the classes in a k x k (x k) neighbourhood."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

KernelSize = int | Sequence[int]


def check_kernel_size(kernel_size: KernelSize) -> None:
    """Raise ValueError unless every size is odd and positive."""
    sizes = (kernel_size,) if isinstance(kernel_size, int) else tuple(kernel_size)
    if any(k < 1 or k % 2 == 0 for k in sizes):
        raise ValueError(f"expected kernel_size to be odd and positive (one number, or one per axis), got {kernel_size}")


def _sizes_per_axis(kernel_size: KernelSize, spatial_dims: int) -> tuple[int, ...]:
    """One odd size per spatial axis; an int stands for all axes, 1 leaves an axis out."""
    check_kernel_size(kernel_size)
    sizes = (kernel_size,) * spatial_dims if isinstance(kernel_size, int) else tuple(kernel_size)
    if len(sizes) != spatial_dims:
        raise ValueError(f"expected one kernel_size or {spatial_dims}, one per spatial axis, got {kernel_size}")
    return sizes


def _gaussian(size: int, sigma: float) -> list[float]:
    """Gaussian weights that sum to 1; the product over axes is the normalised d-dimensional Gaussian."""
    offsets = torch.arange(size, dtype=torch.float64) - size // 2
    weights = torch.exp(-0.5 * (offsets / sigma) ** 2)
    return (weights / weights.sum()).tolist()


def _filter(maps: Tensor, weights: Sequence[Sequence[float]]) -> Tensor:
    """Separable correlation over the spatial axes with replicate padding."""
    for axis, row in enumerate(weights, start=2):
        radius = len(row) // 2
        if radius == 0:
            continue
        positions = torch.arange(maps.shape[axis], device=maps.device)
        filtered = maps * row[radius]
        for offset in range(-radius, radius + 1):
            if offset:
                neighbours = (positions + offset).clamp_(0, maps.shape[axis] - 1)
                filtered.add_(maps.index_select(axis, neighbours), alpha=row[radius + offset])
        maps = filtered
    return maps


def label_counts(maps: Tensor, valid: Tensor | None, kernel_size: KernelSize) -> tuple[Tensor, Tensor]:
    r"""Number of neighbours (the voxel itself included) of each class, and of all classes together.

    Args:
        maps: one-hot or binary maps (B, C, *spatial), zero in ignored voxels.
        valid: mask (B, 1, *spatial) of the voxels that count, or None if all do.
        kernel_size: odd, for all axes or one per axis.

    Returns:
        counts (B, C, *spatial) and totals, which broadcast against them. A volume's border is replicated; ignored
        voxels are no neighbours.
    """
    ones = [[1.0] * k for k in _sizes_per_axis(kernel_size, maps.ndim - 2)]
    everything = maps.new_ones((1, 1, *maps.shape[2:])) if valid is None else valid.to(maps.dtype)
    return _filter(maps, ones), _filter(everything, ones)


def spatially_varying_labels(maps: Tensor, valid: Tensor | None, kernel_size: KernelSize, sigma: float) -> Tensor:
    r"""Soft labels: the maps smoothed with a Gaussian whose centre weighs as much as all its neighbours.

    With g the Gaussian over the neighbourhood (sum 1) and g_0 its centre, the weights are

    .. math:: w_j = \frac{g_j}{2 (1 - g_0)} \quad (j \ne 0), \qquad w_0 = \tfrac{1}{2}

    Args:
        maps: one-hot or binary maps (B, C, *spatial), zero in ignored voxels.
        valid: mask (B, 1, *spatial) of the voxels that count, or None if all do.
        kernel_size: odd, for all axes or one per axis.
        sigma: standard deviation of the Gaussian, in voxels.

    Returns:
        (B, C, *spatial). The volume's border is replicated; ignored voxels are left out and the weights of the
        remaining ones renormalised. One-hot maps give values that sum to 1 in every voxel that counts.

    References:
        Islam and Glocker, Spatially varying label smoothing, IPMI 2021, arXiv 2104.05788.
    """
    weights = [_gaussian(k, sigma) for k in _sizes_per_axis(kernel_size, maps.ndim - 2)]
    centre = 1.0
    for row in weights:
        centre *= row[len(row) // 2]
    if centre == 1.0:  # a neighbourhood of one voxel smooths nothing
        return maps

    def smooth(x: Tensor) -> Tensor:
        return (_filter(x, weights) + (1 - 2 * centre) * x) / (2 * (1 - centre))

    if valid is None:
        return smooth(maps)
    # zero only in voxels that are ignored with all their neighbours: their value is of no consequence
    return smooth(maps) / smooth(valid.to(maps.dtype)).clamp_min(torch.finfo(maps.dtype).tiny)

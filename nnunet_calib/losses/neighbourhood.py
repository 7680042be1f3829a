"""Proportions of the classes in the k x k (x k) neighbourhood of each voxel, and labels smoothed over it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

KernelSize = int | Sequence[int]

MIN_SIGMA = 0.1  # below, a neighbour's Gaussian weight underflows in float32


def check_kernel_size(kernel_size: KernelSize) -> None:
    """Raise ValueError unless every size is odd and positive."""
    if any(k < 1 or k % 2 == 0 for k in _as_tuple(kernel_size)):
        raise ValueError(f"expected kernel_size to be odd and positive, one number or one per axis, got {kernel_size}")


def check_sigma(sigma: float) -> None:
    """Raise ValueError for a sigma that leaves neighbours no weight."""
    if not sigma >= MIN_SIGMA:
        raise ValueError(f"expected sigma to be at least {MIN_SIGMA} voxels, got {sigma}")


def _as_tuple(kernel_size: KernelSize) -> tuple[int, ...]:
    return tuple(kernel_size) if isinstance(kernel_size, Sequence) else (int(kernel_size),)


def sizes_per_axis(kernel_size: KernelSize, spatial_dims: int) -> tuple[int, ...]:
    """Return one odd size per spatial axis; a single number stands for all axes, 1 leaves an axis out."""
    sizes = _as_tuple(kernel_size)
    if not isinstance(kernel_size, Sequence):
        sizes *= spatial_dims
    if len(sizes) != spatial_dims:
        raise ValueError(f"expected one kernel_size or {spatial_dims}, one per spatial axis, got {kernel_size}")
    return sizes


def gaussian(size: int, sigma: float) -> list[float]:
    """Return Gaussian weights, 1 at the centre; their product over the axes is the d-dimensional Gaussian."""
    return [math.exp(-0.5 * ((position - size // 2) / sigma) ** 2) for position in range(size)]


def neighbours_mass(weights: Sequence[Sequence[float]]) -> float:
    """Return the total weight of the neighbours, given the weights along each axis, 1 at the centre.

    The centre is left out from the start: subtracting it at the end would cancel small neighbour weights.
    """
    mass = 0.0
    for row in weights:
        beside = sum(weight for position, weight in enumerate(row) if position != len(row) // 2)
        mass = mass * (1 + beside) + beside
    return mass


def _filter_axis(maps: Tensor, weights: Sequence[float], axis: int, *, centre: bool = True) -> Tensor:
    """Correlate along one axis with replicate padding, with or without the centre's own weight."""
    radius = len(weights) // 2
    positions = torch.arange(maps.shape[axis], device=maps.device)
    filtered = maps * (weights[radius] if centre else 0)
    for offset in range(-radius, radius + 1):
        if offset:
            neighbours = (positions + offset).clamp_(0, maps.shape[axis] - 1)
            filtered.add_(maps.index_select(axis, neighbours), alpha=weights[radius + offset])
    return filtered


def _neighbours_only(maps: Tensor, weights: Sequence[Sequence[float]]) -> Tensor:
    """Correlate along all axes, leaving out the centre voxel itself; see `neighbours_mass`."""
    total = torch.zeros_like(maps)
    for axis, row in enumerate(weights, start=2):
        total = _filter_axis(total, row, axis) + _filter_axis(maps, row, axis, centre=False)
    return total


def label_counts(maps: Tensor, valid: Tensor | None, kernel_size: KernelSize) -> tuple[Tensor, Tensor]:
    r"""Return the number of neighbours (the voxel itself included) of each class, and of all classes together.

    Args:
        maps: one-hot or binary maps (B, C, *spatial), zero in ignored voxels.
        valid: mask (B, 1, *spatial) of the voxels that count, or None if all do.
        kernel_size: odd, for all axes or one per axis.

    Returns:
        counts (B, C, *spatial) and totals, which broadcast against them. The volume's border is replicated; ignored
        voxels are not counted.
    """
    total = maps.new_ones((1, 1, *maps.shape[2:])) if valid is None else valid.to(maps.dtype)
    for axis, size in enumerate(sizes_per_axis(kernel_size, maps.ndim - 2), start=2):
        maps, total = (_filter_axis(x, [1.0] * size, axis) for x in (maps, total))
    return maps, total


def spatially_varying_labels(maps: Tensor, valid: Tensor | None, kernel_size: KernelSize, sigma: float) -> Tensor:
    r"""Smooth maps with a Gaussian whose centre weighs as much as all its neighbours together.

    With g the Gaussian over the neighbourhood and 0 its centre, the weights are

    .. math:: w_j = \frac{g_j}{2 \sum_{k \ne 0} g_k} \quad (j \ne 0), \qquad w_0 = \tfrac{1}{2}

    Args:
        maps: one-hot or binary maps (B, C, *spatial), zero in ignored voxels.
        valid: mask (B, 1, *spatial) of the voxels that count, or None if all do.
        kernel_size: odd, for all axes or one per axis.
        sigma: standard deviation of the Gaussian, in voxels, at least 0.1.

    Returns:
        (B, C, *spatial). The volume's border is replicated; ignored voxels are left out and the weights of the
        remaining ones renormalised. One-hot maps give values that sum to 1 in every voxel that counts.

    References:
        Islam and Glocker, Spatially varying label smoothing, IPMI 2021, arXiv 2104.05788.
    """
    weights = [gaussian(k, sigma) for k in sizes_per_axis(kernel_size, maps.ndim - 2)]
    mass = neighbours_mass(weights)
    if mass == 0:  # a neighbourhood of one voxel smooths nothing
        return maps

    def smooth(x: Tensor) -> Tensor:
        return (_neighbours_only(x, weights) / mass + x) / 2

    if valid is None:
        return smooth(maps)
    # zero only in ignored voxels whose neighbours are all ignored; their value is not used
    return smooth(maps) / smooth(valid.to(maps.dtype)).clamp_min(torch.finfo(maps.dtype).tiny)

"""The backend for a CPU: the formulas' numbers, several times as fast.

It picks out some voxels, whose number depends on the data: a GPU would have to be waited for. A region's head counts
as an image of its own, with two classes: outside, with logit 0, and inside.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nnunet_calib.losses.backends import Binning, VoxelSums
from nnunet_calib.losses.chunked import pointwise as pointwise  # any device's
from nnunet_calib.losses.cpu.border_cross_entropy import smoothing_at_borders
from nnunet_calib.losses.cpu.border_distance import distance_to_borders
from nnunet_calib.losses.cpu.borders import find_borders
from nnunet_calib.losses.cpu.two_class_sums import TwoClassSums
from nnunet_calib.losses.cpu.voxel_sums import SoftmaxSums
from nnunet_calib.losses.neighbourhood import KernelSize
from nnunet_calib.losses.targets import at_least_float32

IGNORED = -1  # the label of ignored voxels of a region


def why_missing() -> str | None:
    """Return None: every machine has a CPU."""
    return None


def why_not(logits: Tensor, *, regions: bool) -> str | None:
    """Return why these logits are not for this backend, which indexes the entries of an image with 32 bits."""
    if logits.device.type != "cpu":
        return f"it computes on a CPU, and they are on {logits.device}"
    entries = math.prod(logits.shape if regions else logits.shape[1:])
    if not (regions or logits.shape[1] > 1) or not logits.numel() or entries >= 2**31:
        return f"it takes two or more classes, and up to 2^31 entries, and they are {tuple(logits.shape)}"
    return None


def voxel_sums(
    logits: Tensor, target: Tensor, *, num_bins: int, binning: Binning, regions: bool, ignore_label: int | None
) -> VoxelSums | None:
    """Return the sums with hard bins; None for soft bins or maps of fractions. See `backends.Backend`."""
    if (num_bins and binning == "soft") or _has_fractions(target, regions):
        return None
    z, labels, ignored = _images(logits, target, regions, ignore_label)
    function = SoftmaxSums if z.shape[1] > 2 else TwoClassSums
    nll, *of_heads = function.apply(z.flatten(2), labels.flatten(1), num_bins, ignored)
    total, of_true, number, probability, weight, positive = (x.view(*logits.shape[:2], *x.shape[2:]) for x in of_heads)
    voxels = number.sum()
    if regions:
        marked = target[:, logits.shape[1] :]
        voxels = voxels.new_tensor(target[:, 0].numel() - int(marked.count_nonzero()))
    return VoxelSums(nll, total, of_true, number, voxels, weight, probability, positive)


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
    """Return the logits and NACL for the priors that are one-hot away from label borders; see `backends.Backend`."""
    if on != "logits" or prior not in ("mean", "gaussian") or _has_fractions(target, regions):
        return None
    z, labels, ignored = _images(logits, target, regions, ignore_label)
    sigma_of_weights = sigma if prior == "gaussian" else None
    borders = find_borders(z, labels, kernel_size=kernel_size, sigma=sigma_of_weights, ignore_label=ignored)
    z, distance = distance_to_borders(z, borders, squared=penalty == "l2")
    return z.view(logits.shape), distance


def label_smoothing(
    logits: Tensor, target: Tensor, *, kernel_size: KernelSize, sigma: float, regions: bool, ignore_label: int | None
) -> tuple[Tensor, Tensor] | None:
    """Return the logits and the term that the soft labels add to the cross-entropy; see `backends.Backend`."""
    if _has_fractions(target, regions):
        return None
    z, labels, ignored = _images(logits, target, regions, ignore_label)
    borders = find_borders(z, labels, kernel_size=kernel_size, sigma=sigma, ignore_label=ignored)
    z, more = smoothing_at_borders(z, borders)
    return z.view(logits.shape), more


def _has_fractions(target: Tensor, regions: bool) -> bool:
    """Return whether the map of a region may hold values between 0 and 1."""
    return regions and target.is_floating_point()


def _images(
    logits: Tensor, target: Tensor, regions: bool, ignore_label: int | None
) -> tuple[Tensor, Tensor, int | None]:
    """Return logits in at least float32, labels and the ignore label; for regions those of an image for each head.

    These are logits (B C, 1, *spatial) of class 1, the inside, and labels (B C, 1, *spatial) in int8.
    """
    z = at_least_float32(logits).contiguous()
    if not regions:
        return z, target, ignore_label
    maps = target[:, : z.shape[1]]
    inside = (maps if maps.dtype == torch.bool else maps != 0).view(torch.int8)
    if ignore_label is not None:
        inside, ignore_label = inside.masked_fill(target[:, z.shape[1] :] != 0, IGNORED), IGNORED
    return z.flatten(0, 1)[:, None], inside.flatten(0, 1)[:, None], ignore_label

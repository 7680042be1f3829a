"""The backend for labels on a CPU: the formulas' numbers, several times as fast.

It picks out some voxels, of which there are as many as the data say; a GPU would have to be waited for.
"""

from __future__ import annotations

import math

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


def why_missing() -> str | None:
    """Return None: every machine has a CPU."""
    return None


def why_not(logits: Tensor, *, regions: bool) -> str | None:
    """Return why these logits are not for this backend, which indexes the entries of an image with 32 bits."""
    if logits.device.type != "cpu":
        return f"it computes on a CPU, and they are on {logits.device}"
    if regions:
        return "it computes labels, and they are those of regions"
    if logits.shape[1] < 2 or not logits.numel() or math.prod(logits.shape[1:]) >= 2**31:
        return f"it wants at least two classes and images of up to 2^31 entries, and they are {tuple(logits.shape)}"
    return None


def voxel_sums(
    logits: Tensor, target: Tensor, *, num_bins: int, binning: Binning, regions: bool, ignore_label: int | None
) -> VoxelSums | None:
    """Return the sums with hard bins, computed as suits the number of classes; see `backends.Backend`."""
    if num_bins and binning == "soft":
        return None
    function = TwoClassSums if logits.shape[1] == 2 else SoftmaxSums
    z = at_least_float32(logits).flatten(2)
    sums = function.apply(z, target.flatten(1), num_bins, ignore_label)
    nll, total, of_true, number, probability, weight, positive = sums
    return VoxelSums(nll, total, of_true, number, number.sum(), weight, probability, positive)


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
    if on != "logits" or prior not in ("mean", "gaussian"):
        return None
    z = at_least_float32(logits)
    sigma_of_weights = sigma if prior == "gaussian" else None
    borders = find_borders(z, target, kernel_size=kernel_size, sigma=sigma_of_weights, ignore_label=ignore_label)
    return distance_to_borders(z, borders, squared=penalty == "l2")


def label_smoothing(
    logits: Tensor, target: Tensor, *, kernel_size: KernelSize, sigma: float, regions: bool, ignore_label: int | None
) -> tuple[Tensor, Tensor] | None:
    """Return the logits and what the soft labels add to the cross-entropy; see `backends.Backend`."""
    z = at_least_float32(logits)
    borders = find_borders(z, target, kernel_size=kernel_size, sigma=sigma, ignore_label=ignore_label)
    return smoothing_at_borders(z, borders)

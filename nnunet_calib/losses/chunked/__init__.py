"""The backend for any device, in plain PyTorch: works on parts of the voxels and never waits for the device."""

from __future__ import annotations

from torch import Tensor

from nnunet_calib.losses.backends import Binning, Formula, VoxelSums
from nnunet_calib.losses.chunked.neighbours import Neighbourhood, term_of_soft_labels
from nnunet_calib.losses.chunked.parts import Labels
from nnunet_calib.losses.chunked.pointwise_sums import PointwiseSums
from nnunet_calib.losses.chunked.voxel_sums import ChunkedSums
from nnunet_calib.losses.neighbourhood import KernelSize, sizes_per_axis


def why_missing() -> str | None:
    """Return None: PyTorch is enough."""
    return None


def why_not(logits: Tensor, *, regions: bool) -> str | None:
    """Return why these logits are not for this backend."""
    return None if logits.numel() else f"it wants voxels, and their shape is {tuple(logits.shape)}"


def voxel_sums(
    logits: Tensor, target: Tensor, *, num_bins: int, binning: Binning, regions: bool, ignore_label: int | None
) -> VoxelSums | None:
    """Return the sums; see `backends.Backend`."""
    if regions and target.is_floating_point():  # it may hold fractions
        return None
    return VoxelSums(
        *ChunkedSums.apply(logits.flatten(2), target.flatten(2), num_bins, binning == "soft", regions, ignore_label)
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
    """Return the logits and NACL for the priors that are sums over neighbours; see `backends.Backend`."""
    if on != "logits" or prior not in ("mean", "gaussian") or (regions and target.is_floating_point()):
        return None
    sizes = sizes_per_axis(kernel_size, logits.ndim - 2)
    neighbourhood = Neighbourhood(sizes, sigma if prior == "gaussian" else None)
    return term_of_soft_labels(logits, target, neighbourhood, penalty, regions=regions, ignore_label=ignore_label)


def label_smoothing(
    logits: Tensor, target: Tensor, *, kernel_size: KernelSize, sigma: float, regions: bool, ignore_label: int | None
) -> tuple[Tensor, Tensor] | None:
    """Return the logits and the term that the soft labels add to the cross-entropy; see `backends.Backend`."""
    if regions and target.is_floating_point():
        return None
    neighbourhood = Neighbourhood(sizes_per_axis(kernel_size, logits.ndim - 2), sigma)
    return term_of_soft_labels(logits, target, neighbourhood, "smoothing", regions=regions, ignore_label=ignore_label)


def pointwise(
    logits: Tensor, target: Tensor, *, formula: Formula, regions: bool, ignore_label: int | None
) -> tuple[Tensor, Tensor] | None:
    """Return the logits and the sums of a formula's terms; see `backends.Backend`."""
    if regions and target.is_floating_point():
        return None
    labels = Labels(target.flatten(2), logits.shape[1], regions, ignore_label)
    z, sums = PointwiseSums.apply(logits.flatten(2), labels.target, labels, formula)
    return z.view(logits.shape), sums

"""Logits and nnU-Net's training targets in the form that all losses compute with."""

from __future__ import annotations

import math

import torch
from torch import Tensor

WITHOUT_FLOAT64 = {"mps"}  # types of devices


def activate(logits: Tensor, regions: bool) -> Tensor:
    """Return probabilities: softmax over the classes, or a sigmoid per region."""
    return torch.sigmoid(logits) if regions else torch.softmax(logits, dim=1)


def at_least_float32(x: Tensor) -> Tensor:
    """Convert half precision to float32; leave float32 and float64 as they are."""
    return x.to(loss_type(x))


def loss_type(logits: Tensor) -> torch.dtype:
    """Return the type that a loss of logits is computed in, at least float32."""
    return torch.float32 if logits.dtype in (torch.float16, torch.bfloat16) else logits.dtype


def widest(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on a device that has no float64."""
    return torch.float32 if device.type in WITHOUT_FLOAT64 else torch.float64


def as_int32(labels: Tensor) -> Tensor:
    """Convert labels to int32, clamped to its range, whose ends have no class either."""
    return (labels.clamp(-(2**31), 2**31 - 1) if labels.dtype == torch.int64 else labels).int()


def positions(mask: Tensor) -> Tensor:
    """Return the indices (k,) where a flattened mask on a CPU is true.

    NumPy finds them several times as fast as `torch.nonzero`.
    """
    return torch.from_numpy(mask.numpy().ravel().nonzero()[0])


def prepare(
    logits: Tensor, target: Tensor, *, regions: bool, ignore_label: int | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return logits in at least float32, 0 in ignored voxels, and the maps and mask of `encode_target`.

    The zeros keep a NaN or Inf of an ignored voxel out of the gradients: masking only the loss would leave 0 * NaN.
    """
    maps, valid = encode_target(logits, target, regions=regions, ignore_label=ignore_label)
    logits = at_least_float32(logits)
    return (logits if valid is None else torch.where(valid, logits, 0)), maps, valid


def check_shapes(logits: Tensor, target: Tensor, *, regions: bool, ignore_label: int | None) -> None:
    """Raise ValueError unless the shapes of logits and target match; see `encode_target`."""
    heads, spatial = logits.shape[1], logits.shape[2:]
    channels = (heads + (ignore_label is not None)) if regions else 1
    if logits.ndim not in (4, 5) or target.shape != (logits.shape[0], channels, *spatial):
        raise ValueError(
            f"expected logits (B, C, *spatial) with 2 or 3 spatial axes and a target of shape "
            f"{(logits.shape[0], channels, *spatial)} (regions={regions}, ignore_label={ignore_label}), "
            f"got logits {tuple(logits.shape)} and target {tuple(target.shape)}"
        )


@torch.no_grad()
def encode_target(
    logits: Tensor, target: Tensor, *, regions: bool, ignore_label: int | None
) -> tuple[Tensor, Tensor | None]:
    """Return one-hot maps of a training target and the mask of the voxels that count.

    Args:
        logits: (B, C, *spatial); gives the number of heads, the device and the dtype of the maps.
        target: labels (B, 1, *spatial), or with `regions` binary maps (B, C, *spatial) that are followed by one more
            channel marking ignored voxels when an ignore label is given (nnU-Net's convention).
        regions: whether each head is a binary map of its own.
        ignore_label: the label value that marks ignored voxels; with `regions` only whether it is None matters.

    Returns:
        maps (B, C, *spatial), zero in ignored voxels, in at least float32, and the mask (B, 1, *spatial) of voxels that
        count, or None if all do.

    Raises:
        ValueError: if the shapes do not match, or if a label has no head (on a CUDA device such a label trips PyTorch's
            own device-side assertion instead, since looking for it would cost a synchronisation).
    """
    check_shapes(logits, target, regions=regions, ignore_label=ignore_label)
    heads = logits.shape[1]
    dtype = loss_type(logits)
    if regions:
        if ignore_label is None:
            return target.to(dtype), None
        valid = target[:, heads:] == 0
        return target[:, :heads].to(dtype) * valid, valid

    mask = None if ignore_label is None else target != ignore_label
    labels = target if mask is None else torch.where(mask, target, 0)
    try:
        maps = torch.zeros_like(logits, dtype=dtype).scatter_(1, labels.long(), 1)
    except RuntimeError as error:
        if logits.device.type == "cuda" or not labels.numel():
            raise
        raise label_error(labels, heads, ignore_label) from error
    return (maps, None) if mask is None else (maps * mask, mask)


def label_error(labels: Tensor, heads: int, ignore_label: int | None) -> ValueError:
    """Return the error to raise for labels without a head."""
    return ValueError(
        f"expected labels from 0 to {heads - 1} (or the ignore label, {ignore_label}), got values from "
        f"{_as_written(labels.min())} to {_as_written(labels.max())}: check the labels in dataset.json against the "
        f"label maps"
    )


def _as_written(label: Tensor) -> int | float:
    """Return a label as an integer where it is one; float targets may hold NaN or infinity."""
    value: int | float = label.item()
    return int(value) if math.isfinite(value) else value


def masked_mean(values: Tensor, valid: Tensor | None) -> Tensor:
    """Return the mean of (B, C, *spatial) over the voxels that count and all C; zero (with zero gradient) if none."""
    if valid is None:
        return values.mean()
    return torch.where(valid, values, 0).sum() / (valid.sum() * values.shape[1]).clamp_min(1)

"""The sums over voxels once more, by whole C-channel maps in PyTorch, and batches to compare on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, one_hot

from nnunet_calib.binning import bin_index
from nnunet_calib.losses.backends import VoxelSums

IGNORE = 77


@dataclass(frozen=True)
class Batch:
    """Logits and nnU-Net's target; in the last image the last class or region is absent."""

    logits: Tensor
    target: Tensor
    regions: bool
    ignore_label: int | None

    @property
    def mode(self):
        """The options that go with the target."""
        return {"regions": self.regions, "ignore_label": self.ignore_label}


def make_batch(
    heads: int,
    shape: tuple[int, ...],
    *,
    regions: bool = False,
    ignore: bool = False,
    dtype: torch.dtype = torch.float32,
    sure: float = 6.0,
    seed: int = 0,
) -> Batch:
    """Return two images of blocks of labels, of which the logits know four fifths by `sure`."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, heads, (2, 1, *(-(-size // 3) for size in shape)), generator=generator)
    for axis, size in enumerate(shape, start=2):
        labels = labels.repeat_interleave(3, axis).narrow(axis, 0, size)
    labels[-1].clamp_(max=max(heads - 2, 0))
    maps = one_hot(labels[:, 0], heads).movedim(-1, 1)
    known = torch.rand(labels.shape, generator=generator) < 0.8
    logits = 2 * torch.randn(2, heads, *shape, generator=generator) + sure * known * (2 * maps - 1 if regions else maps)
    ignored = torch.rand(labels.shape, generator=generator) < 0.2
    ignore_label = IGNORE if ignore else None
    if not regions:
        target = torch.where(ignored, IGNORE, labels) if ignore else labels
        return Batch(logits.to(dtype), target.to(torch.int16), False, ignore_label)
    return Batch(logits.to(dtype), (torch.cat([maps, ignored], 1) if ignore else maps).bool(), True, ignore_label)


def plain_sums(logits: Tensor, batch: Batch, num_bins: int, soft: bool) -> VoxelSums:
    """Return what `VoxelSums` describes, in float64 from probabilities in float32."""
    heads = logits.shape[1]
    z = logits.float().flatten(2)
    if batch.regions:
        y = batch.target[:, :heads].flatten(2).double()
        ignored = torch.zeros_like(y[:, :1]) if batch.ignore_label is None else batch.target[:, heads:].flatten(2)
        valid = 1 - ignored.double()
        p, loss = torch.sigmoid(z).double(), -y * logsigmoid(z).double() - (1 - y) * logsigmoid(-z).double()
    else:
        label = batch.target.flatten(2).long()
        valid = (label != IGNORE).double()
        y = one_hot(torch.where(label == IGNORE, 0, label)[:, 0], heads).movedim(-1, 1).double()
        p, loss = torch.softmax(z, 1).double(), -y * torch.log_softmax(z, 1).double()
    y = y * valid
    if soft:
        position = (p * num_bins - 0.5).clamp(0, num_bins - 1)
        shares = (1 - (position[..., None] - torch.arange(num_bins)).abs()).clamp_min(0)
    else:
        index = bin_index(p.float(), max(num_bins, 1))
        shares = one_hot(index, max(num_bins, 1)).double()[..., :num_bins]
    shares = shares * valid[..., None]
    return VoxelSums(
        (loss * valid).sum(),
        (p * valid).sum(2),
        (p * y).sum(2),
        y.sum(2),
        valid.sum(),
        shares.sum(2),
        (shares * p[..., None]).sum(2),
        (shares * y[..., None]).sum(2),
    )

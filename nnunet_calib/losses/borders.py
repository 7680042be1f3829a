"""Soft labels at label borders only: elsewhere they are one-hot, and nothing needs to be computed.

The proportions of the classes in a neighbourhood, and smoothed labels, differ from the one-hot map only where a
neighbour has another label, in some 10 % of a patch's voxels. So instead of filtering C maps, the borders are looked
for on the one label map, and only their voxels get soft labels. Neighbours are counted for many classes at once: each
class has a few bits of a machine word, and the words of the neighbours are added.

`neighbourhood` filters whole maps, for every device and option; it is the reference in the tests.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from nnunet_calib.losses.neighbourhood import KernelSize, check_sigma, sizes_per_axis
from nnunet_calib.losses.targets import at_least_float32, check_shapes, label_error


@dataclass(frozen=True)
class Borders:
    """Labels, and what soft labels are where they are not one-hot.

    Attributes:
        labels: (B, N) int32, 0 in ignored voxels.
        valid: (B, 1, *spatial) mask of the voxels that count, None if all do.
        at: (C, k) where the k border voxels' entries lie in a flattened (B, C, N) tensor.
        at_true: (k,) where those of their own classes lie.
        soft: (C, k) the soft labels.
    """

    labels: Tensor
    valid: Tensor | None
    at: Tensor
    at_true: Tensor
    soft: Tensor

    @property
    def count(self) -> int:
        """Number of voxels that count."""
        return self.labels.numel() if self.valid is None else int(self.valid.sum())

    def entries(self) -> Tensor:
        """(B N,) where each voxel's own class lies in a flattened (B, C, N) tensor."""
        (images, voxels), classes = self.labels.shape, len(self.at)
        first = torch.arange(0, images * classes * voxels, classes * voxels)[:, None] + torch.arange(voxels)
        return first.add_(self.labels, alpha=voxels).view(-1)


def _mixed(labels: Tensor, sizes: Sequence[int]) -> Tensor:
    """Mask (*spatial) of the voxels whose neighbourhood holds more than one label."""
    low = high = labels
    for axis, size in enumerate(sizes):
        extremes, length = [], labels.shape[axis]
        for x, extreme in ((low, torch.minimum), (high, torch.maximum)):
            result = x.clone()
            for distance in range(1, min(size // 2, length - 1) + 1):
                for start in (0, distance):
                    part = result.narrow(axis, start, length - distance)
                    extreme(part, x.narrow(axis, distance - start, length - distance), out=part)
            extremes.append(result)
        low, high = extremes
    return low != high


def _add_neighbours(total: Tensor, x: Tensor, axis: int, distance: int) -> None:
    """Add to each entry of `total` the two of x at a distance along an axis; the ends are replicated."""
    length = x.shape[axis]
    inside = max(length - distance, 0)
    for start, end in ((distance, 0), (0, length - 1)):
        if inside:
            total.narrow(axis, start, inside).add_(x.narrow(axis, distance - start, inside))
        total.narrow(axis, 0 if start else inside, length - inside).add_(x.narrow(axis, end, 1))


def _neighbour_sums(x: Tensor, sizes: Sequence[int], *, by_distance: bool) -> dict[int, Tensor]:
    """Sums over each voxel's neighbourhood by squared distance, or all together under the key 0."""
    sums = {0: x}
    for axis, size in enumerate(sizes):
        wider = {key: part.clone() for key, part in sums.items()}
        for key, part in sums.items():
            for distance in range(1, size // 2 + 1):
                there = key + distance**2 * by_distance
                if there not in wider:
                    wider[there] = torch.zeros_like(x)
                _add_neighbours(wider[there], part, axis, distance)
        sums = wider
    return sums


def _weights(sizes: Sequence[int], sigma: float | None) -> dict[int, float]:
    """The weight of a neighbour by its squared distance (0 for all where they weigh the same), before any division."""
    if sigma is None:
        return {0: 1.0}
    squared = Counter(sum(d**2 for d in offset) for offset in product(*(range(-(k // 2), k // 2 + 1) for k in sizes)))
    weights = {distance: math.exp(-0.5 * distance / sigma**2) for distance in squared}
    # the voxel itself weighs as much as all its neighbours together
    return weights | {0: sum(squared[distance] * weights[distance] for distance in squared if distance)}


def _soft_labels(labels: Tensor, where: Tensor, classes: int, sizes: Sequence[int], sigma: float | None) -> Tensor:
    """Soft labels (C, k) of the voxels `where` of one image (*spatial), in which ignored voxels have the label C."""
    bits = math.prod(sizes).bit_length()
    dtype, together = (torch.int32, 31 // bits) if bits < 11 else (torch.int64, 63 // bits)
    weights, soft = _weights(sizes, sigma), torch.zeros((classes, len(where)), dtype=torch.float64)
    for first in range(0, classes, together):
        of_words = soft[first : first + together]
        shifts = bits * torch.arange(len(of_words), dtype=dtype)
        words = torch.zeros(classes + 1, dtype=dtype)
        words[first : first + len(shifts)] = torch.ones_like(shifts) << shifts
        x = words.index_select(0, labels.view(-1)).view(labels.shape)
        for distance, total in _neighbour_sums(x, sizes, by_distance=sigma is not None).items():
            count = total.view(-1).index_select(0, where) >> shifts[:, None]
            of_words.add_(count.bitwise_and_(2**bits - 1), alpha=weights[distance])
    return soft.div_(soft.sum(0))


@torch.no_grad()
def find_borders(
    logits: Tensor, target: Tensor, *, kernel_size: KernelSize, sigma: float | None, ignore_label: int | None
) -> Borders:
    """Soft labels of nnU-Net's training target: the proportions of the neighbourhood, or smoothed with `sigma`.

    Args:
        logits: (B, C, *spatial) on a CPU; gives the number of classes and, from float32 up, the dtype.
        target: labels (B, 1, *spatial).
        kernel_size: odd, for all axes or one per axis. The volume's border is replicated.
        sigma: standard deviation of the weights of `spatially_varying_labels` in voxels; None: all neighbours weigh the
            same.
        ignore_label: voxels with this label have no soft label and are no neighbours.

    Raises:
        ValueError: for shapes that do not belong together, for a label that has no class, and for a sigma below 0.1.
    """
    check_shapes(logits, target, regions=False, ignore_label=ignore_label)
    if sigma is not None:
        check_sigma(sigma)
    classes, dtype = logits.shape[1], at_least_float32(logits).dtype
    labels, valid, voxels = target[:, 0].int().contiguous(), None, target[0].numel()
    with_ignored = labels
    if ignore_label is not None and (ignored := labels == ignore_label).any():
        labels, with_ignored, valid = labels.masked_fill(ignored, 0), labels.masked_fill(ignored, classes), ~ignored
    low, high = labels.aminmax()
    if low < 0 or high >= classes:
        raise label_error(labels, classes, ignore_label)
    sizes = sizes_per_axis(kernel_size, labels.ndim - 1)
    small = with_ignored.to(torch.uint8 if classes < 256 else torch.int32)
    entries, own, soft = [], [], []
    for image, of_image in enumerate(with_ignored):
        mixed = _mixed(small[image], sizes)
        where = (mixed if valid is None else mixed & valid[image]).view(-1).nonzero()[:, 0]
        first = where + image * classes * voxels
        entries.append(first + voxels * torch.arange(classes)[:, None])
        own.append(first.add_(of_image.view(-1).index_select(0, where), alpha=voxels))
        soft.append(_soft_labels(of_image, where, classes, sizes, sigma).to(dtype))
    return Borders(
        labels.flatten(1), None if valid is None else valid[:, None], torch.cat(entries, 1), torch.cat(own),
        torch.cat(soft, 1),
    )

"""Soft labels at label borders only: elsewhere they are one-hot, and nothing needs to be computed.

The class proportions of a neighbourhood, and smoothed labels, differ from the one-hot map only where a neighbour has
another label, in some 10 % of a patch's voxels. So C maps need not be filtered: the borders are found on the label map,
and only their voxels get soft labels, of the two or three classes around them. Neighbours are counted for many classes
at once: each class has a few bits of a machine word, and the words of the neighbours are added. The last class has the
remaining neighbours; it gets no bits if a shorter word then suffices.

`neighbourhood` filters whole maps, for every device and option, and is the reference in the tests.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from nnunet_calib.losses.neighbourhood import KernelSize, sizes_per_axis
from nnunet_calib.losses.padded_rows import PaddedRow, distance_weights
from nnunet_calib.losses.targets import at_least_float32, label_error, positions


@dataclass(frozen=True)
class Borders:
    """Labels, and the soft labels where these are not one-hot.

    Attributes:
        labels: (B, N), 0 in ignored voxels.
        valid: (B, N) mask of the voxels that count, None if all do.
        where: for each image the (k,) border voxels.
        at: (m,) positions in a flattened (B, C, N) tensor of the border voxels' entries, at least of all with soft
            labels above 0; for a region (C = 1) of class 1.
        soft: (m,) the soft labels.
    """

    labels: Tensor
    valid: Tensor | None
    where: list[Tensor]
    at: Tensor
    soft: Tensor

    @property
    def of_batch(self) -> Tensor:
        """Return the border voxels (k,) of all images, by their index into all voxels of the batch."""
        return torch.cat([where + image * self.labels.shape[1] for image, where in enumerate(self.where)])

    @property
    def count(self) -> int:
        """Return the number of voxels that count."""
        return self.labels.numel() if self.valid is None else int(self.valid.sum())

    def own(self, index: Tensor, classes: int) -> Tensor:
        """Return the positions of the true-class entries of voxels, by their index (k,) into the batch's voxels."""
        voxels = self.labels.shape[1]
        label = self.labels.reshape(-1).index_select(0, index).long()
        return label.add_(index.div(voxels, rounding_mode="floor"), alpha=classes - 1).mul_(voxels).add_(index)


def _bits(row: PaddedRow) -> int:
    """Return the bits needed to count up to the neighbourhood size."""
    return math.prod(row.sizes).bit_length()


def _word(bits: int) -> torch.dtype | None:
    """Return the shortest type with so many bits below its sign; None if there is none."""
    return next(
        (dtype for dtype in (torch.int8, torch.int16, torch.int32, torch.int64) if bits < torch.iinfo(dtype).bits), None
    )


def _words(row: PaddedRow, of: range) -> Tensor:
    """Encode each label of the row as a word with a one in the field of its class, for the classes `of`.

    The next class after the first ones may use the bits left above their fields: its sums may overflow, but agree for
    equal neighbourhoods.
    """
    bits, highest = _bits(row), int(row.labels.max())
    used = bits * len(of)
    dtype = _word(used) or torch.int64
    if of.start == 0 and highest <= of.stop:
        return torch.ones_like(row.labels, dtype=dtype) << row.labels.to(dtype).mul_(bits)
    words = torch.zeros(max(highest + 1, of.stop), dtype=dtype)
    words[of.start : of.stop] = torch.ones(len(of), dtype=dtype) << torch.arange(0, used, bits, dtype=dtype)
    return words.index_select(0, row.labels.int())


def _mixed(row: PaddedRow, words: Tensor | None, around: dict[int, Tensor]) -> Tensor:
    """Return a number other than 0 for each voxel whose neighbourhood holds more than one label.

    It is computed from the words of all classes and their sums over neighbourhoods, if all fit into a word.
    """
    if words is None:
        low, high = (row.combine(row.labels, extreme)[0] for extreme in (torch.minimum, torch.maximum))
        return row.inside(high - low)
    total = reduce(torch.add, around.values())
    # a label that fills the neighbourhood is that of the voxel, counted as often as there are neighbours
    own = words.narrow(0, (len(words) - len(total)) // 2, len(total))
    return row.inside(total.sub(own, alpha=math.prod(row.sizes)))


def _add_soft_labels(
    soft: Tensor, row: PaddedRow, where: Tensor, sigma: float | None, around: dict[int, Tensor], fields: int
) -> None:
    """Add the unnormalised soft labels of the voxels `where` to `soft` (C, k).

    `around` is as for `_mixed`, and counts the first `fields` classes; if it is empty, all classes are counted here.
    """
    classes, bits, weights = len(soft), _bits(row), distance_weights(tuple(row.sizes), sigma)
    together = classes if around else max(63 // bits, 1)
    where = row.places(where)
    for first in range(0, classes, together):
        of_words = soft[first : first + together]
        counted = min(fields, len(of_words))
        sums = around or row.combine(_words(row, range(first, first + len(of_words))), by_distance=sigma is not None)
        for distance, total in sums.items():
            weight, number = weights[distance]
            shifts = torch.arange(0, bits * counted, bits, dtype=total.dtype)
            count = (total.index_select(0, where) >> shifts[:, None]).bitwise_and_(2**bits - 1)
            of_words[:counted].add_(count, alpha=weight)
            if counted < len(of_words):
                of_words[counted].add_(number - count.sum(0), alpha=weight)


@torch.no_grad()
def find_borders(
    logits: Tensor, target: Tensor, *, kernel_size: KernelSize, sigma: float | None, ignore_label: int | None
) -> Borders:
    """Return the soft labels of a training target: the proportions of the neighbourhood, or smoothed with `sigma`.

    Args:
        logits: (B, C, *spatial) on a CPU; gives the dtype, at least float32, and the number of classes. C = 1 is a
            region, of which only class 1 gets soft labels.
        target: labels (B, 1, *spatial).
        kernel_size: odd, for all axes or one per axis. The volume's border is replicated.
        sigma: standard deviation of the weights of `spatially_varying_labels` in voxels; None for equal weights.
        ignore_label: voxels with this label have no soft label and do not count as neighbours.

    Raises:
        ValueError: for a label that has no class.
    """
    heads, voxels, labels, valid = logits.shape[1], target[0].numel(), target[:, 0], None
    classes = max(heads, 2)
    if ignore_label is not None and (ignored := labels == ignore_label).any():
        labels, valid = labels.masked_fill(ignored, 0), ~ignored
    low, high = (float(x) for x in labels.aminmax())
    if not (low >= 0 and high < classes):  # checked before a conversion, which may wrap
        raise label_error(labels, classes, ignore_label)
    small = labels.to(torch.uint8 if classes < 256 else torch.int32)
    if valid is not None:
        small = small.masked_fill(~valid, classes)
    row = PaddedRow(small, sizes_per_axis(kernel_size, labels.ndim - 1))
    labels, valid = labels.flatten(1), None if valid is None else valid.flatten(1)

    words, around, fields = None, {}, classes + (valid is not None)
    if _word((fields - 1) * _bits(row)) != _word(fields * _bits(row)):
        fields -= 1  # shorter words: the last label has the remaining neighbours
    if _word(fields * _bits(row)) is not None:
        words = _words(row, range(fields))
        around = row.combine(words, by_distance=sigma is not None)
    mixed = torch.from_numpy(_mixed(row, words, around).view(labels.shape).numpy() != 0)  # several times as fast
    if valid is not None:
        mixed &= valid
    where = [positions(of_image) for of_image in mixed]
    of_batch, at = (torch.cat([x + image * n for image, x in enumerate(where)]) for n in (voxels, heads * voxels))
    soft = torch.zeros((classes, len(of_batch)), dtype=at_least_float32(logits).dtype)
    _add_soft_labels(soft, row, of_batch, sigma, around, fields)
    soft.div_(soft.sum(0))
    if heads == 1:
        return Borders(labels, valid, where, at, soft[1])
    at, soft = at.add(torch.arange(0, classes * voxels, voxels)[:, None]).view(-1), soft.view(-1)
    if classes > 2:  # around a border voxel there are at least two
        some = positions(soft > 0)
        at, soft = at.index_select(0, some), soft.index_select(0, some)
    return Borders(labels, valid, where, at, soft)

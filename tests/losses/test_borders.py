"""Soft labels at label borders: those of the maps filtered as a whole."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from nnunet_calib.losses.cpu.borders import Borders, find_borders
from nnunet_calib.losses.neighbourhood import label_counts, spatially_varying_labels

pytestmark = pytest.mark.pairs

IGNORE = 999
# the second and third have an axis that is shorter than the radius of a kernel of 5, or just as long
SHAPES = ((2, 9, 10, 11), (1, 1, 12, 7), (3, 2, 3, 12), (3, 14, 13), (1, 1, 9), (1, 1, 1), (2, 1, 1, 1))
KERNELS = {"2d": (1, 3, 5, (1, 3), (5, 3)), "3d": (1, 3, 5, (1, 3, 3), (3, 1, 5))}


def blocks(classes: int, shape: tuple[int, ...], ignore: bool = False) -> Tensor:
    """Labels (B, 1, *spatial) in blocks of three voxels, with a few voxels of others strewn in."""
    batch, *size = shape
    generator = torch.Generator().manual_seed(classes)
    target = torch.randint(0, classes, (batch, 1, *(-(-s // 3) for s in size)), generator=generator)
    for axis, length in enumerate(size, start=2):
        target = target.repeat_interleave(3, axis).narrow(axis, 0, length)
    strewn = torch.rand(target.shape, generator=generator) < 0.05
    target = torch.where(strewn, torch.randint(0, classes, target.shape, generator=generator), target)
    if ignore:
        target[torch.rand(target.shape, generator=generator) < 0.1] = IGNORE
        target[(0, 0, *[slice(4)] * len(size))] = IGNORE
    return target


def no_logits(target: Tensor, classes: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.zeros(len(target), classes, *target.shape[2:], dtype=dtype)


def maps_of(target: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """One-hot maps in float64, zero in ignored voxels, and the mask of the others."""
    valid = target != IGNORE
    return one_hot(torch.where(valid, target, 0)[:, 0].long(), classes).movedim(-1, 1).double() * valid, valid


def filtered(target: Tensor, classes: int, kernel_size, sigma: float | None) -> Tensor:
    """The reference: soft labels of all voxels, 0 in ignored ones."""
    maps, valid = maps_of(target, classes)
    if sigma is not None:
        return spatially_varying_labels(maps, valid, kernel_size, sigma) * valid
    counts, total = label_counts(maps, valid, kernel_size)
    return counts / total.clamp_min(1) * valid


def whole(borders: Borders, target: Tensor, classes: int) -> Tensor:
    """One-hot maps with the soft labels at borders put in."""
    maps, _ = maps_of(target, classes)
    hard = maps.flatten().index_fill(0, borders.own(borders.of_batch, classes), 0)
    return hard.index_put((borders.at,), borders.soft.double()).view(maps.shape)


def check(
    target: Tensor, classes: int, kernel_size, sigma: float | None, dtype: torch.dtype = torch.float64
) -> Borders:
    """Everything that is known about the borders is what it should be."""
    borders = find_borders(
        no_logits(target, classes, dtype), target, kernel_size=kernel_size, sigma=sigma, ignore_label=IGNORE
    )
    assert borders.soft.dtype == dtype
    expected = filtered(target, classes, kernel_size, sigma)
    tolerance = 1e-12 if dtype == torch.float64 else 5e-7
    torch.testing.assert_close(whole(borders, target, classes), expected, rtol=0, atol=tolerance)
    maps, valid = maps_of(target, classes)
    assert borders.count == valid.sum()
    assert (borders.valid is None) == bool(valid.all())
    if borders.valid is not None:
        assert torch.equal(borders.valid.view(valid.shape), valid)
    assert torch.equal(borders.labels.view(target.shape), torch.where(valid, target, 0))
    # of the voxels that count, those beside another label or an ignored voxel, each once
    counts, _ = label_counts(torch.cat([maps, (~valid).double()], 1), None, kernel_size)
    at_border = ((counts > 0).sum(1, keepdim=True) > 1) & valid
    found = torch.bincount(borders.own(borders.of_batch, classes), minlength=maps.numel()).view(maps.shape)
    assert torch.equal(found, (maps * at_border).long())
    voxels = at_border.flatten(1)
    assert all(torch.equal(of_image, x.nonzero()[:, 0]) for of_image, x in zip(borders.where, voxels, strict=True))
    # the entries with a soft label, each once; of two classes, both
    found = torch.bincount(borders.at, minlength=maps.numel()).view(maps.shape)
    entries = at_border.expand_as(found) if classes <= 2 else (counts[:, :-1] > 0) & at_border
    assert torch.equal(found, entries.long())
    return borders


@pytest.mark.parametrize("ignore", [False, True], ids=["labels", "ignore"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("sigma", [None, 0.1, 1.0, 3.0])
def test_shapes_and_kernels(shape, sigma, ignore):
    """Also where an axis is shorter than the kernel's radius, and for volumes of a single voxel."""
    target = blocks(4, shape, ignore)
    for kernel_size in KERNELS[f"{len(shape) - 1}d"]:
        check(target, 4, kernel_size, sigma)


@pytest.mark.parametrize("ignore", [False, True], ids=["labels", "ignore"])
@pytest.mark.parametrize("classes", [2, 4, 7, 13, 70, 255, 256, 300])
@pytest.mark.parametrize("kernel_size", [3, (3, 1, 5), 5, 11])
def test_classes(classes, kernel_size, ignore):
    """Few and many in one machine word, from one word to a hundred, and more labels than a byte can hold."""
    target = blocks(classes, (2, 6, 6, 5), ignore)
    target[0, 0, -2] = classes - 1
    for sigma in (None, 1.0):
        borders = check(target, classes, kernel_size, sigma, torch.float32)
        assert borders.at.numel()


@pytest.mark.parametrize("kernel_size", [(1, 3), (1, 7), (1, 15), (31, 33), (39, 53)], ids=str)
def test_full_words(kernel_size):
    """One voxel of another label: counts up to the largest, or just below, that the bits of a class can hold."""
    for label in range(7):
        target = torch.full((1, 1, 20, 20), label)
        target[0, 0, 0, 0] = (label + 1) % 7
        check(target, 7, kernel_size, None)
        check(target, 7, kernel_size, 2.0)


@pytest.mark.parametrize("classes", [255, 256, 257, 300])
@pytest.mark.parametrize("other", [1, 254, 255, 256, IGNORE])
def test_labels_that_are_one_byte_apart(classes, other):
    """0 and 256 are not the same, nor is 0 an ignored voxel."""
    target = torch.zeros(1, 1, 6, 6, dtype=torch.int16)
    target[..., 3:] = min(other, classes - 1) if other != IGNORE else IGNORE
    borders = check(target, classes, 3, None)
    assert borders.where[0].shape == borders.own(borders.of_batch, classes).shape == (6 if other == IGNORE else 12,)


@pytest.mark.parametrize("sigma", [None, 1.0])
@pytest.mark.parametrize("label", [0, 3, IGNORE])
def test_no_border(label, sigma):
    """One label, or nothing but ignored voxels."""
    borders = check(torch.full((2, 1, 5, 6, 7), label), 4, 3, sigma)
    assert borders.at.shape == borders.soft.shape == borders.own(borders.of_batch, 4).shape == (0,)
    assert borders.count == (0 if label == IGNORE else 2 * 5 * 6 * 7)


def test_by_hand():
    """A row 0 0 0 1 ignored: the third voxel has neighbours 0 0 1, the fourth 0 1."""
    borders = find_borders(
        torch.zeros(1, 2, 1, 5),
        torch.tensor([0, 0, 0, 1, 9])[None, None, None],
        kernel_size=(1, 3),
        sigma=None,
        ignore_label=9,
    )
    assert [of_image.tolist() for of_image in borders.where] == [[2, 3]]
    assert borders.at.tolist() == [2, 3, 5 + 2, 5 + 3]
    assert borders.own(borders.of_batch, 2).tolist() == [2, 5 + 3]
    torch.testing.assert_close(borders.soft, torch.tensor([2 / 3, 1 / 2, 1 / 3, 1 / 2]))
    assert borders.count == 4


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64, torch.float32], ids=str)
@pytest.mark.parametrize("strides", ["contiguous", "transposed", "expanded"])
@pytest.mark.parametrize("ignore", [False, True], ids=["labels", "ignore"])
def test_types_and_strides_of_the_target(dtype, strides, ignore):
    """Any type and any memory layout."""
    target = blocks(4, (2, 6, 9, 8), ignore)
    target[target == IGNORE] = 4
    if strides == "expanded":
        target = target[:1, :, :1].expand(2, 1, 6, 9, 8)
    expected, actual = target.clone(memory_format=torch.contiguous_format), target.to(dtype)
    if strides == "transposed":
        actual = actual.transpose(2, 4).contiguous().transpose(2, 4)
    elif strides == "expanded":
        actual = target[:1, :, :1].to(dtype).expand(2, 1, 6, 9, 8)
    assert torch.equal(actual, expected.to(dtype))
    assert actual.is_contiguous() == (strides == "contiguous")
    for sigma in (None, 1.0):
        of = [
            find_borders(no_logits(expected, 4), x, kernel_size=3, sigma=sigma, ignore_label=4)
            for x in (actual, expected)
        ]
        for name in ("at", "soft"):
            assert torch.equal(*(getattr(x, name) for x in of))
        assert torch.equal(*(x.labels.long() for x in of))
        assert torch.equal(*(x.valid for x in of)) if ignore else of[0].valid is of[1].valid is None
        assert torch.equal(*(x.own(x.of_batch, 4) for x in of))

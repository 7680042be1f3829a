"""The slice for pictures: which one, which part of it, what is kept, and how small it is."""

from __future__ import annotations

import re
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from nnunet_calib import CaseStatistics
from nnunet_calib.measuring.picture_slice import MARGIN, MAX_SIDE, RepresentativeSlice, slice_with_longest_border
from tests.worlds.measured_cases import IGNORE_LABEL, Case, make_case


def square(shape, *boxes):
    """Labels with a 1 in each box."""
    labels = np.zeros(shape, np.uint8)
    for box in boxes:
        labels[box] = 1
    return labels


def certain(labels, heads=2):
    """Probabilities that are right everywhere."""
    return np.stack([labels == c for c in range(heads)]).astype(np.float32)


def shown(labels, probabilities=None, **options) -> RepresentativeSlice:
    """The slice of a case."""
    return CaseStatistics.from_probabilities(
        certain(labels) if probabilities is None else probabilities, labels, **options
    ).shown


def test_longest_border_by_hand():
    """Slices with squares of side 2 (four voxels within and eight outside), 3 (8 and 12) and 3 again; then none."""
    labels = square((5, 9, 9), np.s_[1, 2:4, 2:4], np.s_[2, 2:5, 2:5], np.s_[3, 2:5, 2:5])
    assert slice_with_longest_border(labels) == 2
    assert slice_with_longest_border(labels[::-1]) == 1
    assert slice_with_longest_border(np.zeros((5, 4, 4))) == 2
    assert slice_with_longest_border(np.arange(5)[:, None, None].repeat(4, 1).repeat(4, 2)) == 2  # borders between only


def test_border_to_ignored_voxels_does_not_count():
    """A large ignored block has no border of its own."""
    labels = square((3, 9, 9), np.s_[2, 2:4, 2:4])
    labels[0, 1:8, 1:8] = IGNORE_LABEL
    assert slice_with_longest_border(labels, labels != IGNORE_LABEL) == 2
    assert slice_with_longest_border(labels) == 0
    assert shown(labels, ignore_label=IGNORE_LABEL).where[0].tolist() == [2, 3, 1]


def test_same_slice_for_every_model():
    """The prediction moves the crop but not the slice."""
    case = make_case(shape=(9, 12, 12))
    other = case.with_probabilities(case.probabilities[::-1])
    assert case.measure().shown.where[0].tolist() == other.measure().shown.where[0].tolist()


def test_content(case):
    """What is kept are the labels, probabilities and image at `index`, the probabilities to 1 / 510."""
    image = np.random.default_rng(0).normal(0, 500, (2, *case.labels.shape)).astype(np.float32)
    kept = case.measure(image=image).shown
    where = (slice(None), *kept.index)
    np.testing.assert_array_equal(kept.labels, case.labels[kept.index])
    np.testing.assert_allclose(kept.image, image[where], rtol=1e-3)
    error = np.abs(kept.probabilities / 255 - case.probabilities[where])
    assert 0 < error.max() <= 1 / 510 + 1e-6
    np.testing.assert_array_equal(kept.spacing, case.spacing[1:])
    types = [getattr(kept, f.name).dtype.name for f in fields(kept)]
    assert types == ["int64", "float64", "uint16", "uint8", "float16"]


def test_2d():
    """The whole image, cropped to its foreground; also as nnU-Net reads it, with a first axis of one."""
    labels = square((80, 90), np.s_[40:44, 50:60])
    kept = shown(labels, spacing=(0.5, 2.0))
    assert kept.where.tolist() == [[40 - MARGIN, 44 + MARGIN, 1], [50 - MARGIN, 60 + MARGIN, 1]]
    np.testing.assert_array_equal(kept.labels, labels[kept.index])
    of_one = shown(labels[None], spacing=(999, 0.5, 2.0))
    assert of_one.where.tolist() == [[0, 1, 1], *kept.where.tolist()]
    for name in ("labels", "probabilities", "spacing"):
        np.testing.assert_array_equal(getattr(of_one, name), getattr(kept, name))


@pytest.mark.parametrize("regions", [None, ((1,),)], ids=["labels", "regions"])
def test_crop_covers_truth_and_prediction(regions):
    """A false positive far from the truth is in the picture; one where nothing is annotated is not."""
    labels = square((60, 90), np.s_[20:22, 20:22])
    labels[50:, 80:] = IGNORE_LABEL
    p = square((60, 90), np.s_[30:32, 60:62], np.s_[55, 85]).astype(np.float32)
    p = p[None] if regions else np.stack([1 - p, p])
    kept = shown(labels, p, regions=regions, ignore_label=IGNORE_LABEL)
    assert kept.where.tolist() == [[4, 48, 1], [4, 78, 1]]


def test_no_foreground():
    """The slice stays whole."""
    kept = shown(np.zeros((5, 6, 7), int))
    assert kept.where.tolist() == [[2, 3, 1], [0, 6, 1], [0, 7, 1]]
    assert kept.labels.shape == (6, 7)
    assert kept.image.shape == (0, 6, 7)


def test_large_slice_is_thinned():
    """Every third voxel of a side of 1,200; the spacing is that of the voxels that are kept."""
    labels = square((700, 1600), np.s_[100:400, 100:1268])
    kept = shown(labels, spacing=(1.0, 0.25), image=labels[None])
    assert kept.where.tolist() == [[84, 416, 1], [84, 1284, 3]]
    assert kept.spacing.tolist() == [1.0, 0.75]
    assert max(kept.labels.shape) <= MAX_SIDE
    np.testing.assert_array_equal(kept.labels, labels[84:416, 84:1284:3])
    np.testing.assert_array_equal(kept.image[0], kept.labels)
    np.testing.assert_array_equal(kept.probabilities[1], 255 * kept.labels)


def test_outside_nnunets_crop():
    """Where there are no probabilities background is certain, as everywhere."""
    case, crop = make_case(), (slice(1, 6), slice(1, 6), slice(0, 4))
    filled = np.zeros_like(case.probabilities)
    filled[0] = 1
    filled[(slice(None), *crop)] = case.probabilities[(slice(None), *crop)]
    ours = case.with_probabilities(case.probabilities[(slice(None), *crop)]).measure(crop=crop).shown
    expected = case.with_probabilities(filled).measure().shown
    for f in fields(ours):
        np.testing.assert_array_equal(getattr(ours, f.name), getattr(expected, f.name))


def test_odd_values():
    """Ignored voxels may hold NaN, images more than float16 does, and tensors and low precision are fine."""
    case = make_case("labels+ignore")
    nonsense = case.with_probabilities(np.where(case.labels == IGNORE_LABEL, np.nan, case.probabilities))
    kept = nonsense.measure(image=np.full((1, *case.labels.shape), 1e9)).shown
    assert (kept.probabilities[:, kept.labels == IGNORE_LABEL] == 0).all()
    assert (kept.image == 65504).all()
    tensors = replace(case, probabilities=torch.as_tensor(case.probabilities).half())
    expected = case.with_probabilities(case.probabilities.astype(np.float16)).measure().shown
    np.testing.assert_array_equal(tensors.measure().shown.probabilities, expected.probabilities)


def test_nothing_to_show():
    """One axis, or no voxel."""
    assert Case(np.array([[0.5, 0.4]]), np.array([0, 1]), ((1,),)).measure().shown is None
    assert shown(np.zeros((0, 4, 4), int)) is None


def test_image_of_another_case():
    """It would be cut at the wrong place."""
    text = (
        "expected an image (channels, *spatial) on the grid of the labels, (7, 6, 5), got (7, 6, 5): is it of the same "
        "case?"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        make_case().measure(image=np.zeros((7, 6, 5)))


def test_merged_cases_have_none():
    """Each case's file has its own; a sum of one case keeps it."""
    case = make_case().measure()
    assert (case + case).shown is None
    assert CaseStatistics.merge([case]).shown is case.shown is not None
    assert case.with_temperature(2).shown is case.shown

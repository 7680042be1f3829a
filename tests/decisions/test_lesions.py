"""Lesions: connected components of structures, their confidences, and which of them meet."""

import numpy as np
import pytest
from scipy import ndimage

from nnunet_calib.decisions.lesions import Lesions, LesionSums
from nnunet_calib.results.heads import Heads

HEADS = Heads(("0", "1", "2"), ("background", "organ", "tumour"), None, 9)
REGIONS = Heads(("(1, 2)", "2"), ("whole", "core"), ((1, 2), (2,)), None)


def by_scipy(mask: np.ndarray) -> list[set[int]]:
    """Return the flat positions of each component, as another library finds them."""
    found, number = ndimage.label(mask, np.ones((3,) * mask.ndim))
    return [{*np.flatnonzero(found.ravel() == n)} for n in range(1, number + 1)]


def sets(lesions: Lesions, head: int) -> list[set[int]]:
    """Return the flat positions of each lesion of a structure."""
    return [{*lesions.positions[lesions.lesions == n]} for n in np.flatnonzero(lesions.structures == head)]


@pytest.mark.parametrize("shape", [(5, 7, 6), (1, 9, 8), (9, 8)])
@pytest.mark.parametrize("heads", [HEADS, REGIONS], ids=["labels", "regions"])
def test_components(shape, heads):
    """Those of SciPy, with corners connected; labels that touch are lesions of their own, regions overlap."""
    labels = np.random.default_rng(0).choice([0, 1, 2, 9 if heads is HEADS else 0], shape, p=[0.7, 0.1, 0.1, 0.1])
    lesions = Lesions.of_labels(labels.astype(np.float32), heads)  # as nnU-Net's readers return them
    masks = [labels == 0, labels == 1, labels == 2] if heads is HEADS else [labels > 0, labels == 2]
    masks[0] = masks[0] & (heads is not HEADS)
    for head, mask in enumerate(masks):
        assert sorted(map(sorted, sets(lesions, head))) == sorted(map(sorted, by_scipy(mask)))
    assert (np.diff(lesions.positions) >= 0).all()


def test_sums():
    """The sum, mean and largest p, and the centre, of each lesion, whatever the slabs."""
    rng = np.random.default_rng(1)
    labels = rng.choice(3, (6, 5, 4), p=[0.8, 0.1, 0.1])
    p = rng.dirichlet((1, 1, 1), labels.shape).transpose(3, 0, 1, 2).astype(np.float32)
    lesions = Lesions.of_labels(labels, HEADS)
    sums = LesionSums(lesions)
    for slab in (slice(0, 1), slice(1, 4), slice(4, 6)):
        sums.add(slab, p[:, slab])
    for n, head in enumerate(lesions.structures):
        where = lesions.positions[lesions.lesions == n]
        values = p[head].ravel()[where]
        assert sums.expected[n] == pytest.approx(values.sum())
        assert (sums.mean_p[n], sums.max_p[n]) == pytest.approx((values.mean(), values.max()))
        assert lesions.voxels[n] == len(where)
        centre = np.mean(np.unravel_index(where, labels.shape), axis=1)
        np.testing.assert_allclose(lesions.centroids[n], centre)


def test_meeting():
    """One shared voxel of the same structure is enough; a lesion can meet several."""
    predicted, true = np.zeros((2, 1, 4, 9), int)
    true[0, 0, :2], true[0, 0, 4:6], true[0, 3, 0] = 1, 1, 1  # three true lesions
    predicted[0, 0, 1:5] = 1  # meets the first two
    predicted[0, 3, 8] = 1  # meets none
    predicted[0, 3, 0] = 2  # another structure
    ours, theirs = Lesions.of_labels(predicted, HEADS), Lesions.of_labels(true, HEADS)
    pairs = [(sets(ours, 1)[a], sets(theirs, 1)[b]) for a, b in ours.meeting(theirs).T]
    assert pairs == [({1, 2, 3, 4}, {0, 1}), ({1, 2, 3, 4}, {4, 5})]


@pytest.mark.parametrize("heads", [HEADS, REGIONS], ids=["labels", "regions"])
def test_none(heads):
    """An empty label map has no lesions, and nothing fails."""
    empty = Lesions.of_labels(np.zeros((2, 3, 4), int), heads)
    sums = LesionSums(empty)
    sums.add(slice(0, 2), np.zeros((len(heads.keys), 2, 3, 4), np.float32))
    assert (len(empty), len(sums.mean_p), empty.centroids.shape) == (0, 0, (0, 3))
    assert empty.meeting(empty).shape == (2, 0)

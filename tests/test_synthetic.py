"""Synthetic cases: their labels really have the probabilities that they are said to have."""

from __future__ import annotations

import numpy as np
import pytest

from nnunet_calib.synthetic import distance_to_truth, synthetic_case, true_probabilities

SHAPES = pytest.mark.parametrize("shape", [(40, 32), (16, 20, 12)], ids=["2D", "3D"])


@SHAPES
def test_layout(shape):
    """Types, shapes, and probabilities that sum to 1."""
    case = synthetic_case(3, shape)
    assert case.image.shape == case.labels.shape == case.probabilities.shape[1:] == shape
    assert case.probabilities.shape[0] == 3
    assert (case.image.dtype, case.labels.dtype, case.probabilities.dtype) == (np.float32, np.uint8, np.float32)
    assert case.probabilities.min() >= 0
    np.testing.assert_allclose(case.probabilities.sum(0), 1, atol=1e-6)
    assert set(np.unique(case.labels)) <= {0, 1, 2}


@SHAPES
def test_deterministic(shape):
    """The seed decides; the probabilities are a function of the image alone."""
    first, again, other = (synthetic_case(seed, shape) for seed in (5, 5, 6))
    for name in ("image", "labels", "probabilities"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert not np.array_equal(first.image, other.image)
    np.testing.assert_array_equal(true_probabilities(first.image), first.probabilities)


@SHAPES
def test_labels_have_their_true_probabilities(shape):
    """Frequency minus probability is 0 in every bin, up to its sampling error over cases.

    The labels of one case depend on each other, so that only the cases are independent draws.
    """
    cases = [synthetic_case(seed, shape) for seed in range(80)]
    bins = np.array([0, 0.01, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 0.99, 1 + 1e-6])
    for c in range(3):
        excess, voxels = np.zeros((2, len(cases), len(bins) - 1))
        for i, case in enumerate(cases):
            p = case.probabilities[c].ravel().astype(np.float64)
            index = np.digitize(p, bins) - 1
            excess[i] = np.bincount(index, (case.labels == c).ravel() - p, len(bins) - 1)
            voxels[i] = np.bincount(index, minlength=len(bins) - 1)
        filled = voxels.sum(0) > 500
        assert filled.sum() >= 8
        mean = excess.sum(0)[filled] / voxels.sum(0)[filled]
        error = np.sqrt(np.square(excess).sum(0))[filled] / voxels.sum(0)[filled]
        assert (np.abs(mean) < 4 * error + 1e-4).all(), (c, mean / error)
        assert error.max() < 0.03  # the test sees errors of this size


def test_classes_mirror_each_other():
    """The negative image swaps bright and dark blobs; grey is background."""
    image = synthetic_case(0, (30, 30)).image
    np.testing.assert_allclose(true_probabilities(-image), true_probabilities(image)[[0, 2, 1]], atol=1e-6)
    assert true_probabilities(np.zeros((9, 9)))[0].min() > 0.99


def test_blobs():
    """Each class is there, makes up a part of the image worth measuring, and forms regions rather than speckles."""
    case = synthetic_case(0)
    for c in (1, 2):
        mask = case.labels == c
        assert 0.05 < mask.mean() < 0.4
        assert mask[1:][mask[:-1]].mean() > 2 * mask.mean()


def test_distance_to_truth_by_hand():
    """Half the sum of differences: .25 in one voxel, 0 in the other; 0 for the truth, 1 for its opposite."""
    truth = np.array([[0.5, 1.0], [0.25, 0.0], [0.25, 0.0]], np.float32)
    p = np.array([[0.25, 1.0], [0.5, 0.0], [0.25, 0.0]], np.float32)
    assert distance_to_truth(p, truth) == distance_to_truth(truth, p) == 0.125
    assert distance_to_truth(truth, truth) == 0
    certain = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert distance_to_truth(certain, 1 - certain) == 1

"""Synthetic cases whose true probabilities are known, for the demo and for tests.

An image holds bright blobs (class 1) and dark blobs (class 2) on grey. The probability of each class is a fixed
function of the smoothed image, so that a network can learn it, and the label map is one draw from these probabilities.
So the distance of predicted probabilities to the true ones, unknown in real datasets, can be measured here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.special import ndtr, softmax

from nnunet_calib.posthoc.logits import log_probabilities

_BLOB_SIZE = 4.0  # standard deviations of the filters, in voxels
_IMAGE_BLUR = 1.0
_DRAW_SIZE = 1.2
_NOISE = 0.2
_THRESHOLD = 1.0
_STEEPNESS = 8.0


@dataclass(frozen=True)
class SyntheticCase:
    """An image with its true probabilities and one draw from them.

    Attributes:
        image: (*spatial) float32.
        labels: (*spatial) uint8: 0, 1 or 2.
        probabilities: (3, *spatial) float32, summing to 1: the posterior of the labels given the image.
    """

    image: NDArray[np.float32]
    labels: NDArray[np.uint8]
    probabilities: NDArray[np.float32]


def _unit_field(rng: np.random.Generator, shape: Sequence[int], sigma: Sequence[float]) -> NDArray[np.float64]:
    """Return smooth Gaussian noise that is standard normal in every voxel."""
    impulse = np.zeros(shape)
    impulse[(0,) * len(shape)] = 1
    scale = np.sqrt(np.square(gaussian_filter(impulse, sigma, mode="wrap")).sum())
    field: NDArray[np.float64] = gaussian_filter(rng.standard_normal(shape), sigma, mode="wrap") / scale
    return field


def _along(axes: int, shape: Sequence[int], size: float) -> tuple[float, ...]:
    """Return a filter's size along each axis: 0 but for the last axes."""
    return (0.0,) * (len(shape) - axes) + (size,) * axes


def true_probabilities(
    image: NDArray[Any], threshold: float = _THRESHOLD, axes: int | None = None
) -> NDArray[np.float32]:
    """Return the posterior of the labels given an image, (3, *spatial).

    It is softmax(0, k (g - t), k (-g - t)) with the blurred image g, steepness k and threshold t.

    Args:
        image: (*spatial), standardised.
        threshold: t, where a class is as likely as background, in the image's standard deviations.
        axes: number of last axes along which the image is blurred; None means all.
    """
    g = gaussian_filter(image.astype(np.float64), _along(axes or image.ndim, image.shape, _IMAGE_BLUR), mode="wrap")
    logits = np.stack([np.zeros_like(g), _STEEPNESS * (g - threshold), _STEEPNESS * (-g - threshold)])
    return np.asarray(softmax(logits, axis=0), np.float32)


def synthetic_case(
    seed: int | Sequence[int],
    shape: Sequence[int] = (40, 40, 40),
    threshold: float = _THRESHOLD,
    axes: int | None = None,
) -> SyntheticCase:
    """Make one case.

    The labels are drawn with smooth noise, so that they form regions with plausible borders; in every voxel each label
    has exactly its true probability.

    Args:
        seed: the same seed gives the same case.
        shape: of the image, 2D or 3D.
        threshold: of `true_probabilities`; a higher one gives fewer and smaller blobs.
        axes: number of last axes along which blobs extend; 2 makes a stack of independent slices. None means all.
    """
    rng = np.random.default_rng(seed)
    blob_size, draw_size = (_along(axes or len(shape), shape, size) for size in (_BLOB_SIZE, _DRAW_SIZE))
    image = _unit_field(rng, shape, blob_size) + _NOISE * rng.standard_normal(shape)
    # nnU-Net standardises each image: as this one already is, the network's input still determines the probabilities
    image = ((image - image.mean()) / image.std()).astype(np.float32)
    probabilities = true_probabilities(image, threshold, axes)
    # the distribution function makes standard normal noise uniform in every voxel
    uniform = ndtr(_unit_field(rng, shape, draw_size))
    # with background in the middle, the noise moves borders but does not swap the two classes
    labels = np.where(uniform < probabilities[2], 2, np.where(uniform >= 1 - probabilities[1], 1, 0)).astype(np.uint8)
    return SyntheticCase(image, labels, probabilities)


def divergence_from_truth(probabilities: NDArray[Any], truth: NDArray[Any]) -> float:
    """Return the mean over voxels of the Kullback-Leibler divergence sum_c q_c log(q_c / p_c) in nats.

    By so much a model's expected NLL exceeds that of the true probabilities q. Zeros are clamped.

    Args:
        probabilities: p, (C, *spatial).
        truth: q, (C, *spatial).
    """
    p = log_probabilities(probabilities.astype(np.float64))
    q = log_probabilities(truth.astype(np.float64))
    return float((np.exp(q) * (q - p)).sum(0).mean())


def distance_to_truth(probabilities: NDArray[Any], truth: NDArray[Any]) -> float:
    """Return the mean over voxels of the total variation distance sum_c |p_c - q_c| / 2 of two (C, *spatial)."""
    return float(np.abs(probabilities.astype(np.float64) - truth).sum(0).mean() / 2)

"""Volume and Dice of the structures of a case as its calibrated probabilities expect them, without a ground truth."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_calib.decisions.risk_control import ratio


class ExpectedSums:
    r"""Sums over the voxels of a case, for each class or region.

    With p the probability of a structure c and S the voxels that the segmentation gives to it:

    .. math::
        V = \sum_i p_{ic}, \qquad D = \frac{2 \sum_{i \in S} p_{ic}}{|S| + V}

    If the probabilities are right, V is the expected volume. D is the expected overlap over the expected mean size, a
    close approximation of the expected Dice for structures of many voxels.

    Attributes:
        segmented: (heads,) voxels in the segmentation.
        expected: (heads,) sums of p.
        inside: (heads,) sums of p over the segmentation.
        entropy: (heads,) sums over the segmentation of the voxel's entropy in nats, as in the map of the entropy.
    """

    def __init__(self, heads: int) -> None:
        """Start without voxels."""
        self.segmented, self.expected, self.inside, self.entropy = np.zeros((4, heads))

    def add(self, p: NDArray[np.float32], weights: NDArray[np.float32] | None = None) -> None:
        """Add the probabilities of voxels.

        Args:
            p: (heads, n) probabilities.
            weights: (n,) number of voxels each one stands for; None means one.
        """
        self.expected += p.sum(1, dtype=np.float64) if weights is None else _weighted(p, weights)

    def add_segmented(
        self,
        p: NDArray[np.float32],
        segmented: NDArray[np.bool_],
        weights: NDArray[np.float32] | None = None,
        *,
        regions: bool,
    ) -> None:
        """Add voxels to the sums over the segmentation; those that it gives to no structure may be left out.

        Args:
            p: (heads, n) probabilities.
            segmented: (heads, n) whether the segmentation gives the voxel to the class or region.
            weights: (n,) number of voxels each one stands for; None means one.
            regions: whether heads are regions.
        """
        one = np.ones(p.shape[1], np.float32) if weights is None else weights
        self.segmented += _weighted(segmented, one)
        self.inside += _weighted(np.where(segmented, p, 0), one)
        self.entropy += _weighted(segmented, one * _entropy(p, regions=regions))

    @property
    def dice(self) -> NDArray[np.float64]:
        """Expected Dice of each structure; NaN where neither the segmentation nor the probabilities hold anything."""
        return ratio(2 * self.inside, self.segmented + self.expected)

    @property
    def mean_entropy(self) -> NDArray[np.float64]:
        """Mean entropy over the segmentation of each structure, in nats; NaN where it is empty, and for background."""
        return ratio(self.entropy, self.segmented)


def _weighted(values: NDArray[Any], weights: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(np.einsum("cn,n->c", values, weights, dtype=np.float64))


def _entropy(p: NDArray[np.float32], *, regions: bool) -> NDArray[np.float64]:
    """Return the entropy (n,) of probabilities (heads, n): of the classes, or the mean of those of the regions."""
    p = p.astype(np.float64)
    h = -p * np.log(np.where(p > 0, p, 1))
    if not regions:
        return np.asarray(h.sum(0))
    q = 1 - p
    return np.asarray((h - q * np.log(np.where(q > 0, q, 1))).mean(0))

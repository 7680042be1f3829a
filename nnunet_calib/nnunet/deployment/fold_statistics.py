"""Mean and disagreement of the folds of an ensemble, of which one at a time is in memory."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from nnunet_calib.measuring.volume import Probabilities, slab_slices
from nnunet_calib.nnunet.deployment.map_values import entropy


class FoldStatistics:
    r"""Running mean over folds of the probabilities p_f, and what the folds disagree by.

    .. math::
        I = H\Big(\frac{1}{F} \sum_f p_f\Big) - \frac{1}{F} \sum_f H(p_f), \qquad
        v_c = \frac{1}{F} \sum_f (p_{fc} - \bar p_c)^2

    I is the mutual information of the voxel's class and the fold (Houlsby et al., arXiv:1112.5745), in nats. Variances
    are summed by Welford's updates, which lose no digits where the folds agree.

    In memory are, in float32, C numbers per voxel for the mean, C for the variance and 1 for the entropy, as far as
    they are asked for.
    """

    def __init__(self, *, regions: bool, variance: bool = False, entropies: bool = False) -> None:
        """Start without folds.

        Args:
            regions: whether each channel is a region.
            variance: whether `variance` will be called.
            entropies: whether `mutual_information` will be.
        """
        self._folds, self._regions, self._wanted = 0, regions, (variance, entropies)
        self.mean = self._squares = self._entropy = np.zeros(0, np.float32)

    def add(self, probabilities: Probabilities) -> None:
        """Add the probabilities (C, *spatial) of a fold, slab by slab."""
        if not self._folds:
            shape, (variance, entropies) = tuple(probabilities.shape), self._wanted
            self.mean = np.zeros(shape, np.float32)
            self._squares = np.zeros(shape if variance else 0, np.float32)
            self._entropy = np.zeros(shape[1:] if entropies else 0, np.float32)
        self._folds += 1
        for slab in slab_slices(self.mean.shape[1:], len(self.mean)):
            p, mean = np.asarray(probabilities[:, slab], np.float32), self.mean[:, slab]
            difference = p - mean
            mean += difference / np.float32(self._folds)
            if len(self._squares):
                self._squares[:, slab] += difference * (p - mean)
            if len(self._entropy):
                self._entropy[slab] += entropy(torch.from_numpy(p), regions=self._regions).numpy()

    def variance(self, slab: slice) -> NDArray[np.float32]:
        """Return the variance (C, *spatial) over the folds, in a slab."""
        variance: NDArray[np.float32] = self._squares[:, slab] / np.float32(self._folds)
        return variance

    def mutual_information(self, slab: slice) -> NDArray[np.float32]:
        """Return the mutual information (1, *spatial) in nats, in a slab."""
        of_mean = entropy(torch.from_numpy(self.mean[:, slab]), regions=self._regions).numpy()
        # rounding alone makes it negative
        information: NDArray[np.float32] = of_mean - self._entropy[slab] / np.float32(self._folds)
        return information.clip(min=0)[None]

"""Histograms of log-odds against probabilities, voxel by voxel."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from nnunet_calib import CaseStatistics
from nnunet_calib.metrics.log_odds import EDGES, log_odds, log_odds_counts
from tests.worlds.measured_cases import IGNORE_LABEL, make_case


def test_against_probabilities(case):
    """Every label mode: each kept voxel once, with its weight, in the bin of log(p / (1 - p))."""
    counts = log_odds_counts(case.measure().sample)
    valid = case.labels != IGNORE_LABEL
    for of, p, inside in zip(counts, case.probabilities.astype(float), case.targets(), strict=True):
        for side in (False, True):
            odds = np.log(p / (1 - p))[valid & (inside == side)]
            expected = np.histogram(odds, EDGES)[0]
            # float16 may move a voxel at an edge into the neighbouring bin
            assert np.abs(np.cumsum(of[int(side)]) - np.cumsum(expected)).max() <= 2
            assert of[int(side)].sum() == len(odds)


def test_additive_and_weighted():
    """Counts of two cases add up, and a drawn sample stands for all voxels."""
    one, two = (make_case(seed=seed).measure(max_voxels=60) for seed in range(2))
    pooled = log_odds_counts((one + two).sample)
    np.testing.assert_allclose(pooled, log_odds_counts(one.sample) + log_odds_counts(two.sample))
    assert pooled.sum((1, 2)) == pytest.approx([420] * 3, rel=1e-5)


@pytest.mark.parametrize("margin", [0, 5, 12, 18])
def test_confident_voxels(margin):
    """The log-odds of a class of p near 1 are exact, too, where float16 has no digit of 1 - p left."""
    z = np.array([[margin, 0.0, -1.0]])
    saved = np.log(softmax(z, axis=1)).astype(np.float16)
    p = np.exp(log_softmax(z, axis=1))[0]
    expected = [np.log(p[c]) - np.log(np.delete(p, c).sum()) for c in range(3)]
    assert log_odds(saved, regions=False)[:, 0] == pytest.approx(expected, rel=2e-3, abs=2e-3)


def test_sure_voxels():
    """Probabilities of 0 and 1 lie in the outermost bins."""
    p = np.array([[1.0, 1.0], [0.0, 0.0]])[:, None]
    counts = log_odds_counts(CaseStatistics.from_probabilities(p, np.array([[0, 1]])).sample)
    assert counts[0, 0, -1] == counts[0, 1, -1] == counts[1, 0, 0] == counts[1, 1, 0] == 1
    assert counts.sum() == 4

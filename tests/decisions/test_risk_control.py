"""Conformal risk control: shares by hand, the choice against the definition, and the promise on data of known truth."""

import math

import numpy as np
import pytest

from nnunet_calib import CaseStatistics
from nnunet_calib.decisions.risk_control import (
    THRESHOLDS,
    controlled_index,
    fewest_cases,
    missed_shares,
    relative_sizes,
    wrong_shares,
)
from nnunet_calib.synthetic import synthetic_case

P = np.array([0.9, 0.6, 0.5, 0.2, 0.7, 0.1], np.float32)
TRUE = np.array([1, 1, 0, 1, 0, 0])


def image(p, labels, regions=None):
    """The histograms of a row of voxels."""
    probabilities = p[None, None] if regions else np.stack([1 - p, p])[:, None]
    return CaseStatistics.from_probabilities(probabilities, labels[None], regions=regions).histograms.scope("image")


@pytest.mark.parametrize(("regions", "head"), [(None, 1), (((1,),), 0)])
def test_shares(regions, head):
    """What a mask p >= t misses, what it has too much, and its size, counted voxel by voxel."""
    histograms = image(P, TRUE, regions)
    missed, wrong, sizes = (f(histograms)[head] for f in (missed_shares, wrong_shares, relative_sizes))
    assert missed.shape == wrong.shape == sizes.shape == THRESHOLDS.shape
    worst = 0.0
    for k in reversed(range(len(THRESHOLDS))):
        mask = P.astype(np.float64) >= THRESHOLDS[k]
        assert missed[k] == pytest.approx(1 - (mask & (TRUE == 1)).sum() / 3)
        worst = max(worst, (mask & (TRUE == 0)).sum() / mask.sum() if mask.any() else 0)
        assert wrong[k] == pytest.approx(worst)
        assert sizes[k] == pytest.approx(mask.sum() / 3)


def test_absent_structure():
    """Nothing can be missed, and all of a mask is wrong."""
    histograms = image(np.array([0.2, 0.7], np.float32), np.array([0, 0]))
    assert np.isnan(missed_shares(histograms)[1]).all()
    assert np.isnan(relative_sizes(histograms)[1]).all()
    wrong = wrong_shares(histograms)[1]
    assert (wrong[THRESHOLDS <= 0.69] == 1).all()
    assert (wrong[THRESHOLDS > 0.71] == 0).all()


@pytest.mark.parametrize("rising", [True, False])
def test_choice(rising):
    """The boldest threshold of those that keep the bound, as its definition says."""
    rng = np.random.default_rng(4)
    losses = np.sort(rng.random((30, 50)) ** 3, axis=1)
    losses = losses if rising else losses[:, ::-1]
    bound = (30 * losses.mean(0) + 1) / 31
    kept = np.flatnonzero(bound <= 0.2)
    assert 0 < len(kept) < 50
    assert controlled_index(losses.sum(0), 30, 0.2, rising=rising) == (kept.max() if rising else kept.min())
    assert controlled_index(losses.sum(0), 30, 1e-3, rising=rising) is None


@pytest.mark.parametrize("alpha", [0.5, 0.3, 0.1, 0.05, 0.01, 1 - 0.95])
def test_fewest_cases(alpha):
    """One case less, and not even a loss of zero keeps the promise."""
    fewest = fewest_cases(alpha)
    assert fewest == math.ceil(round(1 / alpha, 6) - 1)
    assert controlled_index(np.zeros(3), fewest, alpha, rising=True) == 2
    assert controlled_index(np.zeros(3), fewest - 1, alpha, rising=True) is None


@pytest.mark.parametrize(("shares", "rising", "level"), [(missed_shares, True, 0.9), (wrong_shares, False, 0.7)])
def test_promise(shares, rising, level):
    """Over 200 random splits of cases of known truth, predicted too surely, the mean loss of new cases keeps to it."""
    losses = []
    for seed in range(60):
        case = synthetic_case(seed, (12, 13, 12))
        sure = case.probabilities.astype(np.float64) ** 2
        statistics = CaseStatistics.from_probabilities((sure / sure.sum(0)).astype(np.float32), case.labels)
        losses.append(shares(statistics.histograms.scope("image"))[1])
    losses = np.array([loss for loss in losses if not np.isnan(loss).any()])
    assert len(losses) > 50
    rng, found = np.random.default_rng(0), []
    for _ in range(200):
        order = rng.permutation(len(losses))
        chosen, new = losses[order[:40]], losses[order[40:]]
        position = controlled_index(chosen.sum(0), 40, 1 - level, rising=rising)
        found.append(new[:, position].mean())
    # the mean over splits is known to its spread over splits, and the bound gives away 1 / (n + 1) and a bin at most
    error = np.std(found) / np.sqrt(200) * 3
    assert 1 - level - 1 / 41 * 2 - error < np.mean(found) < 1 - level + error

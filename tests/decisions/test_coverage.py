"""Whether promises hold on new cases: the synthetic truth of the demo, over 200 random splits of its cases."""

import numpy as np
import pytest

from nnunet_calib.decisions.conformal import conformal_interval
from nnunet_calib.decisions.thresholds import Goal
from nnunet_calib.measuring.histograms import Histograms
from nnunet_calib.synthetic import synthetic_case

CASES, CHOSEN_FROM, SPLITS = 200, 60, 200
STRUCTURES = (1, 2)


@pytest.fixture(scope="module")
def histograms():
    """Histograms of the whole image of each case, whose labels are drawn from its true probabilities."""
    found = []
    for seed in range(CASES):
        case = synthetic_case((7, seed), (12, 12, 12))
        p, labels = case.probabilities.reshape(3, -1), case.labels.ravel()
        found.append(Histograms.of(p, labels, np.zeros(labels.size, np.uint8)).scope("image"))
    return found


@pytest.fixture(scope="module")
def splits() -> np.ndarray:
    """For each split, which cases the decision is made from."""
    rng = np.random.default_rng(0)
    return np.argsort(rng.random((SPLITS, CASES)), axis=1) < CHOSEN_FROM


@pytest.mark.parametrize("goal", [Goal("recall", 0.9), Goal("recall", 0.8), Goal("precision", 0.8)], ids=str)
def test_thresholds(histograms, splits, goal):
    """The mean loss of new cases is at most what is promised and, for recall, hardly less.

    A loss without jumps lies between alpha - 2 / (n + 1) and alpha in the mean over splits (Angelopoulos et al., ICLR
    2024, theorem 2). That of precision is the worst one at higher thresholds, and may be smaller.
    """
    losses = np.stack([goal.losses(h) for h in histograms])[:, STRUCTURES]  # (cases, structures, thresholds)
    for structure in range(len(STRUCTURES)):
        of = losses[:, structure]
        of = of[~np.isnan(of[:, 0])]
        found = []
        for chosen in splits[:, : len(of)]:
            position = goal.position(of[chosen].sum(0), int(chosen.sum()))
            assert position is not None
            found.append(of[~chosen, position].mean())
        mean, error = np.mean(found), np.std(found) / np.sqrt(SPLITS)
        assert mean <= goal.alpha + 3 * error
        if goal.of == "recall":
            assert mean >= goal.alpha - 2 / (chosen.sum() + 1) - 3 * error


def test_volumes(histograms, splits):
    """The interval holds the true volume of at least 90 % of new cases, and of hardly more."""
    for structure in STRUCTURES:
        sums = np.array([[h.positives[structure].sum(), h.probability[structure].sum()] for h in histograms])
        residuals = np.log(sums[:, 0] / sums[:, 1])[sums[:, 0] > 0]
        covered = []
        for chosen in splits[:, : len(residuals)]:
            low, high = conformal_interval(residuals[chosen].tolist(), 0.9)
            covered.append(((residuals[~chosen] >= low) & (residuals[~chosen] <= high)).mean())
        mean, error = np.mean(covered), np.std(covered) / np.sqrt(SPLITS)
        assert 0.9 - 3 * error <= mean <= 0.9 + 2 / (chosen.sum() + 1) + 3 * error

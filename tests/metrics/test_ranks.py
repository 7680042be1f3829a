"""Rank correlation and ROC, with ties, against SciPy and by counting pairs."""

import itertools
import math

import numpy as np
import pytest
from scipy.stats import spearmanr

from nnunet_calib.metrics.ranks import auroc_of_scores, spearman


@pytest.mark.parametrize("seed", range(3))
def test_against_scipy(seed):
    """Values of one decimal have ties."""
    a, b = np.random.default_rng(seed).random((2, 40)).round(1)
    assert spearman(a, a + b) == pytest.approx(spearmanr(a, a + b).statistic)
    positive = b > 0.6
    pairs = [(x > y) + (x == y) / 2 for x, y in itertools.product(a[positive], a[~positive])]
    assert auroc_of_scores(a, positive) == pytest.approx(np.mean(pairs))


@pytest.mark.parametrize("values", [[], [1.0], [2.0, 2.0]])
def test_undefined(values):
    """Nothing to order."""
    assert math.isnan(spearman(values, values))
    assert math.isnan(auroc_of_scores(values, np.ones(len(values), bool)))

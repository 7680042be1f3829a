"""The Brier score of each class and its terms: against scikit-learn, against loops over voxels, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss

from nnunet_calib import CaseStatistics, calibration_errors
from nnunet_calib.measuring.fine_histogram import FINE_BINS
from nnunet_calib.measuring.scopes import SCOPES
from nnunet_calib.metrics.catalogue import BRIER_TERMS
from tests.worlds.measured_cases import Case, slow_scope


def score(errors, kind="", name="squared_error"):
    """The score that the terms of the same kind make up."""
    reliability, resolution, uncertainty, within = (errors[f"{kind}{term}"] for term in BRIER_TERMS)
    np.testing.assert_allclose(reliability - resolution + uncertainty + within, errors[name], rtol=1e-12, atol=1e-15)
    return errors[name]


def slow_terms(p, y, num_bins):
    """Terms of Murphy, and what Stephenson et al. add within bins: variance of p minus twice its covariance with y."""
    bins = np.minimum(np.floor(p * num_bins), num_bins - 1)
    reliability = resolution = within = 0.0
    for m in np.unique(bins):
        q, z = p[bins == m], y[bins == m]
        reliability += len(q) * (q.mean() - z.mean()) ** 2
        resolution += len(q) * (z.mean() - y.mean()) ** 2
        within += ((q - q.mean()) ** 2).sum() - 2 * ((q - q.mean()) * (z - z.mean())).sum()
    return {
        "reliability": reliability / len(p),
        "resolution": resolution / len(p),
        "within_bin": within / len(p),
        "uncertainty": y.mean() * (1 - y.mean()),
    }


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("num_bins", [5, 20])
def test_every_class(case, num_bins, scope):
    """Scores and terms of each head, within what the fine bins leave open: w^2 / 4 + 2 w times the score."""
    errors = calibration_errors(case.measure(), num_bins, scope)
    scores = score(errors)
    where = tuple(np.array(list(slow_scope(case, scope))).T)
    for c, (p, y) in enumerate(zip(case.probabilities.astype(np.float64), case.targets(), strict=True)):
        exact = np.mean((p[where] - y[where]) ** 2)
        bound = 1 / (4 * FINE_BINS**2) + 2 * exact / FINE_BINS
        assert 0 < abs(scores[c] - exact) <= bound
        if 0 < y[where].mean() < 1:
            assert brier_score_loss(y[where], p[where]) == pytest.approx(exact)
        for name, value in slow_terms(p[where], y[where], num_bins).items():
            assert errors[name][c] == pytest.approx(value, rel=1e-9, abs=bound if name == "within_bin" else 1e-12)


@pytest.mark.parametrize("scope", SCOPES)
def test_terms_of_all_classes(case, scope):
    """They make up the exact score, also where a class is absent: its terms count though its own value is NaN."""
    statistics = case.measure()
    errors = calibration_errors(statistics, 20, scope)
    assert score(errors, "brier_", "brier") > 0
    over_heads = np.mean if case.regions else np.sum
    for term in BRIER_TERMS[:-1]:
        assert errors[f"brier_{term}"] == pytest.approx(over_heads(errors[term]))
    absent = Case(np.array([[[0.7, 0.2]], [[0.2, 0.7]], [[0.1, 0.1]]]), np.array([[0, 1]])).measure()
    score(calibration_errors(absent), "brier_", "brier")
    assert calibration_errors(absent)["brier_reliability"] == pytest.approx(2 * (0.09 + 0.04) / 2 + 0.01)


def test_top_label(case):
    """Confidence against being right: the same identity."""
    errors = calibration_errors(case.measure())
    p = case.probabilities.astype(np.float64)
    where = tuple(np.array(list(slow_scope(case, "image"))).T)
    if case.regions:
        confidence = np.stack([np.maximum(q, 1 - q)[where] for q in p])
        right = np.stack([(q > 0.5)[where] == y[where] for q, y in zip(p, case.targets(), strict=True)])
    else:
        confidence, right = p.max(0)[where], (p.argmax(0) == case.labels)[where]
    exact = np.mean((confidence - right) ** 2)
    assert score(errors, "top_label_", "top_label_squared_error") == pytest.approx(exact, rel=2e-3)


def test_by_hand():
    """P = .2 and .4 in one bin with one positive, p = .9 alone and positive."""
    statistics = Case(np.array([[[0.2, 0.4, 0.9]]]), np.array([[0, 1, 1]]), regions=((1,),)).measure()
    errors = calibration_errors(statistics, 2)
    assert errors["squared_error"] == pytest.approx([(0.04 + 0.36 + 0.01) / 3])
    assert errors["reliability"] == pytest.approx([(2 * 0.2**2 + 0.1**2) / 3])
    assert errors["resolution"] == pytest.approx([(2 * (1 / 6) ** 2 + (1 / 3) ** 2) / 3])
    assert errors["uncertainty"] == pytest.approx([2 / 9])
    assert errors["within_bin"] == pytest.approx([(2 * 0.1**2 - 2 * 2 * 0.1 * 0.5) / 3])
    assert errors["brier"] == pytest.approx(errors["squared_error"][0])


@pytest.mark.parametrize("label", [0, 1])
def test_certain(label):
    """One class everywhere: no uncertainty, no resolution; certainly wrong costs 1, certainly right nothing."""
    p = np.stack([np.zeros((3, 2)), np.ones((3, 2))])
    errors = calibration_errors(CaseStatistics.from_probabilities(p, np.full((3, 2), label)))
    assert errors["top_label_squared_error"] == errors["top_label_reliability"] == 1 - label
    assert errors["top_label_resolution"] == errors["top_label_uncertainty"] == errors["top_label_within_bin"] == 0
    assert errors["brier_reliability"] == errors["brier"] == 2 * (1 - label)


def test_pooled_cases_share_one_frequency():
    """Resolution is relative to the frequency of all voxels together: it is not the mean over cases."""
    p = np.full((1, 1, 2), 0.3)
    a, b = (Case(p, np.array([labels]), regions=((1,),)).measure() for labels in ([0, 1], [1, 1]))
    assert calibration_errors(a + b)["uncertainty"] == pytest.approx([3 / 16])
    assert calibration_errors(a)["uncertainty"] == pytest.approx([1 / 4])

"""Uncertainty against error: AURC as a loop over voxels, AUROC against scikit-learn, and cases by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import entropy as entropy_of
from sklearn.metrics import roc_auc_score

from nnunet_calib import CaseStatistics, calibration_errors
from nnunet_calib.measuring.entropy_bins import ENTROPY_BINS, entropy_bin, first_edge
from nnunet_calib.measuring.fine_histogram import FINE_BINS
from nnunet_calib.measuring.scopes import SCOPES
from nnunet_calib.metrics.ranking import aurc, auroc, risk_coverage
from nnunet_calib.synthetic import synthetic_case
from tests.worlds.measured_cases import Case, slow_scope

RANKINGS = ("aurc", "confidence_auroc", "entropy_auroc")


def voxels_of(case: Case, scope: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Confidence, entropy and whether the top label is wrong of each voxel of a scope; regions pooled."""
    where = tuple(np.array([*slow_scope(case, scope)]).T)
    p = np.stack([row[where] for row in case.probabilities]).astype(np.float64)
    y = np.stack([row[where] for row in case.targets()])
    if case.regions:
        confidence, wrong = np.maximum(p, 1 - p), (p > 0.5) != y
        return confidence.ravel(), entropy_of(np.stack([p.ravel(), 1 - p.ravel()])), wrong.ravel()
    return p.max(0), entropy_of(p), ~y[p.argmax(0), np.arange(p.shape[1])]


def fine(values: np.ndarray) -> np.ndarray:
    """Return the fine bin of each value."""
    return np.minimum(np.floor(values * FINE_BINS), FINE_BINS - 1)


def tied(bins: np.ndarray, wrong: np.ndarray) -> float:
    """Return the share of the pairs of a wrong and a right voxel that lie in one bin."""
    pairs = sum(int(wrong[bins == b].sum()) * int((~wrong[bins == b]).sum()) for b in np.unique(bins))
    return pairs / (wrong.sum() * (~wrong).sum())


def slow_aurc(confidence: np.ndarray, wrong: np.ndarray) -> float:
    """Mean over k of the share of wrong voxels among the k most confident ones."""
    kept, found = 0, []
    for number, voxel in enumerate(np.argsort(-confidence, kind="stable"), start=1):
        kept += int(wrong[voxel])
        found.append(kept / number)
    return float(np.mean(found))


def random_order_aurc(bins: np.ndarray, wrong: np.ndarray) -> float:
    """`slow_aurc` where each voxel of a bin counts as the mean of the bin, which is the mean over all orders."""
    mean = np.array([wrong[bins == b].mean() for b in bins])
    order = np.argsort(-bins, kind="stable")
    return float(np.mean(np.cumsum(mean[order]) / np.arange(1, len(bins) + 1)))


def aurc_bound(bins: np.ndarray, wrong: np.ndarray) -> float:
    """Return the bound of docs/metrics.md on what the order of the voxels within bins changes."""
    bound, before = 0.0, 0
    for b in sorted({*bins}, reverse=True):
        here = wrong[bins == b]
        if here.any():
            bound += here.sum() * (np.log(1 + len(here) / before) if before else 1 + np.log(len(here) / here.sum()))
        before += len(here)
    return bound / len(bins)


@pytest.mark.parametrize("scope", SCOPES)
def test_small_cases(case, scope):
    """Every scope of every label mode: exact for the order of the bins, and within the ties of that of the voxels."""
    errors = calibration_errors(case.measure(), scope=scope)
    confidence, entropy, wrong = voxels_of(case, scope)
    bins = fine(confidence)
    assert errors["confidence_auroc"] == pytest.approx(roc_auc_score(wrong, -bins), abs=1e-12)
    assert abs(errors["confidence_auroc"] - roc_auc_score(wrong, -confidence)) <= tied(bins, wrong) / 2 + 1e-12
    assert errors["aurc"] == pytest.approx(random_order_aurc(bins, wrong), abs=1e-12)
    assert abs(errors["aurc"] - slow_aurc(confidence, wrong)) <= min(aurc_bound(bins, wrong), 2e-3)
    if case.regions:
        assert errors["entropy_auroc"] == errors["confidence_auroc"]
        assert abs(errors["entropy_auroc"] - roc_auc_score(wrong, entropy)) <= tied(bins, wrong) / 2 + 1e-12
    else:
        assert errors["entropy_auroc"] != errors["confidence_auroc"]
        assert errors["entropy_auroc"] == pytest.approx(roc_auc_score(wrong, entropy), abs=1e-3)


@pytest.mark.parametrize("sharpness", [1, 5])
def test_large_case(sharpness):
    """Where most voxels are confident, too, and their entropy is not computed."""
    made = synthetic_case(0)
    p = made.probabilities.astype(np.float64) ** sharpness
    p = (p / p.sum(0)).astype(np.float32)
    errors = calibration_errors(Case(p, made.labels).measure())
    wrong, entropies = (p.argmax(0) != made.labels).ravel(), entropy_of(p.astype(np.float64).reshape(len(p), -1))
    bins = entropy_bin(p.reshape(len(p), -1))
    assert np.count_nonzero(bins == 0) > (0 if sharpness == 1 else len(wrong) / 10)
    assert errors["entropy_auroc"] == pytest.approx(roc_auc_score(wrong, bins), abs=1e-12)
    assert abs(errors["entropy_auroc"] - roc_auc_score(wrong, entropies)) <= tied(bins, wrong) / 2 + 1e-6


def test_aurc_of_ties_is_the_mean_over_their_orders():
    """Two bins of three and four voxels: the mean over all permutations of each."""
    first, second = (0, 1, 0), (1, 1, 0, 1)
    found = [
        np.mean(np.cumsum([*a, *b]) / np.arange(1, 8))
        for a in itertools.permutations(first)
        for b in itertools.permutations(second)
    ]
    assert aurc(np.array([3.0, 4.0]), np.array([1.0, 3.0])) == pytest.approx(np.mean(found), rel=1e-12)


def row(p, labels) -> CaseStatistics:
    """One row of voxels of two classes, given p of the second one."""
    p = np.array(p)
    return Case(np.stack([1 - p, p])[:, None], np.array(labels)[None]).measure()


def test_by_hand():
    """By falling confidence right, wrong, right, wrong: risks 0, 1/2, 1/3, 1/2, and 3 of 4 pairs in order."""
    statistics = row([0.95, 0.1, 0.8, 0.6], [1, 1, 1, 0])
    errors = calibration_errors(statistics)
    assert errors["aurc"] == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    assert errors["confidence_auroc"] == errors["entropy_auroc"] == pytest.approx(3 / 4)
    curve = risk_coverage(statistics.histograms.scope("image"))
    np.testing.assert_allclose(curve.coverage, [1 / 4, 1 / 2, 3 / 4, 1])
    np.testing.assert_allclose(curve.risk, [0, 1 / 2, 1 / 3, 1 / 2])
    ties = calibration_errors(row([0.7, 0.3, 0.7], [1, 1, 0]))
    assert ties["confidence_auroc"] == ties["entropy_auroc"] == 0.5
    assert ties["aurc"] == pytest.approx(2 / 3)
    assert auroc(np.array([0.0, 2.0]), np.array([3.0, 0.0])) == 1
    assert auroc(np.array([2.0, 0.0]), np.array([0.0, 3.0])) == 0


@pytest.mark.parametrize(("labels", "area"), [([1, 1, 0], 0), ([0, 0, 1], 1)])
def test_one_kind_of_voxels(labels, area):
    """Without a wrong voxel, or without a right one, there is no pair to order."""
    errors = calibration_errors(row([0.9, 0.6, 0.2], labels))
    assert errors["aurc"] == pytest.approx(area)
    assert np.isnan([errors["confidence_auroc"], errors["entropy_auroc"]]).all()


def test_empty_scope():
    """Without a foreground voxel nothing is known of the foreground."""
    statistics = row([0.1, 0.7], [0, 0])
    assert np.isnan([calibration_errors(statistics, scope="foreground")[name] for name in RANKINGS]).all()
    assert risk_coverage(statistics.histograms.scope("foreground")).coverage.size == 0


def test_a_temperature_changes_the_order_of_more_than_two_classes():
    """At a high temperature the third class counts for more; two classes keep their order."""
    p = np.array([[0.6, 0.4, 0.0], [0.62, 0.19, 0.19]]).T[:, None]
    statistics = Case(p, np.array([[1, 0]])).measure()
    assert calibration_errors(statistics)["confidence_auroc"] == 1
    assert calibration_errors(statistics.with_temperature(3))["confidence_auroc"] == 0
    two = row([0.95, 0.1, 0.8, 0.6], [1, 1, 1, 0]).with_temperature(2.5)
    assert calibration_errors(two)["confidence_auroc"] == pytest.approx(3 / 4)


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_entropy_bins(classes):
    """From a sure class to equal probabilities; every confident voxel lies in the first bin, whatever the others."""
    edge = first_edge(classes)
    sure, even = np.eye(classes)[:, :1], np.full((classes, 1), 1 / classes)
    assert entropy_bin(sure).tolist() == [0]
    assert entropy_bin(even).tolist() == [ENTROPY_BINS - 1 if classes > 1 else 0]
    if classes > 1:
        p = np.full((classes, 1), (1 / FINE_BINS) / (classes - 1))
        p[0] = 1 - 1 / FINE_BINS
        assert entropy_of(p[:, 0]) == pytest.approx(edge)
        p[0] -= 0.002
        p[-1] += 0.002
        assert entropy_bin(p) > 0

"""The stated sampling error is that of repeated sampling."""

from __future__ import annotations

import numpy as np
import pytest

from nnunet_calib import CaseStatistics, calibration_errors
from nnunet_calib.measuring.scopes import SCOPES
from nnunet_calib.metrics.sampling_error import REPLICATES, replicates, rms_deviation, sampling_errors
from nnunet_calib.synthetic import synthetic_case
from tests.worlds.measured_cases import assert_same_histograms, make_case

# Sums over voxels, or nearly so; the others are absolute values, which noise can only raise.
UNBIASED = ("nll", "brier", "squared_error", "uncertainty", "top_label_squared_error", "brier_uncertainty")


def over_confident(seed, shape=(32, 32, 32)):
    """Probabilities and labels of a synthetic case, sharpened."""
    made = synthetic_case(seed, shape)
    p = made.probabilities.astype(np.float64) ** 1.7
    return p / p.sum(0), made.labels


def test_against_repeated_sampling(monkeypatch):
    """One case sampled 40 times: its values scatter around those of all voxels as each sample says of itself."""
    p, labels = over_confident(0)
    options = {"boundary_mm": 1.0}
    exact = CaseStatistics.from_probabilities(p, labels, max_voxels=10**6, **options).with_temperature(1.5)
    z = {name: [] for name in calibration_errors(exact)}
    for seed in range(40):
        monkeypatch.setattr("nnunet_calib.measuring.voxel_sample._SEED", seed)
        sampled = CaseStatistics.from_probabilities(p, labels, max_voxels=4000, **options)
        truth, ours = calibration_errors(exact), calibration_errors(sampled.with_temperature(1.5))
        stated = sampling_errors(sampled, 1.5)
        for name, values in z.items():
            # weights are float32: what no longer varies is not off by 0; and of a kind of voxel that none was kept of,
            # a single wrong one among many, no sample can tell
            unseen = 1e-6 if name in UNBIASED else 5e-4
            values.append((ours[name] - truth[name]) / (stated[name] + unseen * np.abs(truth[name])))
    for name, values in z.items():
        rms = np.sqrt(np.mean(np.square(values)))
        # others can come from a bin, or a kind of voxel, that hardly one was kept of: far off, but rarely
        low, high = (0.75, 1.3) if name in UNBIASED else (0, np.inf)
        assert low < rms < high, name
        # 40 draws of several numbers: a few beyond three are chance
        assert np.mean(np.abs(values) <= 3) >= 0.95, name


@pytest.mark.parametrize("scope", SCOPES)
def test_zero_where_all_voxels_are_kept(case, scope):
    """Nothing was sampled, nothing is uncertain; what is undefined stays so."""
    errors = sampling_errors(case.measure(), 1.3, 10, scope, min_count=2)
    expected = calibration_errors(case.measure().with_temperature(1.3), 10, scope, min_count=2)
    assert errors.keys() == expected.keys()
    for name, value in errors.items():
        np.testing.assert_array_equal(value, np.where(np.isnan(expected[name]), np.nan, 0))
    absent = make_case()
    absent.labels[absent.labels == 2] = 0
    assert np.isnan(sampling_errors(absent.measure(max_voxels=60))["ece"]).tolist() == [False, False, True]


def test_more_voxels_smaller_error():
    """Four times the voxels halve it, and more, since more of the strata that matter are then kept whole."""
    p, labels = over_confident(1)
    few, many = (CaseStatistics.from_probabilities(p, labels, max_voxels=n) for n in (1000, 4000))
    for name in ("nll", "brier"):
        assert 1.5 < sampling_errors(few)[name] / sampling_errors(many)[name] < 12


def test_replicates(case):
    """They count about as many voxels as the case has, none negatively, and the same in every run."""
    sample = case.measure(max_voxels=90).sample
    made = list(replicates(sample, 1.2))
    assert len(made) == REPLICATES
    for again, h in zip(replicates(sample, 1.2), made, strict=True):
        assert_same_histograms(again, h)
        assert min(h.counts.min(), h.positives.min(), (h.counts - h.positives).min()) > -1e-9
    total = sample.weights.sum()
    voxels = [h.voxels.sum() for h in made]
    assert np.std(voxels) < 0.1 * total
    assert np.mean(voxels) == pytest.approx(total, rel=0.05)


def test_merged_cases():
    """Errors of independent cases add up in squares: four cases have half the error of one."""
    cases = [CaseStatistics.from_probabilities(*over_confident(seed), max_voxels=2000) for seed in range(4)]
    alone = [float(sampling_errors(case)["nll"]) for case in cases]
    together = float(sampling_errors(CaseStatistics.merge(cases))["nll"])
    assert together == pytest.approx(np.sqrt(np.square(alone).sum()) / 4, rel=0.4)


def test_rms_deviation_by_hand():
    """From the value, not from the mean of the replicates; undefined ones are left out."""
    replicated = np.array([[1.0, 3.0, np.nan], [4.0, np.nan, np.nan]])
    np.testing.assert_allclose(rms_deviation(np.array([0.0, 1.0, 1.0]), replicated), [np.sqrt(8.5), 2.0, np.nan])
    assert np.isnan(rms_deviation(np.nan, np.array([1.0, 2.0])))

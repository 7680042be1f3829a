"""Several raters: errors against the frequencies of their labels, and a temperature fitted to these."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from nnunet_calib import CaseStatistics, calibration_errors, fit_temperature
from nnunet_calib.measuring.raters import common_number, label_maps, number_of_raters
from tests.worlds.measured_cases import assert_same_histograms

RATERS = 4
TRUE_TEMPERATURE = 1.7


def drawn(voxels=(10, 12, 9), seed=0):
    """Logits, probabilities that are too sure of themselves, and a label map of each rater."""
    rng = np.random.default_rng(seed)
    z = 3 * rng.standard_normal((3, *voxels)) + np.array([2.0, 0, -1]).reshape(3, 1, 1, 1)
    true = softmax(z / TRUE_TEMPERATURE, axis=0)
    raters = [(rng.random(voxels) > np.cumsum(true, 0)[:-1]).sum(0).astype(np.uint8) for _ in range(RATERS)]
    return z, softmax(z, axis=0), raters


def frequencies_of(raters):
    """(labels, *spatial)."""
    return np.mean([np.stack([labels == c for c in range(3)]) for labels in raters], axis=0)


def measured(p, raters):
    """The statistics of one case against each rater."""
    return CaseStatistics.of_raters(CaseStatistics.from_probabilities(p, labels, case="a") for labels in raters)


def test_errors_are_of_the_frequencies():
    """From the definitions with a frequency in the place of a label; one case with the voxels of each rater."""
    _, p, raters = drawn()
    f = frequencies_of(raters)
    statistics = measured(p, raters)
    errors = calibration_errors(statistics)
    assert statistics.cases == ("a",)
    assert statistics.histograms.voxels.sum() == RATERS * raters[0].size
    bins = np.minimum((p * 20).astype(int), 19)
    for c in range(3):
        found = [bins[c] == m for m in range(20) if (bins[c] == m).any()]
        gaps = [abs(f[c][m].mean() - p[c][m].mean()) for m in found]
        assert errors["ace"][c] == pytest.approx(np.mean(gaps))
        assert errors["ece"][c] == pytest.approx(np.average(gaps, weights=[m.sum() for m in found]))
    assert errors["nll"] == pytest.approx(-(f * np.log(p)).sum(0).mean())
    spread = (f * (1 - f)).sum(0).mean()  # of single labels about their frequency
    assert errors["brier"] == pytest.approx(((p - f) ** 2).sum(0).mean() + spread)


def test_temperature_is_of_the_frequencies():
    """The minimum of the cross-entropy with the frequencies; nearer to the truth than that of one rater."""
    z, p, raters = drawn((20, 20, 20))
    sample = measured(p, raters).sample
    fitted = fit_temperature(sample.logits, sample.labels, weights=sample.weights).temperature
    f = frequencies_of(raters)
    soft = minimize_scalar(lambda t: -(f * log_softmax(z / t, axis=0)).sum(0).mean(), bounds=(1, 3), method="bounded").x
    assert fitted == pytest.approx(soft, rel=1e-3)
    assert fitted == pytest.approx(TRUE_TEMPERATURE, rel=0.03)


def test_frequencies_instead_of_label_maps():
    """They give the same sums, whoever said what; of 8 bits too."""
    _, p, raters = drawn()
    f = frequencies_of(raters)
    whole = measured(p, raters).histograms.scope("image")
    for given in (f, f.astype(np.float32), np.rint(f * 255) / 255):
        statistics = CaseStatistics.from_probabilities(p, given, case="a")
        assert statistics.cases == ("a",)
        assert_same_histograms(statistics.histograms.scope("image"), whole)
        assert len(statistics.sample) == statistics.histograms.voxels.sum()
    one = CaseStatistics.from_probabilities(p, frequencies_of(raters[:1]))
    assert_same_histograms(one.histograms, CaseStatistics.from_probabilities(p, raters[0]).histograms)


def test_frequencies_of_regions():
    """Of the labels, background first, as for classes."""
    _, p, raters = drawn()
    regions = ((1, 2), (2,))
    q = np.stack([p[1] + p[2], p[2]]).astype(np.float32)
    statistics = CaseStatistics.from_probabilities(q, frequencies_of(raters), regions=regions)
    each = [CaseStatistics.from_probabilities(q, labels, regions=regions) for labels in raters]
    expected = CaseStatistics.of_raters(each).histograms
    assert_same_histograms(statistics.histograms.scope("image"), expected.scope("image"))


@pytest.mark.parametrize("raters", range(1, 17))
def test_number_of_raters(raters):
    """The smallest number whose labels have the frequencies, and label maps that have them."""
    votes = np.random.default_rng(raters).multinomial(raters, [0.5, 0.3, 0.2], 300).T.reshape(3, 15, 20)
    f = votes / raters
    number = number_of_raters(f)
    assert raters % number == 0
    maps = [*label_maps(f, number)]
    np.testing.assert_allclose(frequencies_of(maps), f, atol=1e-6)
    assert all((early <= late).all() for early, late in itertools.pairwise(maps))


def test_more_raters_than_the_frequencies_tell():
    """With the number of raters a case counts as often as the others, though its raters agree."""
    _, p, raters = drawn()
    statistics = CaseStatistics.from_probabilities(p, frequencies_of(raters[:1]), raters=RATERS)
    assert_same_histograms(statistics.histograms, measured(p, raters[:1] * RATERS).histograms)
    with pytest.raises(ValueError, match="expected frequencies among 3 raters, multiples of 1/3, got others"):
        CaseStatistics.from_probabilities(p, frequencies_of(raters), raters=3)


def test_common_number():
    """Of all cases; of too many raters a sentence."""
    assert common_number([1, 4, 2, 3]) == 12
    assert common_number([1, 1]) == 1
    with pytest.raises(ValueError, match=r"among up to 16 raters, got multiples of 1/4, 1/5 in different cases: round"):
        common_number([5, 4, 4])


def test_sample_size():
    """Raters share the budget of voxels, and each has one of every stratum."""
    _, p, raters = drawn()
    statistics = CaseStatistics.from_probabilities(p, frequencies_of(raters), max_voxels=400)
    assert len(statistics.sample) == 400
    assert statistics.sample.weights.sum() == pytest.approx(RATERS * raters[0].size)


def test_saved_and_loaded(tmp_path):
    """The file of a case holds them as those of any case."""
    _, p, raters = drawn()
    statistics = measured(p, raters)
    statistics.save(tmp_path / "a.npz")
    assert_same_histograms(CaseStatistics.load(tmp_path / "a.npz").histograms, statistics.histograms)


@pytest.mark.parametrize(
    ("frequencies", "message"),
    [
        ([0.5, 0.4], "expected frequencies of labels from 0 that sum to 1 in each voxel, got sums that are off by up"),
        ([1.5, -0.5], "expected frequencies of labels from 0 that sum to 1"),
        ([np.nan, 1.0], "expected frequencies of labels from 0 that sum to 1"),
        ([0.52, 0.48], "expected frequencies among up to 16 raters, multiples of 1/2, 1/3, ... or 1/16, got others"),
    ],
)
def test_refusals(frequencies, message):
    """In one sentence each."""
    values = np.array(frequencies)[:, None, None] * np.ones((1, 4, 5))
    with pytest.raises(ValueError, match=re.escape(message)):
        CaseStatistics.from_probabilities(np.full((2, 4, 5), 0.5), values)


def test_raters_of_different_cases():
    """They are no raters of one."""
    p, labels = np.full((2, 4, 5), 0.5), np.zeros((4, 5), int)
    parts = [CaseStatistics.from_probabilities(p, labels, case=name) for name in "ab"]
    with pytest.raises(ValueError, match="expected raters of one case, got those of a, b"):
        CaseStatistics.of_raters(parts)

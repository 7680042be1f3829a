"""What chance leaves of the errors of a perfectly calibrated model: exact sums, and labels drawn from the truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, softmax

from nnunet_calib import CaseStatistics, calibration_errors
from nnunet_calib.metrics.bin_sums import BinSums
from nnunet_calib.synthetic import synthetic_case
from tests.worlds.measured_cases import Case

NAMES = ("ece", "ace")


def exact_deviation(p: np.ndarray) -> float:
    """E|k - sum p| of the sum k of independent Bernoulli variables, from their exact distribution."""
    distribution = np.ones(1)
    for q in p:
        distribution = np.convolve(distribution, [1 - q, q])
    return float(distribution @ np.abs(np.arange(len(distribution)) - p.sum()))


def sums_of(p: np.ndarray, num_bins: int) -> BinSums:
    """The bins of one region."""
    return BinSums.of(Case(p[None], np.ones(p.shape, np.uint8), regions=((1,),)).measure(), num_bins)


@pytest.mark.parametrize("voxels", [1, 2, 3, 10, 100, 1000])
@pytest.mark.parametrize("p", [1e-4, 0.03, 0.3, 0.5, 0.97, 1 - 1e-4])
def test_equal_probabilities(p, voxels):
    """Then the formula is exact, far from a normal distribution too."""
    sums = sums_of(np.full(voxels, p), 10)
    filled = sums.counts > 0
    # float64 rounds, and a single voxel has the variance of its p
    expected = exact_deviation(np.full(voxels, p))
    np.testing.assert_allclose(sums.chance_deviations()[filled], expected, rtol=1e-5)
    if voxels == 1:
        assert expected == pytest.approx(2 * p * (1 - p))


@pytest.mark.parametrize("low", [0, 0.2, 0.4, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["even", "edges", "logarithmic"])
def test_probabilities_within_a_bin(low, kind):
    """Whatever they are in a bin of width 1/10, the mean absolute deviation is within 1 %."""
    rng = np.random.default_rng(3)
    for voxels in (2, 3, 5, 20, 100, 500):
        share = {
            "even": rng.random(voxels),
            "edges": rng.choice([1e-4, 1 - 1e-4], voxels),
            "logarithmic": 10 ** rng.uniform(-4, 0, voxels),
        }[kind]
        p = low + 0.1 * np.clip(share, 1e-6, 1 - 1e-6)
        sums = sums_of(p, 10)
        row = round(10 * low)
        assert sums.counts[0, row] == voxels
        assert sums.chance_deviations()[0, row] == pytest.approx(exact_deviation(p), rel=0.01)


def test_a_million_voxels():
    """The half-normal mean, with the variance of the probabilities rather than of their mean."""
    p = np.concatenate([np.full(10**6, 1e-6), np.full(10**4, 0.09)])
    variance = (p * (1 - p)).sum()
    assert sums_of(p, 10).chance_deviations()[0, 0] == pytest.approx(np.sqrt(2 / np.pi * variance), rel=2e-3)


def test_certain_voxels():
    """P = 0 and p = 1 leave nothing to chance; an empty bin neither."""
    p = np.array([[0.0, 1.0, 1.0]])
    errors = calibration_errors(Case(np.concatenate([1 - p, p]), np.array([0, 1, 1])).measure())
    assert errors["ece_by_chance"].tolist() == [0, 0]
    assert errors["top_label_ace_by_chance"] == 0
    nothing = calibration_errors(Case(p, np.array([9, 9, 9]), regions=((1,),), ignore_label=9).measure())
    assert np.isnan(nothing["ace_by_chance"]).all()


def draws(p: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A label of each voxel, independently drawn from the probabilities (C, n)."""
    return (rng.random(p.shape[1]) > np.cumsum(p, 0)[:-1]).sum(0).astype(np.uint8)


@pytest.mark.parametrize("voxels", [60, 3000])
@pytest.mark.parametrize("regions", [False, True])
def test_a_calibrated_model(voxels, regions):
    """Of labels drawn from the probabilities, ECE and ACE have the mean that is claimed, in each class."""
    rng = np.random.default_rng(voxels)
    z = 3 * rng.standard_normal((3, voxels)) + np.array([[2], [-1], [-2]])
    p = np.array([expit(z[1])]) if regions else softmax(z, axis=0)
    found: dict[str, list[np.ndarray]] = {}
    for _ in range(300):
        y = (rng.random(voxels) < p[0]).astype(np.uint8) if regions else draws(p, rng)
        case = Case(p, y, regions=((1,),) if regions else None)
        for name, values in calibration_errors(case.measure()).items():
            found.setdefault(name, []).append(values)
    for name in [f"{prefix}{name}" for prefix in ("", "top_label_") for name in NAMES]:
        values, claimed = np.array(found[name]), np.array(found[f"{name}_by_chance"])
        np.testing.assert_allclose(claimed, np.broadcast_to(claimed[0], claimed.shape), rtol=1e-12)
        error = values.std(0) / np.sqrt(len(values))
        assert (np.abs(values.mean(0) - claimed[0]) < 4 * error + 0.005 * claimed[0]).all(), name


def test_an_overconfident_model():
    """Its errors are far above what chance leaves of them."""
    rng = np.random.default_rng(1)
    p = softmax(2 * rng.standard_normal((3, 5000)), axis=0)
    y = draws(p, rng)
    sharp = p**3 / (p**3).sum(0)
    for probabilities, lowest, highest in ((p, 0.5, 2), (sharp, 3, np.inf)):
        errors = calibration_errors(Case(probabilities, y).measure())
        for name in NAMES:
            ratio = errors[name] / errors[f"{name}_by_chance"]
            assert ((lowest < ratio) & (ratio < highest)).all()


def test_neighbours_that_depend_on_each_other():
    """The synthetic labels form blobs: chance leaves the true probabilities more than independent voxels would."""
    errors = [
        calibration_errors(CaseStatistics.from_probabilities(case.probabilities, case.labels))
        for case in map(lambda seed: synthetic_case(seed, (24, 24, 24)), range(8))
    ]
    for name in NAMES:
        ratio = np.mean([e[name] / e[f"{name}_by_chance"] for e in errors], axis=0)
        assert (ratio > 1.3).all()


def test_from_a_voxel_sample():
    """Weights count as the voxels they stand for."""
    case = synthetic_case(0, (32, 32, 32))
    statistics = CaseStatistics.from_probabilities(case.probabilities, case.labels, max_voxels=6000)
    whole, sampled = (calibration_errors(s) for s in (statistics, statistics.with_temperature(1.0)))
    for name in NAMES:
        np.testing.assert_allclose(sampled[f"{name}_by_chance"], whole[f"{name}_by_chance"], rtol=0.03)


def test_bins_of_few_voxels():
    """`min_count` leaves the same bins out of ACE and of its part by chance; they add up over cases."""
    p = np.array([0.05, 0.65, 0.65])
    sums = sums_of(p, 10)
    assert sums.errors(2)["ace_by_chance"][0] == pytest.approx(exact_deviation(p[1:]) / 2)
    assert sums.errors(1)["ace_by_chance"][0] == pytest.approx((2 * 0.05 * 0.95 + exact_deviation(p[1:]) / 2) / 2)
    both = CaseStatistics.merge([Case(p[None], np.ones(3, np.uint8), regions=((1,),)).measure()] * 2)
    assert BinSums.of(both, 10).errors()["ece_by_chance"][0] == pytest.approx(
        (exact_deviation(np.full(2, 0.05)) + exact_deviation(np.full(4, 0.65))) / 6
    )

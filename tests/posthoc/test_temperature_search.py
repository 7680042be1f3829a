"""The search for the temperature: few passes, from anywhere, and the minimum over all voxels at the end."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp, softmax

from nnunet_calib import CaseStatistics, fit_temperature
from nnunet_calib.posthoc.temperature import TEMPERATURE_BOUNDS

pytestmark = pytest.mark.pairs

LOW, HIGH = TEMPERATURE_BOUNDS


def mean_nll(logits: np.ndarray, labels: np.ndarray, temperature: float, weights: np.ndarray | None = None) -> float:
    """In float64, independent of the package."""
    z = logits.astype(np.float64) / temperature
    return float(np.average(logsumexp(z, axis=1) - z[np.arange(len(z)), labels], weights=weights))


def scalar_search(logits: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> float:
    """The minimiser of the mean NLL over all voxels."""
    best = minimize_scalar(
        lambda log_t: mean_nll(logits, labels, math.exp(log_t), weights),
        bounds=(math.log(LOW), math.log(HIGH)),
        method="bounded",
        options={"xatol": 1e-9},
    )
    return math.exp(best.x)


def trained(true: float, n: int, seed: int = 0, borders: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Float32 logits of a network that is sure of most voxels, and labels drawn from softmax(z / T).

    With `borders`, a share of the voxels, it is unsure there, and elsewhere so sure that it is never wrong.
    """
    rng = np.random.default_rng(seed)
    logits = rng.standard_normal((n, 4))
    margins = np.where(rng.random(n) < borders, 0, 30) if borders else 14 * rng.random(n) ** 0.3
    logits[np.arange(n), rng.integers(0, 4, n)] += margins
    labels = (rng.random((n, 1)) > softmax(logits, axis=1).cumsum(1)[:, :-1]).sum(1)
    return (true * logits).astype(np.float32), labels


@pytest.mark.parametrize("borders", [0.0, 0.2])
@pytest.mark.parametrize("max_voxels", [100_000, 40_000], ids=["all voxels", "a sample"])
@pytest.mark.parametrize("seed", range(3))
def test_case_statistics_are_enough(seed, max_voxels, borders):
    """What a case keeps gives the temperature of all its voxels, to 1e-4 or, from a part, within its standard error.

    Where the voxels left out tell nothing about T, the part gives it to 2e-3.
    """
    shape = (45, 45, 45)
    logits, labels = trained(1.5, 45**3, seed, borders)
    expected = scalar_search(logits, labels)
    probabilities = softmax(logits, axis=1).T.reshape(4, *shape)
    sample = CaseStatistics.from_probabilities(probabilities, labels.reshape(shape), max_voxels=max_voxels).sample
    fit = fit_temperature(sample.logits, sample.labels, weights=sample.weights)
    error = abs(fit.temperature - expected)
    if max_voxels > len(labels):
        assert error < 1e-4
    else:
        assert len(sample) == max_voxels
        assert error < 3 * fit.standard_error
        assert error < 2e-3 or not borders


@pytest.mark.slow
@pytest.mark.parametrize("borders", [0.0, 0.05], ids=["sure and wrong somewhere", "unsure at borders"])
@pytest.mark.parametrize(("true", "flipped"), [(1.5, 0.0), (2.0, 0.0), (1.75, 1e-3)])
def test_thinned_tenfold(true, flipped, borders):
    """100,000 of a million voxels give the temperature of all, also where some labels are wrong that look sure."""
    rng, shape = np.random.default_rng(0), (100, 100, 100)
    logits, labels = trained(true, 10**6, 1, borders)
    some = rng.random(len(labels)) < flipped
    labels[some] = rng.integers(0, 4, some.sum())
    probabilities = softmax(logits, axis=1)
    expected = fit_temperature(np.log(np.maximum(probabilities, 1e-37)), labels)
    p = probabilities.T.reshape(4, *shape)
    case = CaseStatistics.from_probabilities(p, labels.reshape(shape), max_voxels=100_000)
    fit = fit_temperature(case.sample.logits, case.sample.labels, weights=case.sample.weights)
    assert len(case.sample) == 100_000
    assert abs(fit.temperature - expected.temperature) < min(2e-3, 3 * fit.standard_error)


@pytest.fixture
def _early_warm_start(monkeypatch):
    """Start from a part of the voxels where there are more than 2 x 20,000."""
    monkeypatch.setattr("nnunet_calib.posthoc.temperature._WARM_START", 20_000)


@functools.cache
def many_voxels(true: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Logits, labels, and the minimiser."""
    logits, labels = trained(true, 100_000)
    return logits, labels, scalar_search(logits, labels)


@pytest.mark.usefixtures("_early_warm_start")
@pytest.mark.parametrize(("true", "passes"), [(0.1, 3), (0.5, 2), (2.0, 2), (10.0, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_few_passes(true, passes, dtype):
    """After a start from a part of the voxels two passes are enough for 1e-6, or three far from T = 1."""
    logits, labels, expected = many_voxels(true)
    fit = fit_temperature(torch.from_numpy(logits).to(dtype), labels)
    assert fit.iterations <= passes
    assert fit.temperature == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("true", [0.1, 0.2, 0.5, 2.0, 10.0])
def test_few_passes_from_one(true):
    """Without it, from T = 1."""
    logits, labels = trained(true, 40_000)
    fit = fit_temperature(logits, labels)
    assert fit.iterations <= 5
    assert fit.temperature == pytest.approx(scalar_search(logits, labels), rel=1e-6)


@pytest.mark.usefixtures("_early_warm_start")
@pytest.mark.parametrize("share", [0.01, 0.0001])
def test_misleading_start(share):
    """A few voxels of huge weight that the part hardly sees: the result is that of all voxels."""
    logits, labels = trained(0.3, 100_000)
    heavy = np.random.default_rng(1).random(100_000) < share
    labels[heavy] = np.random.default_rng(2).integers(0, 4, heavy.sum())
    weights = np.where(heavy, 1e5, 1)
    fit = fit_temperature(logits.astype(np.float64), labels, weights=weights)
    assert fit.iterations <= 8
    assert fit.temperature == pytest.approx(scalar_search(logits, labels, weights), rel=1e-6)


@pytest.mark.parametrize("seed", range(40))
def test_wild_voxels(seed):
    """Few voxels, logits over many orders of magnitude, uneven weights: the minimum within the bounds, soon."""
    rng = np.random.default_rng(seed)
    n, heads = rng.integers(1, 40), rng.integers(2, 6)
    logits = rng.standard_normal((n, heads)) * 10 ** (4 * rng.random() - 1) * np.exp(2 * rng.standard_normal((n, 1)))
    labels = np.where(rng.random(n) < 0.7, logits.argmax(1), rng.integers(0, heads, n))
    weights = np.exp(3 * rng.standard_normal(n))
    fit = fit_temperature(logits, labels, weights=weights)
    assert fit.iterations <= 12
    best = mean_nll(logits, labels, scalar_search(logits, labels, weights), weights)
    assert mean_nll(logits, labels, fit.temperature, weights) <= best + 1e-9
    assert fit.nll_after == pytest.approx(mean_nll(logits, labels, fit.temperature, weights), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("right", [True, False], ids=["right", "wrong"])
def test_one_voxel(right, size, dtype):
    """A voxel that is right would be surer still, a wrong one flatter: a bound, unless it cannot get any better."""
    fit = fit_temperature(np.array([[size, 0, 0]], dtype), [0 if right else 1])
    if right and size == 1e4:
        assert (fit.temperature, fit.nll_before, fit.nll_after) == (1, 0, 0)
    else:
        assert fit.at_bound
        assert fit.temperature == (LOW if right else HIGH)
    z = float(dtype(size)) / fit.temperature
    assert fit.nll_after == pytest.approx(math.log1p(2 * math.exp(-z)) + (0 if right else z), rel=1e-6)


def test_small_nll_is_not_lost():
    """The NLL of sure voxels in float32: 1e-9 each, far below what 1 + 1e-9 keeps."""
    fit = fit_temperature(np.full((10, 2), [0.0, -20.7], np.float32), np.zeros(10, int))
    assert fit.nll_before == pytest.approx(math.log1p(math.exp(-20.7)), rel=1e-5)

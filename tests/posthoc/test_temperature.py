"""The fit of a temperature: against SciPy, and against what is known of the data."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import expit, logsumexp, softmax

from nnunet_calib import CaseStatistics, apply_temperature, fit_temperature
from nnunet_calib.posthoc.temperature import TEMPERATURE_BOUNDS, TemperatureFit, nll_at
from nnunet_calib.synthetic import synthetic_case
from tests.worlds.measured_cases import Case

pytestmark = pytest.mark.pairs

REGIONS = pytest.mark.parametrize("regions", [False, True], ids=["labels", "regions"])


class Voxels(NamedTuple):
    """Logits (n, C) and their labels."""

    logits: np.ndarray
    labels: np.ndarray
    regions: bool

    def fit(self, **options) -> TemperatureFit:
        """The fit to these voxels."""
        return fit_temperature(self.logits, self.labels, regions=self.regions, **options)

    def nll(self, temperature: float, weights: np.ndarray | None = None) -> float:
        """Mean negative log-likelihood, independent of the package."""
        z = self.logits.astype(np.float64) / temperature
        if self.regions:
            nll = (np.logaddexp(0, z) - self.labels * z).mean(1)
        else:
            nll = logsumexp(z, axis=1) - z[np.arange(len(z)), self.labels]
        return float(np.average(nll, weights=weights))


def draw(temperature: float, *, regions: bool = False, n: int = 5000, seed: int = 0, spread: float = 2.0) -> Voxels:
    """Voxels whose labels are drawn from softmax(z / T), or from sigmoid(z / T)."""
    rng = np.random.default_rng(seed)
    logits = spread * rng.standard_normal((n, 3))
    if regions:
        return Voxels(logits, rng.random((n, 3)) < expit(logits / temperature), True)
    cumulative = softmax(logits / temperature, axis=1).cumsum(1)
    return Voxels(logits, (rng.random((n, 1)) > cumulative[:, :-1]).sum(1), False)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weights"])
@pytest.mark.parametrize("true", [0.3, 1.0, 4.0])
@REGIONS
def test_agrees_with_scipy(regions, true, weighted):
    """The minimum of the mean NLL over all voxels, found by another method."""
    voxels = draw(true, regions=regions)
    weights = np.random.default_rng(1).exponential(size=len(voxels.logits)) if weighted else None
    bounds = tuple(math.log(bound) for bound in TEMPERATURE_BOUNDS)
    best = minimize_scalar(
        lambda t: voxels.nll(math.exp(t), weights), bounds=bounds, method="bounded", options={"xatol": 1e-9}
    )
    fit = voxels.fit(weights=weights)
    assert fit.temperature == pytest.approx(math.exp(best.x), rel=1e-6)
    assert fit.nll_after == pytest.approx(best.fun, rel=1e-10)
    assert fit.nll_before == pytest.approx(voxels.nll(1, weights), rel=1e-10)
    assert not fit.at_bound
    assert fit.iterations < 20
    # convex in 1 / T: nothing nearby or far away is better
    for factor in (0.25, 0.9, 0.999, 1.001, 1.1, 4):
        assert fit.nll_after <= voxels.nll(fit.temperature * factor, weights) + 1e-12
    assert fit.nll_after <= fit.nll_before


@pytest.mark.parametrize("true", [0.2, 0.7, 1.0, 2.5, 6.0])
@REGIONS
def test_recovers_a_known_temperature(regions, true):
    """Within four standard errors, and these are small."""
    fit = draw(true, regions=regions, n=20_000, seed=1, spread=4.0).fit()
    assert abs(fit.temperature - true) < 4 * fit.standard_error < 0.2 * true


def test_true_posterior_needs_none():
    """T = 1 for synthetic cases, within four standard errors with the cases as groups."""
    cases = [synthetic_case(seed, (48, 48)) for seed in range(20)]
    samples = [Case(case.probabilities, case.labels).measure().sample for case in cases]
    parts = [np.concatenate([getattr(s, name) for s in samples]) for name in ("logits", "labels", "weights")]
    fit = fit_temperature(*parts[:2], weights=parts[2], groups=np.repeat(np.arange(20), 48 * 48))
    assert abs(fit.temperature - 1) < 4 * fit.standard_error < 0.3


def test_constant_per_voxel_does_not_matter():
    """Logits or log-probabilities: the fit is the same."""
    voxels = draw(1.7)
    fit = voxels.fit()
    for constant in (100 * np.random.default_rng(2).standard_normal((5000, 1)), -logsumexp(voxels.logits, 1)[:, None]):
        shifted = voxels._replace(logits=voxels.logits + constant).fit()
        assert shifted.temperature == pytest.approx(fit.temperature, rel=1e-9)
        assert shifted.standard_error == pytest.approx(fit.standard_error, rel=1e-6)
        assert shifted.nll_after == pytest.approx(fit.nll_after, rel=1e-9)


@pytest.mark.parametrize("scale", [0.1, 5, 10])
@REGIONS
def test_scale_of_the_logits(regions, scale):
    """Wherever the search starts relative to the optimum, T follows the logits."""
    voxels = draw(1.3, regions=regions)
    fit, scaled = voxels.fit(), voxels._replace(logits=voxels.logits * scale).fit()
    assert scaled.temperature == pytest.approx(scale * fit.temperature, rel=1e-6)
    assert scaled.standard_error == pytest.approx(scale * fit.standard_error, rel=5e-4)
    assert scaled.nll_after == pytest.approx(fit.nll_after, rel=1e-10)


@REGIONS
def test_weights_are_repetitions(regions):
    """A voxel of weight k is k voxels; one of weight 0 is none."""
    voxels = draw(1.5, regions=regions, n=500)
    weights = np.arange(500) % 4
    repeated = voxels._replace(logits=voxels.logits.repeat(weights, 0), labels=voxels.labels.repeat(weights, 0)).fit()
    weighted = voxels.fit(weights=weights)
    for name in ("temperature", "nll_before", "nll_after"):
        assert getattr(weighted, name) == pytest.approx(getattr(repeated, name), rel=1e-9)


@REGIONS
def test_chunks(regions, monkeypatch):
    """Voxels are passed in chunks; the last one may be short."""
    voxels = draw(1.5, regions=regions, n=1000)
    options = {"weights": np.arange(1000) % 3, "groups": np.arange(1000) // 50}
    whole = voxels.fit(**options)
    monkeypatch.setattr("nnunet_calib.posthoc.likelihood._CHUNK", 300)
    chunked = voxels.fit(**options)
    for name in ("temperature", "standard_error", "nll_before", "nll_after"):
        assert getattr(chunked, name) == pytest.approx(getattr(whole, name), rel=1e-9)


@REGIONS
def test_types(regions):
    """Tensors and low precision: the fit of the numbers they hold."""
    voxels = draw(2.0, regions=regions, n=500)
    low = voxels.logits.astype(np.float16)
    expected = fit_temperature(low.astype(np.float64), voxels.labels, regions=regions)
    labels = voxels.labels.astype(np.uint8)
    fit = fit_temperature(low, labels, regions=regions)
    assert vars(fit) == pytest.approx(vars(expected), rel=1e-6)
    assert fit_temperature(torch.as_tensor(low), torch.as_tensor(labels), regions=regions) == fit


@REGIONS
def test_separable(regions):
    """Where the largest logit is always right, the sharper the better: the lower bound, and said so."""
    logits = np.random.default_rng(3).standard_normal((200, 3))
    fit = Voxels(logits, logits > 0 if regions else logits.argmax(1), regions).fit()
    assert fit.at_bound
    assert fit.temperature == pytest.approx(TEMPERATURE_BOUNDS[0])
    assert fit.nll_after < fit.nll_before


@REGIONS
def test_uninformative(regions):
    """Where every label comes with the same logits, the flatter the better: the upper bound, and said so."""
    logits = np.random.default_rng(4).standard_normal((50, 3)).repeat(3, 0)
    labels = np.tile(np.arange(3), 50)
    if regions:
        logits, labels = logits.repeat(2, 0), np.tile([[True] * 3, [False] * 3], (150, 1))
    fit = Voxels(logits, labels, regions).fit()
    assert fit.at_bound
    assert fit.temperature == pytest.approx(TEMPERATURE_BOUNDS[1])
    assert math.log(2 if regions else 3) < fit.nll_after < fit.nll_before


@pytest.mark.parametrize("constant", [0.0, 1.7, -2.3, "log p"])
@pytest.mark.parametrize("heads", [1, 2, 3, 4, 5, 7, 8])
def test_constant_logits(heads, constant):
    """No temperature changes the likelihood: T = 1, and nothing is known about it."""
    value = -math.log(heads) if constant == "log p" else constant
    fit = fit_temperature(np.full((50, heads), value), np.arange(50) % heads)
    assert fit.temperature == 1
    assert fit.standard_error == math.inf
    assert not fit.at_bound
    assert fit.nll_after == fit.nll_before == pytest.approx(math.log(heads))


@REGIONS
def test_standard_error(regions):
    """It is the spread of T over repeated draws: 250 draws know their spread to 4.5 percent."""
    fits = [draw(1.6, regions=regions, n=600, seed=seed).fit() for seed in range(250)]
    spread = np.std([fit.temperature for fit in fits], ddof=1)
    assert np.mean([fit.standard_error for fit in fits]) == pytest.approx(spread, rel=0.2)


@REGIONS
def test_standard_error_of_groups(regions):
    """Repeating each voxel four times halves the error of independent voxels; with groups it stays what it was."""
    voxels = draw(1.6, regions=regions, n=500)
    once = voxels.fit()
    four = voxels._replace(logits=voxels.logits.repeat(4, 0), labels=voxels.labels.repeat(4, 0))
    assert four.fit().standard_error == pytest.approx(once.standard_error / 2, rel=1e-6)
    grouped = four.fit(groups=np.arange(500).repeat(4))
    assert grouped.standard_error == pytest.approx(once.standard_error, rel=1e-6)
    assert grouped.temperature == pytest.approx(once.temperature, rel=1e-9)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weights"])
@REGIONS
def test_nll_at(regions, weighted):
    """The mean NLL at several temperatures, as computed without the package; voxels are passed in parts."""
    voxels = draw(2.0, regions=regions)
    weights = np.random.default_rng(1).exponential(size=len(voxels.logits)) if weighted else None
    tried = [0.3, 1.0, 2.5]
    found = nll_at(voxels.logits, voxels.labels, tried, weights=weights, regions=regions)
    np.testing.assert_allclose(found, [voxels.nll(t, weights) for t in tried], rtol=1e-9)


def test_nll_at_of_nothing():
    """No voxel has no mean."""
    with pytest.raises(ValueError, match=r"expected logits \(n, C\) with n > 0"):
        nll_at(np.zeros((0, 2)), np.zeros(0, int), [1.0])


@REGIONS
def test_logits_whose_differences_overflow(regions):
    """Voxels that are surely right change the mean NLL, and nothing else."""
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 3, (500, 2)).astype(np.float32)
    labels = rng.integers(0, 2, logits.shape if regions else 500)
    most = np.array([[3e38, -3e38]] * 500, np.float32)
    sure = np.array([[1, 0]] * 500) if regions else np.zeros(500, int)
    alone = fit_temperature(logits, labels, regions=regions)
    both = fit_temperature(np.concatenate([logits, most]), np.concatenate([labels, sure]), regions=regions)
    assert both.temperature == pytest.approx(alone.temperature, rel=1e-6)
    assert both.nll_after == pytest.approx(alone.nll_after / 2, rel=1e-6)


@pytest.mark.parametrize(
    ("labels", "groups", "said"),
    [
        ([0, 1, 2], None, "expected labels that are whole numbers from 0 to 1, got values from 0 to 2"),
        ([0, -1, 1], None, "from 0 to 1, got values from -1 to 1"),
        ([0, 0.5, 1], None, "expected labels that are whole numbers from 0 to 1, got values from 0.0 to 1.0"),
        (np.array([0, 1, 2**32 + 1], np.uint64), None, "got values from 0 to 4294967297"),
        ([[0, 1], [2, 1], [0, 0]], None, "expected labels that are whole numbers from 0 to 1, got values from 0 to 2"),
        ([0, 1, 1], [0, 1], r"expected groups \(3,\), one for each voxel, got \(2,\)"),
        ([0, 1, 1], [0, -1, 1], "expected groups that are whole numbers from 0, got values from -1 to 1"),
        ([0, 1, 1], [0, 0.5, 1], "expected groups that are whole numbers from 0, got values from 0.0 to 1.0"),
        ([0, 1, 1], ["a", "b", "b"], "expected an array of numbers, got one of <U1: number them with np.unique"),
        (["0", "1", "1"], None, "expected an array of numbers, got one of <U1"),
        ([0, 1, 1], [0, math.nan, 1], "expected groups that are whole numbers from 0, got values from nan to nan"),
    ],
)
def test_labels_and_groups(labels, groups, said):
    """Those that are none are named; PyTorch would speak of an index, or of nothing."""
    logits = np.random.default_rng(0).normal(size=(3, 2))
    with pytest.raises(ValueError, match=said):
        fit_temperature(logits, labels, groups=groups, regions=np.ndim(labels) == 2)


def test_large_numbers_of_groups():
    """As of dates or identifiers: only which voxels share one counts."""
    voxels = draw(1.6, n=300)
    groups = np.arange(300) // 3
    fits = [voxels.fit(groups=numbers) for numbers in (groups, 10**15 + groups[::-1] * 10**12)]
    assert fits[0].standard_error == pytest.approx(fits[1].standard_error, rel=1e-12)


@REGIONS
def test_other_byte_order(regions):
    """Arrays as they are read from files of other machines: the same numbers."""
    voxels = draw(1.6, regions=regions, n=300)
    weights, groups = np.arange(1.0, 301), np.arange(300) // 3

    def swapped(x):
        return x.astype(x.dtype.newbyteorder(">"))

    labels = voxels.labels.astype(np.int64)
    other = voxels._replace(logits=swapped(voxels.logits), labels=swapped(labels))
    assert other.fit(weights=swapped(weights), groups=swapped(groups)) == voxels.fit(weights=weights, groups=groups)
    p = np.moveaxis(softmax(voxels.logits.reshape(5, 6, 10, -1), axis=-1), -1, 0)
    scaled = apply_temperature(swapped(p), 2.0, regions=regions)
    np.testing.assert_array_equal(scaled, apply_temperature(p, 2.0, regions=regions))
    y = voxels.labels.reshape(5, 6, 10, -1)[..., 0].astype(np.int16)
    options = {"regions": [(c,) for c in range(1, len(p) + 1)] if regions else None}
    for kind in (np.float16, np.float32, np.float64):
        ours, theirs = (
            CaseStatistics.from_probabilities(order(p.astype(kind)), order(y), **options).histograms
            for order in (swapped, np.asarray)
        )
        np.testing.assert_array_equal(ours.counts, theirs.counts)
        np.testing.assert_array_equal(ours.nll, theirs.nll)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_sums(dtype):
    """Of classes they are 1, in each voxel that counts; of regions they may be anything."""
    p = np.random.default_rng(0).dirichlet(np.ones(3), (4, 5)).transpose(2, 0, 1).astype(dtype)
    y = np.zeros((4, 5), int)
    p[:, 1, 2] /= 2
    with pytest.raises(ValueError, match=r"of 3 classes that sum to 1 in each voxel, got a sum of 0\.5"):
        CaseStatistics.from_probabilities(p, y)
    y[1, 2] = 3
    assert CaseStatistics.from_probabilities(p, y, ignore_label=3).histograms.voxels.sum() == 19
    y[1, 2] = 0
    assert CaseStatistics.from_probabilities(p, y, regions=[(1,), (2,), (3,)]).histograms.voxels.sum() == 20

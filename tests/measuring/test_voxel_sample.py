"""The voxel sample: within its budget, and standing for all voxels without bias."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit, softmax

from nnunet_calib.measuring import volume as case_pass
from nnunet_calib.measuring import voxel_sample
from nnunet_calib.measuring.scopes import SCOPES
from nnunet_calib.measuring.volume import region_members
from nnunet_calib.measuring.voxel_sample import (
    NOT_VALID,
    STRATA,
    VoxelSample,
    choose_voxels,
    gradient_spread,
    strata_of,
)
from nnunet_calib.posthoc.temperature import fit_temperature, log_probabilities
from nnunet_calib.synthetic import synthetic_case
from tests.worlds.measured_cases import Case

pytestmark = pytest.mark.pairs

REGIONS = pytest.mark.parametrize("regions", [None, ((1,), (2,))], ids=["labels", "regions"])


def numbers(**sizes: int) -> np.ndarray:
    """That many voxels of each stratum, `h0=10` of the first, shuffled."""
    strata = np.repeat([int(name[1:]) for name in sizes], list(sizes.values())).astype(np.uint8)
    return np.random.default_rng(0).permutation(strata)


def spread(n: int = 2000) -> np.ndarray:
    """Strata of a trained network's voxels: each half as many as the one before, sure and right ones first."""
    return np.minimum(np.random.default_rng(2).geometric(0.5, n) * 3 - 3, STRATA - 1).astype(np.uint8)


def case_of(seed: int, regions=None, shape=(24, 24, 24)) -> Case:
    """A synthetic case, calibrated by construction."""
    case = synthetic_case(seed, shape)
    return Case(case.probabilities[1:] if regions else case.probabilities, case.labels, regions)


@pytest.mark.parametrize(
    ("chance", "stratum"),
    [
        (1, 0),
        (1 + 1e-5, 0),
        (1 - 2.0**-21, 0),
        (1 - 2.0**-20, 1),
        (1 - 2.0**-18, 1),
        (1 - 2.0**-17, 2),
        (1 - 2.0**-14, 3),
        (1 - 2.0**-11, 4),
        (1 - 2.0**-10, 5),
        (0.76, 12),
        (0.75, 13),
        (0.51, 13),
        (0.5, 14),
        (0.26, 14),
        (0.25, 15),
        (0.24, 15),
        (2.0**-19.5, 32),
        (2.0**-20, 33),
        (1e-38, 33),
        (0, 33),
        (-0.0, 33),
    ],
)
@pytest.mark.parametrize("label", [0, 1, "region", "other"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_stratum_by_powers_of_two(chance, stratum, label, dtype):
    """The edges on either side of p = 1/2, and what a softmax may give beyond; for regions, of the worse head."""
    p = np.array([[chance], [1 - chance]], dtype)
    if label == "region":
        p, members = np.array([[chance], [0]], dtype), np.array([[False, True], [False, False]])
        assert strata_of(p, np.array([1]), members).tolist() == [stratum]
    elif label == "other":
        p, members = np.array([[1], [chance]], dtype), np.array([[False, True], [False, True]])
        assert strata_of(p, np.array([1]), members).tolist() == [stratum]
    else:
        assert strata_of(p[::-1] if label else p, np.array([label])).tolist() == [stratum]


@pytest.mark.parametrize("max_voxels", [300, 301])
def test_small_case_is_kept_whole(max_voxels):
    """Every voxel in its place, standing for itself; what is not valid is left out."""
    strata = numbers(h0=100, h20=200)
    indices, weights = choose_voxels(strata, max_voxels)
    assert indices.tolist() == list(range(300))
    assert weights.tolist() == [1.0] * 300
    strata[::3] = NOT_VALID
    assert choose_voxels(strata, max_voxels)[0].tolist() == [i for i in range(300) if i % 3]


@pytest.mark.parametrize(
    ("sizes", "whole"),
    [
        ({"h0": 100_000, "h21": 50, "h33": 5}, {21, 33}),  # few, of much influence
        ({"h0": 100_000, "h13": 5_000, "h33": 100}, {33}),
        ({"h5": 1000}, set()),
        ({f"h{h}": 100 for h in range(STRATA)}, set()),
    ],
)
@pytest.mark.parametrize("max_voxels", [STRATA, 101, 999])
def test_budget_and_weights(sizes, whole, max_voxels):
    """The budget is used up, no stratum goes without, and each one's weights sum to its voxels."""
    strata = numbers(**sizes)
    indices, weights = choose_voxels(strata, max_voxels)
    assert len(indices) == len(weights) == max_voxels
    assert (np.diff(indices) > 0).all()
    kept = np.bincount(strata[indices], minlength=STRATA)
    for h, n in ((int(name[1:]), n) for name, n in sizes.items()):
        assert weights[strata[indices] == h].tolist() == [pytest.approx(n / kept[h])] * kept[h]
        assert kept[h] >= 1
        assert kept[h] == n or h not in whole or max_voxels < 999
    assert weights.sum(dtype=np.float64) == pytest.approx(len(strata), rel=1e-6)
    assert weights.dtype == np.float32


def test_more_of_those_that_pull_at_the_temperature():
    """Of strata of one size, the share kept rises to the wrong ones; a tenth is for all alike."""
    strata = numbers(**{f"h{h}": 1000 for h in range(STRATA)})
    kept = np.bincount(strata[choose_voxels(strata, 4000)[0]], minlength=STRATA)
    assert (np.diff(kept[:12]) >= 0).all()
    assert (np.diff(kept[14:]) > 0).all()
    assert kept[0] == pytest.approx(400 / STRATA, abs=2)
    assert kept[-1] > 20 * kept[0]


def test_small_budget_is_refused():
    """Each stratum needs a voxel."""
    with pytest.raises(ValueError, match=f"at least {STRATA}, one of each stratum, got {STRATA - 1}"):
        choose_voxels(numbers(h0=100), STRATA - 1)


def test_deterministic():
    """The same voxels at every call, and not simply the first ones."""
    strata = spread()
    first, second = choose_voxels(strata, 300), choose_voxels(strata, 300)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    halves = np.bincount(first[0] // 1000, minlength=2)
    assert abs(halves[0] - 150) < 4 * np.sqrt(300 / 4)


@pytest.mark.parametrize("chunk", [1, 64, 10_000])
@pytest.mark.parametrize("max_voxels", [STRATA, 300, 1300, 1700])
@pytest.mark.parametrize("ignored", [0, 0.3])
def test_equals_choice_from_indices(ignored, max_voxels, chunk, monkeypatch):
    """The voxels are looked up in chunks; written out, each stratum's indices are drawn from."""
    monkeypatch.setattr(voxel_sample, "_CHUNK", chunk)
    strata = spread()
    valid = np.random.default_rng(1).random(2000) >= ignored
    strata[~valid] = NOT_VALID
    chosen, weights = choose_voxels(strata, max_voxels)
    if valid.sum() <= max_voxels:
        expected = np.flatnonzero(valid)
    else:
        rng, kept = np.random.default_rng(20240306), np.bincount(strata[chosen], minlength=STRATA)
        groups = [np.flatnonzero(strata == h) for h in range(STRATA)]
        drawn = [rng.choice(g, k, replace=False, shuffle=False) for g, k in zip(groups, kept, strict=True)]
        expected = np.sort(np.concatenate(drawn))
    np.testing.assert_array_equal(chosen, expected)
    assert weights.sum() == pytest.approx(valid.sum(), rel=1e-6)


@pytest.fixture
def without_pilot(monkeypatch):
    """The budget is shared out by what is known of the strata before any gradient is."""
    monkeypatch.setattr(case_pass, "gradient_spread", lambda *_: None)


@REGIONS
@pytest.mark.usefixtures("without_pilot")
def test_of_a_case(regions):
    """A thinned case: the budget, the weights, and the voxels of its strata; values are those of the voxels."""
    case = case_of(0, regions)
    heads, n = case.probabilities.shape[0], case.labels.size
    p = case.probabilities.reshape(heads, -1)
    sample = case.measure(max_voxels=n * 9 // 10).sample
    chosen, _ = choose_voxels(strata_of_case(case), n * 9 // 10)
    assert len(sample) == len(chosen) == n * 9 // 10
    assert sample.weights.sum(dtype=np.float64) == pytest.approx(n, rel=1e-6)
    logit = np.log(p.clip(1e-30)) - (np.log1p(-p.clip(0, 1 - 2.0**-24)) if regions else 0)
    clear = p[:, chosen].T > 1e-6  # not yet clamped
    np.testing.assert_allclose(sample.logits[clear], logit[:, chosen].T[clear], rtol=1e-3, atol=1e-3)
    y = case.targets().reshape(heads, -1)[:, chosen] if regions else case.labels.ravel()[chosen]
    np.testing.assert_array_equal(sample.labels, y.T)
    np.testing.assert_array_equal(sample.scope_bits & 1, case.labels.ravel()[chosen] > 0)


@REGIONS
@pytest.mark.usefixtures("without_pilot")
def test_unbiased(regions):
    """Over cases, the sample's weighted NLL differs from that of all voxels by its sampling error alone."""
    scores = {scope: [] for scope in SCOPES}
    for seed in range(15):
        case = case_of(seed, regions)
        whole, thinned = case.measure(), case.measure(max_voxels=1500)
        assert whole.sample.weights.max() == 1
        nll = voxel_nll(whole.sample)
        strata = strata_of_case(case)
        kept = np.bincount(strata[choose_voxels(strata, 1500)[0]], minlength=STRATA)
        for scope, bit in zip(SCOPES, (0, 1, 2), strict=True):
            inside = (whole.sample.scope_bits & bit) == bit
            # each stratum is a simple random sample: the variance of its expanded sum
            variance = sum(
                n**2 * (1 - k / n) / k * np.var(np.where(inside, nll, 0)[strata == h], ddof=1)
                for h, (n, k) in enumerate(zip(np.bincount(strata, minlength=STRATA), kept, strict=True))
                if n > k
            )
            difference = thinned.sample.histograms().scope(scope).nll - nll[inside].sum()
            scores[scope].append(difference / np.sqrt(variance))
    for z in scores.values():
        assert np.abs(z).max() < 4
        assert abs(np.mean(z)) < 3.5 / np.sqrt(len(z))
        assert 0.5 < np.std(z) < 1.6  # the spread is as it should be, neither hidden nor exaggerated


@REGIONS
def test_gradient_spread(regions):
    """At the fitted T, voxel by voxel, by differences of the NLL; the root mean square where voxels are few."""
    sample = case_of(0, regions, (12, 12, 12)).measure().sample
    strata = np.where(np.arange(len(sample)) < 5, 7, np.arange(len(sample)) % 2).astype(np.uint8)
    fit = fit_temperature(sample.logits, sample.labels, regions=regions is not None)
    beta, step = 1 / fit.temperature, 1e-4
    steps = [replace(sample, logits=sample.logits.astype(np.float64) * (beta + s)) for s in (step, -step)]
    gradient = (voxel_nll(steps[0]) - voxel_nll(steps[1])) / (2 * step) * (2 if regions else 1)  # heads not averaged
    ours = gradient_spread(sample, strata)
    expected = np.zeros(STRATA)
    expected[:2] = [gradient[strata == h].std() for h in (0, 1)]
    expected[7] = np.sqrt(np.square(gradient[:5]).mean())
    np.testing.assert_allclose(ours, expected, rtol=1e-3)


def test_budget_follows_the_spread():
    """Of strata of one size, in its proportion, but for the tenth that all share."""
    strata = numbers(h3=10_000, h9=10_000)
    spread = np.where(np.arange(STRATA) == 3, 3.0, 1.0)
    kept = np.bincount(strata[choose_voxels(strata, 1000, spread)[0]], minlength=STRATA)
    assert kept[[3, 9]].tolist() == [pytest.approx(725, abs=2), pytest.approx(275, abs=2)]


@REGIONS
def test_temperature_where_all_voxels_are_kept(regions):
    """To 1e-5 of it, though half of the voxels are as sure as float32 can tell, and values are kept as float16."""
    case, is_regions = case_of(0, regions), regions is not None
    logits = 20 * log_probabilities(case.probabilities, regions=is_regions)
    logits += np.random.default_rng(0).standard_normal(logits.shape)
    sure = case.with_probabilities((expit(logits) if regions else softmax(logits, axis=0)).astype(np.float32))
    assert (sure.probabilities > 1 - 1e-7).mean() > 0.1
    z = log_probabilities(sure.probabilities, regions=is_regions).reshape(len(sure.probabilities), -1)
    truth = sure.targets().reshape(z.shape) if regions else sure.labels.ravel()
    sample = sure.measure().sample
    exact = fit_temperature(z.T, truth.T, regions=is_regions)
    ours = fit_temperature(sample.logits, sample.labels, regions=is_regions)
    assert ours.temperature == pytest.approx(exact.temperature, rel=1e-5)


@pytest.mark.parametrize("sharpness", [0.8, 3.0])
@REGIONS
def test_temperature_of_the_sample(regions, sharpness):
    """T of a tenth of the voxels is that of all to 4e-3 of it, and to a standard error of all."""
    case = case_of(0, regions, (48, 48, 48))
    logits = sharpness * log_probabilities(case.probabilities, regions=regions is not None)
    sharp = case.with_probabilities(expit(logits) if regions else softmax(logits, axis=0))
    whole, thinned = sharp.measure(max_voxels=10**6).sample, sharp.measure(max_voxels=11_000).sample
    exact, ours = (
        fit_temperature(s.logits, s.labels, weights=s.weights, regions=regions is not None) for s in (whole, thinned)
    )
    error = abs(ours.temperature - exact.temperature)
    assert error < 4e-3 * exact.temperature
    assert error < exact.standard_error


def strata_of_case(case: Case) -> np.ndarray:
    """Those of all voxels, at once."""
    p, labels = case.probabilities.reshape(len(case.probabilities), -1), case.labels.ravel()
    return strata_of(p, labels, None if case.regions is None else region_members(case.regions, int(labels.max())))


def voxel_nll(sample: VoxelSample) -> np.ndarray:
    """NLL of each voxel in a sample."""
    z = sample.logits.astype(np.float64)
    if sample.labels.ndim == 2:
        return (np.logaddexp(0, z) - sample.labels * z).mean(1)
    return np.logaddexp.reduce(z, axis=1) - np.take_along_axis(z, sample.labels[:, None].astype(int), 1)[:, 0]


def test_merge():
    """One after the other."""
    parts = [case_of(seed, shape=(6, 5)).measure().sample for seed in range(2)]
    merged = VoxelSample.merge(parts)
    assert len(merged) == 60
    np.testing.assert_array_equal(merged.logits, np.concatenate([part.logits for part in parts]))
    np.testing.assert_array_equal(merged.scope_bits, np.concatenate([part.scope_bits for part in parts]))

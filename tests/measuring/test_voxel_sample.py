"""The voxel sample: within its budget, and standing for all voxels without bias."""

from __future__ import annotations

import numpy as np
import pytest

from nnunet_calib import voxel_sample
from nnunet_calib.scopes import SCOPES
from nnunet_calib.synthetic import synthetic_case
from nnunet_calib.voxel_sample import UNSURE_BELOW, VoxelSample, choose_voxels
from tests.measuring.conftest import Case

REGIONS = pytest.mark.parametrize("regions", [None, ((1,), (2,))], ids=["labels", "regions"])


def flags(unsure: int, sure: int) -> np.ndarray:
    """That many unsure and sure voxels, shuffled."""
    return np.random.default_rng(0).permutation([True] * unsure + [False] * sure)


def case_of(seed: int, regions=None, shape=(24, 24, 24)) -> Case:
    """A synthetic case, calibrated by construction."""
    case = synthetic_case(seed, shape)
    return Case(case.probabilities[1:] if regions else case.probabilities, case.labels, regions)


@pytest.mark.parametrize("max_voxels", [300, 301])
def test_small_case_is_kept_whole(max_voxels):
    """Every voxel in its place, standing for itself."""
    indices, weights = choose_voxels(flags(100, 200), max_voxels)
    assert indices.tolist() == list(range(300))
    assert weights.tolist() == [1.0] * 300


@pytest.mark.parametrize(
    ("unsure", "sure", "max_voxels", "kept"),
    [
        (10, 990, 100, (10, 90)),  # all unsure voxels, and some of the others
        (75, 925, 100, (75, 25)),
        (500, 500, 100, (75, 25)),  # three quarters of the budget at most
        (990, 10, 100, (90, 10)),  # what the few sure voxels leave over
        (1000, 0, 100, (100, 0)),
        (0, 1000, 100, (0, 100)),
        (5, 5, 9, (5, 4)),
        (2, 2, 2, (1, 1)),
    ],
)
def test_budget_and_weights(unsure, sure, max_voxels, kept):
    """Who is kept; each group's weights are n / k, so that they sum to its voxels."""
    which = flags(unsure, sure)
    indices, weights = choose_voxels(which, max_voxels)
    assert len(indices) == len(weights) == max_voxels
    assert (np.diff(indices) > 0).all()
    for group, n, k in [(True, unsure, kept[0]), (False, sure, kept[1])]:
        of_group = weights[which[indices] == group]
        assert of_group.tolist() == [pytest.approx(n / max(k, 1))] * k
    assert weights.sum() == pytest.approx(unsure + sure, rel=1e-6)
    assert weights.dtype == np.float32


def test_deterministic():
    """The same voxels at every call, and not simply the first ones."""
    which = flags(500, 1500)
    first, second = choose_voxels(which, 300), choose_voxels(which, 300)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    halves = np.bincount(first[0] // 1000, minlength=2)
    assert abs(halves[0] - 150) < 4 * np.sqrt(300 / 4)


@pytest.mark.parametrize("chunk", [1, 64, 10_000])
@pytest.mark.parametrize("max_voxels", [2, 300, 1300, 1700])
@pytest.mark.parametrize("ignored", [0, 0.3])
def test_equals_choice_from_indices(ignored, max_voxels, chunk, monkeypatch):
    """The voxels are looked up in chunks; written out, each group's indices are drawn from."""
    monkeypatch.setattr(voxel_sample, "_CHUNK", chunk)
    valid = np.random.default_rng(1).random(2000) >= ignored
    unsure = flags(500, 1500) & valid
    groups = [np.flatnonzero(unsure), np.flatnonzero(valid & ~unsure)]
    chosen, weights = choose_voxels(unsure, max_voxels, valid if ignored else None)
    if valid.sum() <= max_voxels:
        expected = np.flatnonzero(valid)
    else:
        rng, sizes = np.random.default_rng(20240306), [int(unsure[chosen].sum()), int((~unsure[chosen]).sum())]
        drawn = [rng.choice(g, k, replace=False, shuffle=False) for g, k in zip(groups, sizes, strict=True)]
        expected = np.sort(np.concatenate(drawn))
    np.testing.assert_array_equal(chosen, expected)
    assert weights.sum() == pytest.approx(valid.sum(), rel=1e-6)


@REGIONS
def test_of_a_case(regions):
    """A thinned case: the budget, the weights, and all unsure voxels where they fit; values are those of the voxels."""
    case = case_of(0, regions)
    heads, n = case.probabilities.shape[0], case.labels.size
    p = case.probabilities.reshape(heads, -1)
    unsure = (np.maximum(p, 1 - p).min(0) if regions else p.max(0)) < UNSURE_BELOW
    sample = case.measure(max_voxels=n * 9 // 10).sample
    chosen, _ = choose_voxels(unsure, n * 9 // 10)
    assert len(sample) == len(chosen) == n * 9 // 10
    assert sample.weights.sum(dtype=np.float64) == pytest.approx(n, rel=1e-6)
    logit = np.log(p.clip(1e-30)) - (np.log1p(-p.clip(0, 1 - 2.0**-24)) if regions else 0)
    clear = p[:, chosen].T > 1e-6  # not yet clamped
    np.testing.assert_allclose(sample.logits[clear], logit[:, chosen].T[clear], rtol=1e-3, atol=1e-3)
    y = case.targets().reshape(heads, -1)[:, chosen] if regions else case.labels.ravel()[chosen]
    np.testing.assert_array_equal(sample.labels, y.T)
    np.testing.assert_array_equal(sample.scope_bits & 1, case.labels.ravel()[chosen] > 0)


@REGIONS
def test_unbiased(regions):
    """Over cases, the sample's weighted NLL differs from that of all voxels by its sampling error alone."""
    scores = {scope: [] for scope in SCOPES}
    for seed in range(15):
        case = case_of(seed, regions)
        whole, thinned = case.measure(), case.measure(max_voxels=1500)
        assert whole.sample.weights.max() == 1
        nll = voxel_nll(whole.sample)
        p = case.probabilities.reshape(len(case.probabilities), -1)
        unsure = (np.maximum(p, 1 - p).min(0) if regions else p.max(0)) < UNSURE_BELOW
        kept = unsure[choose_voxels(unsure, 1500)[0]]
        for scope, bit in zip(SCOPES, (0, 1, 2), strict=True):
            inside = (whole.sample.scope_bits & bit) == bit
            # each group is a simple random sample: the variance of its expanded sum
            variance = sum(
                group.sum() ** 2 * (1 - k / group.sum()) / k * np.var(np.where(inside, nll, 0)[group], ddof=1)
                for group, k in [(unsure, kept.sum()), (~unsure, (~kept).sum())]
            )
            difference = thinned.sample.histograms().scope(scope).nll - nll[inside].sum()
            scores[scope].append(difference / np.sqrt(variance))
    for z in scores.values():
        assert np.abs(z).max() < 4
        assert abs(np.mean(z)) < 3.5 / np.sqrt(len(z))
        assert 0.5 < np.std(z) < 1.6  # the spread is as it should be, neither hidden nor exaggerated


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

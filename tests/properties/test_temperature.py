"""Temperatures: what a fit may not depend on, and what scaling may not change."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.special import expit, softmax

from nnunet_calib import apply_temperature, fit_temperature
from nnunet_calib.measuring.voxel_sample import VoxelSample
from nnunet_calib.posthoc.many_fits import fit_jointly
from tests.properties.strategies import FEW, SAME

SEEDS = st.integers(0, 2**32 - 1)
REGIONS = st.booleans()


def drawn(seed: int, regions: bool, temperature: float, voxels: int = 400, heads: int = 3):
    """Logits, and labels drawn from them with a known temperature."""
    rng = np.random.default_rng(seed)
    logits = 3 * rng.standard_normal((voxels, heads))
    if regions:
        return logits, rng.random((voxels, heads)) < expit(logits / temperature)
    p = softmax(logits / temperature, axis=1).cumsum(1)
    return logits, (rng.random((voxels, 1)) > p).sum(1).clip(0, heads - 1)


@SAME
@given(seed=SEEDS, regions=REGIONS, factor=st.floats(0.25, 4))
def test_scaled_logits(seed, regions, factor):
    """Logits times a have the temperature times a, and the same NLL with it."""
    logits, labels = drawn(seed, regions, 1.0)
    fit, scaled = (fit_temperature(logits * a, labels, regions=regions) for a in (1, factor))
    assert scaled.temperature == pytest.approx(factor * fit.temperature, rel=1e-6)
    assert scaled.nll_after == pytest.approx(fit.nll_after, rel=1e-9)
    assert scaled.standard_error == pytest.approx(factor * fit.standard_error, rel=1e-3)


@SAME
@given(seed=SEEDS, regions=REGIONS, temperature=st.floats(0.5, 3))
def test_known_temperature(seed, regions, temperature):
    """The temperature that the labels were drawn with, within five of its standard errors."""
    fit = fit_temperature(*drawn(seed, regions, temperature, voxels=2000), regions=regions)
    assert abs(fit.temperature - temperature) < 5 * fit.standard_error
    assert fit.nll_after <= fit.nll_before


@SAME
@given(seed=SEEDS, regions=REGIONS, data=st.data())
def test_order_of_voxels_and_classes(seed, regions, data):
    """Neither matters, nor a constant that is added to all logits of a voxel."""
    logits, labels = drawn(seed, regions, 1.5)
    fit = fit_temperature(logits, labels, regions=regions)
    rng = np.random.default_rng(seed)
    voxels, order = rng.permutation(len(logits)), np.array(data.draw(st.permutations(range(3))))
    turned = labels[voxels][:, order] if regions else np.argsort(order)[labels[voxels]]
    moved = logits[voxels][:, order] + (0 if regions else rng.standard_normal((len(logits), 1)))
    assert fit_temperature(moved, turned, regions=regions).temperature == pytest.approx(fit.temperature, rel=1e-6)


@SAME
@given(seed=SEEDS, regions=REGIONS)
def test_weights_are_repetitions(seed, regions):
    """A voxel of weight 3 is three voxels, one of weight 0 is none."""
    logits, labels = drawn(seed, regions, 1.5)
    weights = np.random.default_rng(seed).integers(0, 4, len(logits))
    repeated = fit_temperature(logits.repeat(weights, 0), labels.repeat(weights, 0), regions=regions)
    weighted = fit_temperature(logits, labels, weights=weights.astype(float), regions=regions)
    assert weighted.temperature == pytest.approx(repeated.temperature, rel=1e-6)
    assert weighted.nll_after == pytest.approx(repeated.nll_after, rel=1e-9)


@SAME
@given(
    seed=SEEDS,
    regions=REGIONS,
    temperature=st.floats(0.05, 20),
    dtype=st.sampled_from(["float16", "float32", "float64"]),
)
def test_decisions_stay(seed, regions, temperature, dtype):
    """No temperature changes the order of the classes, or moves a region over its threshold."""
    logits, _ = drawn(seed, regions, 1.0, voxels=50)
    p = (expit(logits) if regions else softmax(logits, axis=1)).T.astype(dtype)
    scaled = apply_temperature(p, temperature, regions=regions)
    assert ((scaled >= 0) & (scaled <= 1)).all()
    if regions:
        assert ((scaled > 0.5) <= (p > 0.5)).all()  # a rounding may end on 1/2 itself
        assert ((scaled < 0.5) <= (p < 0.5)).all()
        return
    np.testing.assert_allclose(scaled.sum(0), 1, rtol=1e-5)
    best = np.take_along_axis(scaled, p.argmax(0)[None], 0)[0]
    assert (best == scaled.max(0)).all()


@FEW
@given(seed=SEEDS, first=st.floats(0.5, 2), second=st.floats(0.5, 2), regions=REGIONS)
def test_temperatures_multiply(seed, first, second, regions):
    """T1 after T2 is T1 T2, as long as nothing comes so near to 0 or 1 that it is clamped."""
    logits, _ = drawn(seed, regions, 1.0, voxels=30)
    p = (expit(logits / 3) if regions else softmax(logits / 3, axis=1)).T
    twice = apply_temperature(apply_temperature(p, first, regions=regions), second, regions=regions)
    np.testing.assert_allclose(twice, apply_temperature(p, first * second, regions=regions), rtol=1e-6, atol=1e-9)


@FEW
@given(seed=SEEDS, regions=REGIONS, data=st.data())
def test_joint_fits_are_fits(seed, regions, data):
    """Temperatures of sets of cases in common passes are those of the voxels of each set, however they overlap."""
    cases = []
    for number in range(4):
        logits, labels = drawn(seed + number, regions, 1 + number / 3, voxels=100)
        labels = labels if regions else labels.astype(np.uint16)
        weights = np.full(len(logits), 1 + number, np.float32)
        cases.append(VoxelSample(logits.astype(np.float16), labels, weights, np.zeros(len(logits), np.uint8)))
    sets = data.draw(st.lists(st.sets(st.integers(0, 3), min_size=1), min_size=1, max_size=4))
    found = fit_jointly(lambda: iter(cases), dict(enumerate(sets)))
    for key, members in enumerate(sets):
        merged = VoxelSample.merge([cases[i] for i in sorted(members)])
        groups = np.repeat(np.arange(len(members)), 100)
        fit = fit_temperature(merged.logits, merged.labels, weights=merged.weights, regions=regions, groups=groups)
        assert found[key].temperature == pytest.approx(fit.temperature, rel=1e-6)
        assert found[key].nll_after == pytest.approx(fit.nll_after, rel=1e-6)  # in float32
        if len(members) > 1:  # of one case it is 0, but for rounding
            assert found[key].standard_error == pytest.approx(fit.standard_error, rel=1e-3)


@FEW
@given(logit=st.floats(-50, 50), label=st.integers(0, 1))
def test_one_voxel(logit, label):
    """The smallest data: a bound where more or less sureness is always better, T = 1 where it makes no difference."""
    assume(abs(logit) > 1e-3)
    fit = fit_temperature(torch.tensor([[logit, 0.0]]), torch.tensor([label]))
    assert fit.at_bound
    right = (logit > 0) == (label == 0)
    assert fit.temperature == (0.05 if right else 20) or math.exp(-abs(logit) / 0.05) < 1e-30
    nothing = fit_temperature(torch.zeros(1, 2), torch.tensor([label]))
    assert (nothing.temperature, nothing.standard_error) == (1, math.inf)

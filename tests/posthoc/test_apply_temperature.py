"""What a temperature does to probabilities: softmax(z / T) without the logits, and no decision changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax

from nnunet_calib import apply_temperature
from nnunet_calib.posthoc.temperature import log_probabilities

REGIONS = pytest.mark.parametrize("regions", [False, True], ids=["labels", "regions"])
TEMPERATURES = pytest.mark.parametrize("temperature", [0.3, 1, 2.5, 20])
LOGITS = 2 * np.random.default_rng(0).standard_normal((3, 6, 5, 4))


def probabilities(logits: np.ndarray, regions: bool) -> np.ndarray:
    """The outputs that belong to logits."""
    return expit(logits) if regions else softmax(logits, axis=0)


@TEMPERATURES
@REGIONS
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-14)])
def test_equals_scaled_logits(regions, temperature, dtype, tolerance):
    """Of NumPy arrays and tensors, in their own type."""
    p = probabilities(LOGITS, regions).astype(dtype)
    for convert, kind in [(np.asarray, np.ndarray), (torch.as_tensor, torch.Tensor)]:
        ours = apply_temperature(convert(p), temperature, regions=regions)
        assert isinstance(ours, kind)
        assert ours.dtype == convert(p).dtype
        np.testing.assert_allclose(ours, probabilities(LOGITS / temperature, regions), rtol=0, atol=tolerance)


@TEMPERATURES
@REGIONS
def test_decisions_stay(regions, temperature):
    """The class with the largest probability keeps it, and a region's p > 1/2 stays."""
    p = probabilities(LOGITS, regions)
    ours = apply_temperature(p, temperature, regions=regions)
    if regions:
        np.testing.assert_array_equal(ours > 0.5, p > 0.5)
    else:
        np.testing.assert_array_equal(ours.argsort(0), p.argsort(0))
        np.testing.assert_allclose(ours.sum(0), 1)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@REGIONS
def test_zeros_and_ones(regions, dtype):
    """They stay the extremes, and finite; so do their logits."""
    p = np.array([[0, 1, 0.5], [1, 0, 0.5]], dtype)
    assert np.isfinite(log_probabilities(p, regions=regions)).all()
    for temperature in (0.05, 1, 20):
        ours = apply_temperature(p, temperature, regions=regions)
        assert np.isfinite(ours).all()
        assert (ours[0, 0] < 0.5) & (ours[1, 0] > 0.5) & (ours[0, 1] > 0.5)
        np.testing.assert_array_equal(ours[:, 2], 0.5)
    np.testing.assert_allclose(apply_temperature(p, 1, regions=regions), p, atol=1e-7)
    # clamped at 1e-38, or at 6e-8 for a region: what T = 20 makes of a certain voxel
    odds = 2.0**24 - 1 if regions else 1 / float(np.finfo(np.float32).tiny)
    assert apply_temperature(p, 20, regions=regions)[1, 0] == pytest.approx(1 / (1 + odds**-0.05), rel=1e-3)


@pytest.mark.parametrize("view", ["flipped", "read-only", "strided"])
def test_views(view):
    """Arrays as they come: looked at from the other side, from a file opened for reading, every second voxel."""
    p = probabilities(LOGITS, False)
    p = {"flipped": p[:, ::-1], "strided": p[:, ::2], "read-only": p}[view]
    expected = apply_temperature(p.copy(), 2)
    p.flags.writeable = view != "read-only"
    np.testing.assert_array_equal(apply_temperature(p, 2), expected)


def test_input_is_kept():
    """Arrays are not scaled in place."""
    for convert in (np.array, torch.tensor):
        p = convert([[0.0, 0.3], [1.0, 0.7]])
        apply_temperature(p, 2)
        apply_temperature(p, 2, regions=True)
        assert p.tolist() == convert([[0.0, 0.3], [1.0, 0.7]]).tolist()

"""Expected volume and Dice: sums by hand, and the intervals of volumes."""

import math

import numpy as np
import pytest
import torch
from scipy.special import entr, softmax

from nnunet_calib.decisions.expected_of_folds import expected_of_case, judged
from nnunet_calib.decisions.expected_sums import ExpectedSums
from nnunet_calib.posthoc.temperature import Temperature
from nnunet_calib.results.heads import Heads
from tests.worlds.measured_folds import LABELS, made

HEADS = Heads(("0", "1"), ("background", "nodule"), None, None)


def add(sums, p, segmented, regions, weights=None):
    """All voxels."""
    sums.add(p, weights)
    sums.add_segmented(p, segmented, weights, regions=regions)


@pytest.mark.parametrize("regions", [False, True])
def test_sums(regions):
    """The definitions, whether voxels come at once, in parts or with weights."""
    rng = np.random.default_rng(0)
    z = 3 * rng.standard_normal((3, 200))
    p = (1 / (1 + np.exp(-z)) if regions else softmax(z, 0)).astype(np.float32)
    segmented = z > 0 if regions else z.argmax(0) == np.arange(3)[:, None]
    h = (entr(p) + entr(1 - p)).mean(0) if regions else entr(p).sum(0)
    weights = rng.integers(1, 4, 200).astype(np.float32)
    whole, parts, weighted, repeated = (ExpectedSums(3) for _ in range(4))
    add(whole, p, segmented, regions)
    for some in (slice(0, 70), slice(70, 70), slice(70, 200)):
        add(parts, p[:, some], segmented[:, some], regions)
    add(weighted, p, segmented, regions, weights)
    times = weights.astype(int)
    add(repeated, p.repeat(times, 1), segmented.repeat(times, 1), regions)
    for one, other in ((whole, parts), (weighted, repeated)):
        np.testing.assert_allclose(one.dice, other.dice, rtol=1e-6)
        np.testing.assert_allclose(one.mean_entropy[1:], other.mean_entropy[1:], rtol=1e-6)
    for head in (1, 2):
        s = segmented[head]
        assert whole.expected[head] == pytest.approx(p[head].sum(), rel=1e-6)
        assert whole.dice[head] == pytest.approx(2 * p[head][s].sum() / (s.sum() + p[head].sum()), rel=1e-6)
        assert whole.mean_entropy[head] == pytest.approx(h[s].mean(), rel=1e-6)


def test_of_right_probabilities():
    """Labels drawn from the probabilities have the expected volume and, to a hundredth, the expected Dice."""
    rng = np.random.default_rng(1)
    p = rng.beta(0.3, 2, 20_000).astype(np.float32)
    both, segmented = np.stack([1 - p, p]), np.stack([p < 0.5, p >= 0.5])
    sums = ExpectedSums(2)
    add(sums, both, segmented, False)
    drawn = rng.random((50, p.size)) < p
    dice = 2 * (drawn & segmented[1]).sum(1) / (drawn.sum(1) + segmented[1].sum())
    assert sums.expected[1] == pytest.approx(drawn.sum(1).mean(), rel=0.01)
    assert sums.dice[1] == pytest.approx(dice.mean(), abs=0.01)


def test_empty():
    """Nothing segmented and nothing expected: no Dice and no entropy."""
    sums = ExpectedSums(2)
    assert np.isnan(sums.dice).all()
    assert np.isnan(sums.mean_entropy).all()


def rows(true, expected, dice=math.nan):
    """Cases of three folds in turn, with these volumes."""
    of = {"expected_dice": dice, "mean_entropy": 0.1}
    return [
        {
            "fold": i % 3,
            "structures": {
                "1": {
                    "true_voxels": int(t),
                    "segmented_voxels": float(e),
                    "dice": dice,
                    "uncalibrated": of | {"expected_voxels": float(e)},
                    "calibrated": of | {"expected_voxels": 2 * float(e)},
                }
            },
        }
        for i, (t, e) in enumerate(zip(true, expected, strict=True))
    ]


def test_volumes():
    """The interval is that of the log ratio of the cases that have the structure, and covers other folds."""
    rng = np.random.default_rng(0)
    expected = rng.uniform(100, 1000, 300)
    true = expected * np.exp(0.3 * rng.standard_normal(300))
    true[:30] = 0
    found = judged(rows(true, expected), HEADS)["volumes"]["1"]
    residuals = np.sort(np.log(true[30:].astype(int) / expected[30:]))
    assert found["uncalibrated"]["cases"] == 270
    assert found["uncalibrated"]["high"] == pytest.approx(residuals[258 - 1])  # ceil(271 * .95)
    assert found["uncalibrated"]["low"] == pytest.approx(residuals[270 - 258])
    assert found["calibrated"]["mean"] == pytest.approx(found["segmented"]["mean"] - math.log(2))
    assert found["calibrated"]["covered"] == pytest.approx(0.9, abs=0.05)


def test_threads():
    """The last digits do not depend on the number of PyTorch's threads."""
    case = made(0).measure(case="one", model={})
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 4):
            torch.set_num_threads(number)
            found.append(expected_of_case(case, Temperature(1.7), LABELS, {"1": 0.5, "2": 0.5}))
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1] == found[2]

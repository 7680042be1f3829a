"""Histograms of logits: against a loop over voxels, and their quantiles against those of the voxels."""

import numpy as np
import pytest
import torch

from nnunet_calib.nnunet.training.logit_sums import LOGIT_BINS, QUANTILES, LogitSums, logit_bin, logit_quantiles
from nnunet_calib.nnunet.training.pseudo_ace import LOGIT_STRIDE, STRIDE, PatchSums
from tests.losses.conftest import MODES, make_case

EDGES = np.sinh(np.linspace(-7, 7, LOGIT_BINS + 1))


def slow_logits(case) -> list[list[list[float]]]:
    """Voxel by voxel: of each class, and for the margin, the values outside and inside."""
    volume, heads = case.volume(), case.logits.shape[1]
    found: list[list[list[float]]] = [[[], []] for _ in range(heads + 1)]
    for b, position in volume.voxels:
        z = [float(case.logits[(b, c, *position)]) for c in range(heads)]
        inside = [bool(volume.label(b, c, position) == volume.own_label(c)) for c in range(heads)]
        for c in range(heads):
            found[c][inside[c]].append(z[c])
            if case.regions:
                found[-1][inside[c]].append(z[c] if inside[c] else -z[c])
        if not case.regions:
            true = inside.index(True)
            found[-1][true > 0].append(z[true] - max(z[c] for c in range(heads) if c != true))
    return found


@pytest.mark.parametrize("case", [make_case(m, s) for m in MODES for s in ((4, 5, 4), (9, 7))], ids=str)
def test_against_a_loop(case):
    """Every label mode: after 68 steps every voxel that counts once, in the bin of its logit."""
    sums = PatchSums(3, case.regions, case.ignore_label, torch.device("cpu"))
    for _ in range(STRIDE * LOGIT_STRIDE):
        sums.add(case.logits, case.target)
    for counts, sides in zip(sums.logits.counts.numpy(), slow_logits(case), strict=True):
        for of, values in zip(counts, sides, strict=True):
            np.testing.assert_array_equal(of, np.histogram(np.float32(values), EDGES)[0])


def test_bins():
    """Rising over the whole range, with the values beyond and NaN in some bin."""
    values = torch.tensor([-torch.inf, -1e9, -20, -1, -0.01, 0.01, 1, 20, 1e9, torch.inf])
    bins = logit_bin(values)
    assert bins.tolist() == sorted(bins.tolist())
    assert (bins[0], bins[-1]) == (0, LOGIT_BINS - 1)
    assert 0 <= logit_bin(torch.tensor([torch.nan])) < LOGIT_BINS


@pytest.mark.parametrize("scale", [0.1, 3, 30])
def test_quantiles(scale):
    """To the width of a bin, at every scale of logits; of the voxels of two ranks together."""
    parts = [scale * np.random.default_rng(seed).standard_normal(20_000) + scale for seed in range(2)]
    counts = sum(np.histogram(part, EDGES)[0].astype(float) for part in parts)
    expected = np.quantile(np.concatenate(parts), QUANTILES)
    widths = np.diff(EDGES)[np.searchsorted(EDGES, expected) - 1]
    assert (np.abs(logit_quantiles(counts) - expected) <= widths / 2).all()


def test_quantiles_by_hand():
    """Half of the voxels in one bin and half in another far away; and none at all."""
    counts = np.zeros((2, LOGIT_BINS))
    counts[0, [140, 200]] = 10
    five, quarter, median, upper, most = logit_quantiles(counts)[0]
    assert [five, quarter] == pytest.approx(np.sinh(np.array([0.1, 0.5]) * 0.05))
    assert median == pytest.approx(np.sinh(0.05))
    assert [upper, most] == pytest.approx(np.sinh(3 + np.array([0.5, 0.9]) * 0.05))
    assert np.isnan(logit_quantiles(counts)[1]).all()


def test_an_absent_class_and_an_empty_step():
    """No voxel of a class has no quantile, and a step without a voxel adds nothing."""
    sums = LogitSums(2, False, torch.device("cpu"), torch.float64)
    sums.add(torch.zeros(1, 2, 0), torch.zeros(1, 2, 0, dtype=torch.bool), torch.zeros(1, 1, 0, dtype=torch.float64))
    assert not sums.counts.any()
    inside = torch.tensor([[[True], [False]]])
    sums.add(torch.tensor([[[3.0], [1.0]]]), inside, torch.ones(1, 1, 1, dtype=torch.float64))
    known = np.isfinite(logit_quantiles(sums.counts.numpy()))[..., 2]
    assert known.tolist() == [[False, True], [True, False], [True, False]]

"""Sums over sure voxels: the same histograms as binning every voxel, edges of bins and odd columns included."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from nnunet_calib import sure_voxels
from nnunet_calib.histograms import FINE_BINS, Histograms
from tests.measuring.conftest import assert_same_histograms

BELOW_1, ABOVE_1 = (np.nextafter(np.float32(1), np.float32(x)) for x in (0, 2))
FIRST_EDGE, LAST_EDGE = np.float32(1 / FINE_BINS), np.float32(1 - 1 / FINE_BINS)


def trained(voxels: int, background: float, classes: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, labels and scopes of a network that is sure of most voxels, and wrong in some of them."""
    rng = np.random.default_rng(voxels)
    y = np.where(rng.random(voxels) < background, 0, rng.integers(0, classes, voxels)).astype(np.uint8)
    bits = (y > 0) + 2 * (rng.random(voxels) < 0.1).astype(np.uint8)
    logits = rng.standard_normal((classes, voxels))
    seen = np.where(rng.random(voxels) < 0.02, rng.integers(0, classes, voxels), y)
    logits[seen, np.arange(voxels)] += rng.choice([2, 8, 15, 30], voxels, p=[0.1, 0.2, 0.5, 0.2])
    return logits, y, bits


@pytest.fixture(params=[512, 1], ids=["groups from 512 voxels on", "all groups"])
def fewest(request, monkeypatch):
    """The size of the smallest group of voxels that is summed."""
    monkeypatch.setattr(sure_voxels, "_FEWEST", request.param)


@pytest.mark.usefixtures("fewest")
@pytest.mark.parametrize("piece", [7, 1 << 19])
@pytest.mark.parametrize("background", [0.0, 0.9], ids=["all copied", "background in place"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_equals_binning_every_voxel(dtype, background, piece, monkeypatch):
    """Counts exactly and sums to 1e-9; most sure voxels are summed, and no voxel twice."""
    voxels = 2_000 if piece < 10 else 40_000
    monkeypatch.setattr(sure_voxels, "_PIECE", piece)
    logits, y, bits = trained(voxels, background)
    p = softmax(logits, axis=0).astype(dtype)
    ours, others = Histograms.of_classes(p, y, bits)
    assert_same_histograms(ours, Histograms.of(p, y, bits))
    assert len(set(others.tolist())) == len(others)
    unsure = np.flatnonzero(p[y, np.arange(voxels)] < 1 - 1 / FINE_BINS)
    assert np.isin(unsure, others).all()
    if sure_voxels._FEWEST == 1:
        assert len(others) < 1.3 * len(unsure)


@pytest.mark.usefixtures("fewest")
@pytest.mark.parametrize(
    "column",
    [
        (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1), (0, 0, 0), (1, 1, 0), (0.5, 0.5, 0), (ABOVE_1, 0, 0),
        (BELOW_1, 2.0**-24, 0), (1, 1e-38, 1e-30),
        *((p, x, 0) for edge in (FIRST_EDGE, LAST_EDGE) for p in (np.nextafter(edge, np.float32(0)), edge)
          for x in (1 - p, 1 / FINE_BINS)),
        (1, FIRST_EDGE, 0), (1, np.nextafter(FIRST_EDGE, np.float32(0)), 0), (1 - 1e-4, 5e-5, 5e-5),
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("voxels", [1, 600])
def test_columns(column, voxels):
    """Zeros, ones, both sides of the edges, and columns that no softmax gives."""
    p = np.repeat(np.array(column, np.float32)[:, None], voxels, axis=1)
    for label in range(3):
        for part in range(4):
            y, bits = np.full(voxels, label, np.uint8), np.full(voxels, part, np.uint8)
            assert_same_histograms(Histograms.of_classes(p, y, bits)[0], Histograms.of(p, y, bits))


def test_by_hand(monkeypatch):
    """Two sure voxels, one of background and one of class 1, and an unsure one."""
    monkeypatch.setattr(sure_voxels, "_FEWEST", 1)
    p = np.array([[1 - 2.0**-12, 2.0**-13, 0.5], [2.0**-12, 1 - 2.0**-13, 0.5]], np.float32)
    sums, others = sure_voxels.sum_sure_voxels(
        p, np.array([0, 1, 1]), np.array([0, 3, 3], np.uint8), parts=4, num_bins=FINE_BINS
    )
    assert others.tolist() == [2]
    assert sums.voxels.tolist() == [[1, 0], [0, 0], [0, 0], [0, 1]]
    assert sums.true.tolist() == [[1 - 2.0**-12, 0], [0, 0], [0, 0], [0, 1 - 2.0**-13]]
    assert sums.other.tolist() == [[0, 2.0**-12], [0, 0], [0, 0], [2.0**-13, 0]]
    assert sums.brier.tolist() == [2 * 2.0**-24, 0, 0, 2 * 2.0**-26]
    np.testing.assert_allclose(sums.nll, [-np.log1p(-(2.0**-12)), 0, 0, -np.log1p(-(2.0**-13))], rtol=1e-12)


@pytest.mark.parametrize("view", ["read-only", "reversed", "strided"])
def test_views(view):
    """Memory that PyTorch does not share, or shares with gaps."""
    logits, y, bits = trained(3_000, 0.9)
    p = softmax(logits, axis=0).astype(np.float32)
    if view == "read-only":
        p.flags.writeable = False
    elif view == "reversed":
        p, y, bits = p[:, ::-1], y[::-1], bits[::-1]
    else:
        p = p.repeat(2, axis=1)[:, ::2]
    before = p.copy()
    assert_same_histograms(Histograms.of_classes(p, y, bits)[0], Histograms.of(p, y, bits))
    np.testing.assert_array_equal(p, before)


def test_integer_weights():
    """Whole numbers of voxels are counted as such."""
    logits, y, bits = trained(500, 0.5)
    p = softmax(logits, axis=0).astype(np.float32)
    number = np.arange(500) % 4
    ours = Histograms.of(p, y, bits, number)
    assert ours.counts.dtype == ours.positives.dtype == ours.voxels.dtype == np.int64
    assert_same_histograms(ours, Histograms.of(p.repeat(number, 1), y.repeat(number), bits.repeat(number)))

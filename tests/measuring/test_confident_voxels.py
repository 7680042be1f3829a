"""Sums over sure voxels: the same histograms as binning every voxel, edges of bins and odd columns included."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from nnunet_calib.measuring import fine_histogram as fine_bins
from nnunet_calib.measuring import histograms as binner
from nnunet_calib.measuring.confident_voxels import ConfidentVoxels
from nnunet_calib.measuring.fine_histogram import FINE_BINS
from nnunet_calib.measuring.histograms import Binner, Histograms
from tests.worlds.measured_cases import assert_same_histograms

pytestmark = pytest.mark.pairs

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


def binned(p: np.ndarray, y: np.ndarray, bits: np.ndarray, pieces: int = 1) -> Histograms:
    """Ours, of voxels that come in some pieces."""
    ours = Binner(len(p), regions=y.ndim == 2)
    for part in np.array_split(np.arange(len(bits)), pieces):
        ours.add(p[:, part[0] : part[-1] + 1], y[..., part[0] : part[-1] + 1], bits[part[0] : part[-1] + 1])
    return ours.histograms()


@pytest.mark.parametrize("pieces", [1, 7])
@pytest.mark.parametrize("waiting", [20, 300, 1 << 14])
@pytest.mark.parametrize("background", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_equals_binning_every_voxel(dtype, background, waiting, pieces, monkeypatch):
    """Counts exactly and sums to 1e-9, whatever comes together."""
    for module, name in ((binner, "_BINNED"), (fine_bins, "_PIECE"), (fine_bins, "_WAITING")):
        monkeypatch.setattr(module, name, waiting)
    logits, y, bits = trained(2_000, background)
    p = softmax(logits, axis=0).astype(dtype)
    assert_same_histograms(binned(p, y, bits, pieces), Histograms.of(p, y, bits))


@pytest.mark.parametrize("weights", [None, "whole", "fractions"])
def test_columns_of_no_softmax(weights, monkeypatch):
    """Several classes with more than half, or just half, among other voxels: the top label's bins by the definition."""
    monkeypatch.setattr(fine_bins, "_PIECE", 50)
    rng = np.random.default_rng(0)
    p = softmax(3 * rng.standard_normal((3, 1_000)), axis=0).astype(np.float32)
    p[:, 300:500:7] = rng.choice(np.array([0, 0.5, 601 / 1200, 0.9, 1], np.float32), (3, 29))
    p[:, 700] = 0.5, 0.5, 0
    y, bits = rng.integers(0, 3, 1_000), rng.integers(0, 4, 1_000).astype(np.uint8)
    w = {None: None, "whole": rng.integers(0, 9, 1_000), "fractions": 1 + rng.random(1_000)}[weights]
    ours = Histograms.of(p, y, bits, w)
    expected = np.zeros((3, 4, FINE_BINS))
    for n, q in enumerate(p.T.astype(np.float64)):
        number = 1 if w is None else w[n]
        cell = bits[n], min(int(q.max() * FINE_BINS), FINE_BINS - 1)
        for table, value in zip(expected, (number, number * q.max(), number * (q.argmax() == y[n])), strict=True):
            table[cell] += value
    top = [table[:, -1] for table in (ours.counts, ours.probability, ours.positives)]
    np.testing.assert_allclose(top, expected, rtol=1e-12)


def test_few_sure_voxels_are_binned():
    """Where less than half are sure, none is summed."""
    logits, y, bits = trained(2_000, 0.3)
    p = softmax(logits, axis=0).astype(np.float32)
    sums = ConfidentVoxels(5, parts=4, num_bins=FINE_BINS)
    assert sums.add(p, y, bits).tolist() == list(range(2_000))
    assert not sums.voxels.any()


@pytest.mark.parametrize("most", [(0, 0), (2, 1)], ids=["background", "a class at its boundary"])
def test_most_sure_voxels_are_summed(most):
    """Those of the commonest scope and class, wherever that is; no others."""
    rng = np.random.default_rng(0)
    common = rng.random(40_000) < 0.9
    y = np.where(common, most[0], rng.integers(0, 5, 40_000)).astype(np.uint8)
    bits = np.where(common, most[1], rng.integers(0, 4, 40_000)).astype(np.uint8)
    logits = np.where(np.arange(5)[:, None] == y, 15, rng.standard_normal((5, 40_000)))
    logits[:, ::50] = 0
    p = softmax(logits, axis=0).astype(np.float32)
    sums = ConfidentVoxels(5, parts=4, num_bins=FINE_BINS)
    others = sums.add(p, y, bits)
    expected = (y == most[0]) & (bits == most[1]) & (np.arange(40_000) % 50 > 0)
    np.testing.assert_array_equal(others, np.flatnonzero(~expected))
    assert sums.voxels[most[1], most[0]] == sums.voxels.sum() == expected.sum() > 30_000


@pytest.mark.parametrize(
    "column",
    [
        (1, 0, 0),
        (0, 1, 0),
        (0, 0, 1),
        (1, 1, 1),
        (0, 0, 0),
        (1, 1, 0),
        (0.5, 0.5, 0),
        (ABOVE_1, 0, 0),
        (BELOW_1, 2.0**-24, 0),
        (1, 1e-38, 1e-30),
        *(
            (p, x, 0)
            for edge in (FIRST_EDGE, LAST_EDGE)
            for p in (np.nextafter(edge, np.float32(0)), edge)
            for x in (1 - p, 1 / FINE_BINS)
        ),
        (1, FIRST_EDGE, 0),
        (1, np.nextafter(FIRST_EDGE, np.float32(0)), 0),
        (1 - 1e-4, 5e-5, 5e-5),
    ],
    ids=str,
)
def test_columns(column):
    """Zeros, ones, both sides of the edges, and columns that no softmax gives: voxel by voxel, by the definition."""
    p = np.repeat(np.array(column, np.float32)[:, None], 3, axis=1)
    for label in range(3):
        for part in range(4):
            y, bits = np.full(3, label, np.uint8), np.full(3, part, np.uint8)
            ours = binned(p, y, bits)
            assert_same_histograms(ours, Histograms.of(p, y, bits))
            expected = np.zeros((4, 4, FINE_BINS), int)
            for row, value in enumerate([*column, max(column)]):
                expected[part, row, min(int(np.float64(np.float32(value)) * FINE_BINS), FINE_BINS - 1)] = 3
            np.testing.assert_array_equal(ours.counts, expected)
            assert ours.positives.sum() == 3 * (1 + (np.argmax(column) == label))


def test_by_hand():
    """Two sure voxels of background, one of them at the boundary, and an unsure one."""
    p = np.array([[1 - 2.0**-12, 1 - 2.0**-13, 0.5], [2.0**-12, 2.0**-13, 0.5]], np.float32)
    y = np.zeros(3, np.uint8)
    sums = ConfidentVoxels(2, parts=4, num_bins=FINE_BINS)
    assert sums.add(p, y, np.array([0, 0, 0], np.uint8)).tolist() == [2]
    assert sums.add(p[:, 1:2], y[1:2], np.array([2], np.uint8)).tolist() == []
    assert sums.voxels.tolist() == [[2, 0], [0, 0], [1, 0], [0, 0]]
    assert sums.true.tolist() == [[2 - 3 * 2.0**-13, 0], [0, 0], [1 - 2.0**-13, 0], [0, 0]]
    assert sums.other.tolist() == [[0, 3 * 2.0**-13], [0, 0], [0, 2.0**-13], [0, 0]]
    assert sums.brier.tolist() == [2 * (2.0**-24 + 2.0**-26), 0, 2 * 2.0**-26, 0]
    nll = -np.log1p([-(2.0**-12), -(2.0**-13)])
    np.testing.assert_allclose(sums.nll, [nll.sum(), 0, nll[1], 0], rtol=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
def test_regions(weighted):
    """Heads of their own: by a loop over voxels."""
    rng = np.random.default_rng(0)
    p = (rng.random((2, 400)) ** 8).astype(np.float32)
    y, bits = rng.random((2, 400)) < p, rng.integers(0, 4, 400).astype(np.uint8)
    weights = 1 + rng.random(400) if weighted else None
    ours = Histograms.of(p, y, bits, weights) if weighted else binned(p, y, bits, 3)
    expected = np.zeros((2, 4, 3, FINE_BINS))
    for (head, voxel), q in np.ndenumerate(p.astype(np.float64)):
        w, confidence = 1 if weights is None else weights[voxel], max(q, float(np.float32(1) - p[head, voxel]))
        is_true, is_right = y[head, voxel], (q > 0.5) == y[head, voxel]
        for row, value, positive in ((head, q, is_true), (2, confidence, is_right)):
            expected[:, bits[voxel], row, min(int(value * FINE_BINS), FINE_BINS - 1)] += w, w * positive
    np.testing.assert_allclose([ours.counts, ours.positives], expected, rtol=1e-12)
    assert (ours.counts > 0).sum() == (expected[0] > 0).sum()


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
    assert_same_histograms(binned(p, y, bits), Histograms.of(p, y, bits))
    np.testing.assert_array_equal(p, before)


def test_integer_weights():
    """Whole numbers of voxels are counted as such."""
    logits, y, bits = trained(500, 0.5)
    p = softmax(logits, axis=0).astype(np.float32)
    number = np.arange(500) % 4
    ours = Histograms.of(p, y, bits, number)
    assert ours.counts.dtype == ours.positives.dtype == ours.voxels.dtype == np.int64
    assert_same_histograms(ours, Histograms.of(p.repeat(number, 1), y.repeat(number), bits.repeat(number)))

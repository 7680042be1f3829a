"""The file of a case stays below its limit, whatever its classes, its slice and its image are like."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from nnunet_calib import CaseStatistics
from nnunet_calib.measuring import file_budget
from nnunet_calib.measuring.file_budget import FILE_BYTES, arrays_of, packed_bytes


def noise(heads, shape, spread=1.0, seed=0):
    """Probabilities without any structure that compression could use, and labels."""
    rng = np.random.default_rng(seed)
    p = softmax(spread * rng.standard_normal((heads, *shape)), axis=0).astype(np.float32)
    return p, rng.integers(0, heads, shape).astype(np.uint8)


def check_slice(measured, labels, image=None):
    """What is shown is every k-th row and column, and says which."""
    shown = measured.shown
    np.testing.assert_array_equal(labels[shown.index], shown.labels)
    np.testing.assert_array_equal(shown.spacing, shown.where[-2:, 2])
    assert shown.probabilities.shape[1:] == shown.labels.shape == shown.image.shape[1:]
    if image is not None:
        np.testing.assert_array_equal(image[(slice(None), *shown.index)].astype(np.float16), shown.image)


def test_flat_classes(tmp_path):
    """118 classes that all are likely everywhere: neither the slice nor the lists of classes compress."""
    p, labels = noise(118, (1, 256, 256))
    measured = CaseStatistics.from_probabilities(p, labels)
    measured.save(tmp_path / "case.npz")
    assert (tmp_path / "case.npz").stat().st_size <= FILE_BYTES
    assert measured.sample.weights.sum(dtype=float) == pytest.approx(labels.size)
    assert measured.shown.where[-1, 2] == 2
    check_slice(measured, labels)
    loaded = CaseStatistics.load(tmp_path / "case.npz")
    np.testing.assert_array_equal(loaded.shown.labels, measured.shown.labels)


def test_image_of_many_channels(tmp_path):
    """Three classes are kept as without an image, which is thinned with the slice."""
    p, labels = noise(3, (400, 400))
    image = np.random.default_rng(1).standard_normal((16, *labels.shape)).astype(np.float32)
    alone, measured = (CaseStatistics.from_probabilities(p, labels, image=x) for x in (None, image))
    measured.save(tmp_path / "case.npz")
    assert (tmp_path / "case.npz").stat().st_size <= FILE_BYTES
    np.testing.assert_array_equal(measured.sample.logits, alone.sample.logits)
    assert alone.shown.labels.shape == (400, 400)
    assert measured.shown.labels.shape == (200, 200)
    check_slice(measured, labels, image)


@pytest.mark.parametrize("heads", [3, 12])
def test_count(heads, tmp_path):
    """The bytes are those of the file, and a little more."""
    p, labels = noise(heads, (60, 50))
    measured = CaseStatistics.from_probabilities(p, labels)
    measured.save(tmp_path / "case.npz")
    counted = sum(packed_bytes(arrays_of(part)) for part in (measured.histograms, measured.sample, measured.shown))
    assert counted < (tmp_path / "case.npz").stat().st_size + 5_000 < counted + 10_000
    arrays = arrays_of(measured.shown)
    assert packed_bytes(arrays, 10**6) > packed_bytes(arrays, 10) == packed_bytes(arrays)


def test_histograms_that_leave_no_room(monkeypatch):
    """They stay whole, the sample keeps its least, and the slice is not thinned to nothing."""
    p, labels = noise(12, (300, 300))
    whole = CaseStatistics.from_probabilities(p, labels)
    monkeypatch.setattr(file_budget, "FILE_BYTES", 1000)
    small = CaseStatistics.from_probabilities(p, labels)
    np.testing.assert_array_equal(small.histograms.counts, whole.histograms.counts)
    assert 500_000 < packed_bytes(arrays_of(small.sample)) <= 1_000_000 < packed_bytes(arrays_of(whole.sample))
    assert max(small.shown.labels.shape) == 60

"""Cases of many classes: what is kept of each voxel, in how many bytes, and how far T may be off for it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.special import logsumexp, softmax

from nnunet_calib import CaseStatistics, fit_temperature
from nnunet_calib.measuring import case_file as statistics_file
from nnunet_calib.measuring.class_lumps import DENSE_HEADS, from_listed, listed_classes, lump_classes
from nnunet_calib.measuring.file_budget import FILE_BYTES, packed_bytes
from tests.worlds.measured_cases import Case, assert_same_histograms, assert_same_sample


def many_classes(heads: int, shape: tuple[int, ...], spread: float, sure: float = 1.6, seed: int = 0) -> Case:
    """A case whose labels are drawn from its probabilities before these are made too sure.

    Args:
        heads: classes, of which each has a part of a smooth field.
        shape: of the case.
        spread: standard deviation of the logits: with 1 all classes have a share, with 4 a few.
        sure: T.
        seed: of the draw.
    """
    rng = np.random.default_rng(seed)
    field = gaussian_filter(rng.standard_normal(shape), 3)
    rank = np.argsort(np.argsort(field.ravel())).reshape(shape) / field.size
    centre = np.maximum(0, rank * heads * 1.5 - heads * 0.5).astype(int)
    logits = (spread * rng.standard_normal((heads, *shape))).astype(np.float32)
    at = (centre, *np.indices(shape))
    logits[at] += 5 + 2.5 * spread
    labels = (logits + rng.gumbel(size=logits.shape).astype(np.float32)).argmax(0).astype(np.uint8)
    return Case(softmax(sure * logits, axis=0), labels)


@pytest.mark.parametrize("spread", [1.0, 4.0])
def test_size_and_temperature(spread, tmp_path):
    """118 classes: a file of at most 4 MB, and T within 2e-3 of that of all voxels and classes."""
    case = many_classes(118, (12, 48, 48), spread)
    measured = case.measure(max_voxels=25_000)
    measured.save(tmp_path / "case.npz")
    assert (tmp_path / "case.npz").stat().st_size <= FILE_BYTES
    logits = np.log(case.probabilities.reshape(118, -1).T.clip(1e-38))
    exact = fit_temperature(logits, case.labels.ravel().astype(int))
    sample = measured.sample
    ours = fit_temperature(sample.logits, sample.labels, weights=sample.weights)
    assert ours.temperature == pytest.approx(exact.temperature, rel=2e-3)
    assert ours.nll_after == pytest.approx(exact.nll_after, rel=5e-3)
    loaded = CaseStatistics.load(tmp_path / "case.npz")
    assert_same_histograms(loaded.histograms, measured.histograms)
    assert_same_sample(loaded, measured)
    scaled = measured.with_temperature(exact.temperature).histograms
    assert scaled.nll.sum() / scaled.voxels.sum() == pytest.approx(exact.nll_after, rel=5e-3)


@pytest.mark.parametrize("spread", [1.0, 10.0])
def test_lumps(spread):
    """Up to rounding, the other classes' sum of p is kept, and that of p^(1/2) to .2 %; the true class is untouched."""
    case = many_classes(40, (12, 20, 20), spread)
    z = np.log(case.probabilities.reshape(40, -1).T.clip(1e-38)).astype(np.float16)
    y = case.labels.ravel()
    lumped = lump_classes(z, y)
    everywhere = np.arange(len(z))
    np.testing.assert_array_equal(lumped[everywhere, y], z[everywhere, y])
    np.testing.assert_array_equal(lumped.argmax(1), z.argmax(1))
    for beta, tolerance in ((1, 0.02), (0.5, 0.02)):
        ours, expected = (np.sort(x.astype(float) * beta, 1)[:, :-1] for x in (lumped, z))
        difference = logsumexp(ours, 1) - logsumexp(expected, 1)
        assert np.abs(difference).max() < tolerance
        assert abs(difference.mean()) < 0.002
    if spread > 1:
        assert packed_bytes(listed_classes(lumped)) < 0.6 * packed_bytes([z])


@pytest.mark.parametrize("heads", [2, DENSE_HEADS])
def test_few_classes(heads, tmp_path):
    """Are kept as they are, in files of format 2."""
    case = many_classes(heads, (6, 8, 8), 2.0)
    measured = case.measure()
    expected = np.log(case.probabilities.reshape(heads, -1).T.clip(1.2e-38)).astype(np.float16)
    np.testing.assert_allclose(measured.sample.logits, expected, rtol=1e-3)
    assert lump_classes(expected, case.labels.ravel()) is expected
    measured.save(tmp_path / "case.npz")
    with np.load(tmp_path / "case.npz") as file:
        assert json.loads(str(file["header"]))["format_version"] == 2
        np.testing.assert_array_equal(file["sample.logits"], measured.sample.logits)


@pytest.fixture
def measured():
    """A case of 12 classes."""
    return many_classes(12, (6, 8, 8), 2.0).measure(case="one")


def test_older_files(measured, tmp_path, monkeypatch):
    """Of format 2, with all classes of every voxel, are read as ever, and merged with newer ones."""
    monkeypatch.setattr(statistics_file, "lists_classes", lambda *sample: False)
    measured.save(tmp_path / "old.npz")
    monkeypatch.undo()
    measured.save(tmp_path / "new.npz")
    old, new = (CaseStatistics.load(tmp_path / f"{name}.npz") for name in ("old", "new"))
    assert_same_sample(old, measured)
    assert_same_sample(new, measured)
    assert len((old + new).sample) == 2 * len(measured.sample)


def test_any_values_come_back():
    """Lists of classes hold whatever float16 there is."""
    logits = np.random.default_rng(0).integers(-3, 0, (50, 12)).astype(np.float16)
    logits[0] = -1
    np.testing.assert_array_equal(from_listed(*listed_classes(logits), 12), logits)
    np.testing.assert_array_equal(from_listed(*listed_classes(logits[:0]), 12), logits[:0])


@pytest.mark.parametrize(
    ("name", "change", "text"),
    [
        ("sample.classes", lambda x: x[:-1], "it has sample.classes of shape"),
        ("sample.classes", lambda x: np.full_like(x, 12), "it has sample.classes up to 12"),
        ("sample.values", lambda x: x[:-1], "it has sample.values of shape"),
        ("sample.values", lambda x: x * np.float16(np.nan), "it has sample.logits with NaN or infinity"),
        ("sample.number", lambda x: x.astype(np.int32), "it has sample.number of shape"),
        ("sample.common", lambda x: np.zeros(10**6, np.float16), "it has sample.common of shape"),
    ],
)
def test_lists_of_no_case(measured, tmp_path, name, change, text):
    """Are refused as damaged."""
    path = tmp_path / "case.npz"
    measured.save(path)
    with np.load(path) as file:
        arrays = dict(file)
    arrays[name] = change(arrays[name])
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=f"unreadable .*{text}"):
        CaseStatistics.load(path)


def test_memory_of_the_lists(measured, tmp_path):
    """What is made of them counts too, before anything is unpacked."""
    measured.save(tmp_path / "case.npz")
    size = sum(getattr(measured.sample, name).nbytes for name in ("logits", "labels", "weights"))
    with pytest.raises(ValueError, match="of memory, more than"):
        CaseStatistics.load(tmp_path / "case.npz", max_bytes=size)


def test_many_regions(tmp_path):
    """Each voxel has as many answers as there are regions: fewer voxels of them are kept."""
    rng = np.random.default_rng(0)
    regions = tuple((c,) for c in range(1, 61))
    labels = rng.integers(0, 61, (24, 48, 48))
    p = np.where(np.arange(1, 61)[:, None, None, None] == labels, 0.8, 0.02) * rng.uniform(0.5, 1, (60, *labels.shape))
    measured = Case(p.astype(np.float32), labels, regions).measure()
    assert len(measured.sample) < labels.size
    assert measured.sample.weights.sum(dtype=float) == pytest.approx(labels.size)
    measured.save(tmp_path / "case.npz")
    assert (tmp_path / "case.npz").stat().st_size <= FILE_BYTES

"""Statistics on disk: complete or not there, without pickles, and refused in a sentence when they cannot be read."""

from __future__ import annotations

import json
import os
import re
from dataclasses import fields

import numpy as np
import pytest

from nnunet_calib import CaseStatistics, calibration_errors
from nnunet_calib.measuring.case_file import FORMAT_VERSION, LISTED_VERSION
from tests.worlds.measured_cases import assert_same_histograms, assert_same_sample, make_case


@pytest.fixture
def saved(tmp_path):
    """A file with statistics of one case."""
    path = tmp_path / "case.npz"
    make_case().measure(case="one").save(path)
    return path


def refused(path, *parts):
    """Expect loading to fail with a message that has these parts."""
    with pytest.raises(ValueError, match=".*".join(map(re.escape, parts))):
        CaseStatistics.load(path)


def test_round_trip(case, tmp_path):
    """Everything comes back, types included, and adds up with what was never on disk."""
    image = np.ones((2, *case.labels.shape))
    ours = case.measure(case="ä", model={"checkpoint": "best", "epoch": 3}, boundary_mm=1.5, max_voxels=50, image=image)
    ours.save(tmp_path / "a.npz")
    loaded = CaseStatistics.load(str(tmp_path / "a.npz"))
    assert_same_histograms(loaded.histograms, ours.histograms)
    assert_same_sample(loaded, ours)
    for name in ("counts", "probability", "positives", "voxels"):
        assert getattr(loaded.histograms, name).dtype == getattr(ours.histograms, name).dtype
    for name in ("logits", "labels", "weights", "scope_bits"):
        assert getattr(loaded.sample, name).dtype == getattr(ours.sample, name).dtype
    for name in ("regions", "boundary_mm", "cases", "model", "num_heads"):
        assert getattr(loaded, name) == getattr(ours, name)
    for f in fields(ours.shown):
        np.testing.assert_array_equal(getattr(loaded.shown, f.name), getattr(ours.shown, f.name))
        assert getattr(loaded.shown, f.name).dtype == getattr(ours.shown, f.name).dtype
    (loaded + ours).save(tmp_path / "b.npz")
    merged = CaseStatistics.load(tmp_path / "b.npz")
    assert merged.cases == ("ä", "ä")
    assert merged.shown is None


def test_no_pickle(saved):
    """Loading runs no code: every array reads without pickle."""
    with np.load(saved, allow_pickle=False) as file:
        assert all(file[name].dtype != object for name in file.files)
        assert json.loads(str(file["header"]))["format_version"] == FORMAT_VERSION


def test_pickles_are_refused(saved):
    """An array of objects is not unpickled."""
    np.savez(saved, header=np.array([print], dtype=object))
    refused(saved, f"found {saved} unreadable (header holds objects, which can run code)")


@pytest.mark.parametrize("keep", [0, 1, 100, -2000, -1])
def test_truncated(saved, keep):
    """A copy that broke off."""
    saved.write_bytes(saved.read_bytes()[:keep])
    refused(saved, f"expected calibration statistics of a case, found {saved} unreadable (")


def test_damaged(saved):
    """Bytes that went wrong in the middle are noticed."""
    content = bytearray(saved.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 8] = bytes(255 - b for b in content[middle : middle + 8])
    saved.write_bytes(content)
    refused(saved, f"expected calibration statistics of a case, found {saved} unreadable (")


def write_text(path):
    path.write_text("calibration: none")


def write_array(path):
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def write_foreign_archive(path):
    np.savez(path, probabilities=np.zeros(3))


def write_without_header(path):
    np.savez(path, header=np.array("no json"))


@pytest.mark.parametrize("write", [write_text, write_array, write_foreign_archive, write_without_header])
def test_foreign(tmp_path, write):
    """Files of others, such as nnU-Net's probabilities, which are .npz too."""
    path = tmp_path / "case.npz"
    write(path)
    refused(path, f"expected calibration statistics of a case, found {path} unreadable (")


@pytest.mark.parametrize("other", [1, LISTED_VERSION + 1])
def test_other_format(tmp_path, other):
    """Whatever an older or newer format holds."""
    path = tmp_path / "case.npz"
    np.savez(path, header=np.array(json.dumps({"format_version": other})))
    text = (
        f"expected calibration statistics of format {FORMAT_VERSION} or {LISTED_VERSION}, found {other} in {path}: use "
        f"the nnunet-calib that wrote it, or measure the case again"
    )
    refused(path, text)


def test_missing(tmp_path):
    """A file that is not there keeps its usual error."""
    with pytest.raises(FileNotFoundError):
        CaseStatistics.load(tmp_path / "case.npz")


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=["disk full", "Ctrl-C"])
def test_failing_midway(saved, monkeypatch, error):
    """The old file stays as it was, and nothing half written remains beside it."""
    before = saved.read_bytes()

    def break_off(file, **_):
        file.write(b"half")
        raise error

    monkeypatch.setattr(np, "savez_compressed", break_off)
    for path in (saved, saved.with_name("new.npz")):
        with pytest.raises(type(error)):
            make_case().measure().save(path)
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]
    assert saved.read_bytes() == before


def test_target_cannot_be_written(tmp_path):
    """A folder of that name, or no folder to hold it: an error, and nothing remains."""
    (tmp_path / "case.npz").mkdir()
    for path in (tmp_path / "case.npz", tmp_path / "missing" / "case.npz"):
        with pytest.raises(OSError, match=r"case"):
            make_case().measure().save(path)
    assert [*tmp_path.rglob("*")] == [tmp_path / "case.npz"]


def test_read_only_folder(saved):
    """The old file stays."""
    before = saved.read_bytes()
    saved.parent.chmod(0o500)
    try:
        if os.access(saved.parent, os.W_OK):
            pytest.skip("this user may write everywhere")
        with pytest.raises(PermissionError):
            make_case().measure().save(saved)
    finally:
        saved.parent.chmod(0o700)
    assert [*saved.parent.iterdir()] == [saved]
    assert saved.read_bytes() == before


def rewrite(path, **changes):
    """Replace arrays of a file, or remove those that are None."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files} | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


@pytest.mark.parametrize("mode", ["labels", "regions"])
def test_without_entropies(tmp_path, mode):
    """Files of older versions have none: those of the voxel sample stand in for them, here of every voxel."""
    ours = make_case(mode).measure()
    ours.save(tmp_path / "case.npz")
    rewrite(tmp_path / "case.npz", **{"histograms.entropy": None})
    loaded = CaseStatistics.load(tmp_path / "case.npz")
    np.testing.assert_array_equal(loaded.histograms.entropy.sum(2), ours.histograms.entropy.sum(2))
    assert loaded.histograms.entropy.any() == (mode == "labels")
    values = [float(calibration_errors(one)["entropy_auroc"]) for one in (loaded, ours)]
    assert values[0] == pytest.approx(values[1], abs=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[..., :-1], "histograms.entropy of shape (4, 2, 1199), float64"),
        (lambda x: x + 1, "histograms.entropy for 9810.0 of 210 voxels"),
        (lambda x: -x, "histograms.entropy below 0"),
    ],
)
def test_wrong_entropies(saved, change, message):
    """Those of other voxels are refused."""
    with np.load(saved) as file:
        entropy = file["histograms.entropy"]
    rewrite(saved, **{"histograms.entropy": change(entropy)})
    refused(saved, message)

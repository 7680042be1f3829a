"""Files are either complete or not there, and their JSON is strict."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from nnunet_calib.files import forget, replaced_when_complete, write_json


def test_replaced(tmp_path):
    """The content takes its name at the end of the block, not before; writers find the suffix that they look at."""
    path = tmp_path / "figure.png"
    path.write_text("old")
    with replaced_when_complete(str(path)) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".png"
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("old", [None, "old"])
def test_failure_leaves_the_old_content(tmp_path, old, error):
    """Whatever was there before, a file or none, is still there after a block that breaks off."""
    path = tmp_path / "a.txt"
    if old:
        path.write_text(old)

    def write_half():
        with replaced_when_complete(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write_half()
    assert [p.read_text() for p in tmp_path.iterdir()] == ([old] if old else [])


def test_forget(tmp_path):
    """The file goes, and what killed writers of it have left, and nothing else; it may be gone already."""
    for name in ("a.nii.gz", ".17.tmp.a.nii.gz", "b.nii.gz", ".17.tmp.b.nii.gz", "[a].nii.gz"):
        (tmp_path / name).touch()
    for _ in range(2):
        forget(tmp_path / "a.nii.gz")
        assert sorted(p.name for p in tmp_path.iterdir()) == [".17.tmp.b.nii.gz", "[a].nii.gz", "b.nii.gz"]


def test_every_suffix(tmp_path):
    """Also of names with two of them, by which writers know that they must compress."""
    with replaced_when_complete(tmp_path / "a.nii.gz") as temporary:
        assert temporary.name.startswith(".")
        assert temporary.name.endswith(".nii.gz")
        temporary.touch()


def test_nothing_written(tmp_path):
    """A block that wrote nothing is an error, not an empty file."""
    with pytest.raises(FileNotFoundError), replaced_when_complete(tmp_path / "a.txt"):
        pass
    assert not [*tmp_path.iterdir()]


def test_two_writers(tmp_path, monkeypatch):
    """Processes do not write to one temporary file."""
    names = []
    for pid in (1, 2):
        monkeypatch.setattr(os, "getpid", lambda pid=pid: pid)
        with replaced_when_complete(tmp_path / "a.txt") as temporary:
            temporary.touch()
            names.append(temporary)
    assert names[0] != names[1]


def test_json(tmp_path):
    """NaN and infinities become null at any depth; keys become text; everything else is kept."""
    path = tmp_path / "summary.json"
    content = {"a": [1.5, np.nan, {"b": -np.inf}], 2: (np.float64("nan"), np.float64(0.25)), "c": True, "d": None}
    write_json(content | {"text": "ä"}, path)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    read = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    assert read == {"a": [1.5, None, {"b": None}], "2": [None, 0.25], "c": True, "d": None, "text": "ä"}
    assert read["c"] is True


def test_json_failure(tmp_path):
    """What JSON cannot say leaves the old file."""
    path = tmp_path / "summary.json"
    write_json([1], path)
    with pytest.raises(TypeError):
        write_json({"a": object()}, path)
    assert [p.read_text() for p in tmp_path.iterdir()] == ["[\n  1\n]\n"]

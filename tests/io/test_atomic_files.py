"""Files are either complete or not there, and their JSON is strict."""

from __future__ import annotations

import json
import os
import platform
import stat
import tempfile

import numpy as np
import pytest

from nnunet_calib.io.atomic_files import (
    discard_unfinished,
    forget,
    hidden_folder,
    open_regular,
    replaced_when_complete,
    write_json,
)


def test_replaced(tmp_path):
    """The content takes its name at the end of the block, not before; writers find the suffix that they look at."""
    path = tmp_path / "figure.png"
    path.write_text("old")
    with replaced_when_complete(str(path)) as temporary:
        assert temporary.parent.parent == tmp_path
        assert temporary.parent.name.startswith(".")
        assert temporary.name == "figure.png"
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
    (tmp_path / ".18.tmp.a.nii.gz").mkdir()
    (tmp_path / ".18.tmp.a.nii.gz" / "a.nii.gz").touch()
    for name in ("a.nii.gz", ".17.tmp.a.nii.gz", "b.nii.gz", ".17.tmp.b.nii.gz", "[a].nii.gz"):
        (tmp_path / name).touch()
    for _ in range(2):
        forget(tmp_path / "a.nii.gz")
        assert sorted(p.name for p in tmp_path.iterdir()) == [".17.tmp.b.nii.gz", "[a].nii.gz", "b.nii.gz"]


def test_nothing_written(tmp_path):
    """A block that wrote nothing is an error, not an empty file."""
    with pytest.raises(FileNotFoundError), replaced_when_complete(tmp_path / "a.txt"):
        pass
    assert not [*tmp_path.iterdir()]


def test_two_writers(tmp_path, monkeypatch):
    """Two containers can have one machine's name and one number of process: what they write is never mixed."""
    monkeypatch.setattr(platform, "node", lambda: "container")
    monkeypatch.setattr(os, "getpid", lambda: 1)
    path = tmp_path / "a.txt"
    with replaced_when_complete(path) as one:
        one.write_text("first, and longer")
        with replaced_when_complete(path) as other:
            other.write_text("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first, and longer"
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege")
def test_links_at_temporary_names(tmp_path, monkeypatch):
    """A link that lies where the file or its folder is to be is not followed; another name is taken."""
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "a.txt").write_text("theirs")
    (tmp_path / ".taken.tmp.a.txt").symlink_to(tmp_path / "others")
    names = iter(["taken", "taken", "free"])
    monkeypatch.setattr(tempfile, "_get_candidate_names", lambda: names)
    with replaced_when_complete(tmp_path / "a.txt") as temporary:
        temporary.write_text("ours")
        assert stat.S_IMODE(temporary.parent.stat().st_mode) == 0o700  # nobody else can put a link there
    assert (tmp_path / "a.txt").read_text() == "ours"
    assert (tmp_path / "others" / "a.txt").read_text() == "theirs"


def test_link_at_the_name(tmp_path):
    """One at the name itself is replaced, as any file is."""
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "a.txt").symlink_to(tmp_path / "theirs")
    write_json([1], tmp_path / "a.txt")
    assert not (tmp_path / "a.txt").is_symlink()
    assert (tmp_path / "theirs").read_text() == "theirs"


def test_permissions(tmp_path):
    """They are those of any new file, though nobody else sees it before it is complete."""
    (tmp_path / "other").touch()
    write_json([1], tmp_path / "a.json")
    assert (tmp_path / "a.json").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_discarded(tmp_path):
    """What a process that ends at once is writing goes with it, and nothing else."""
    (tmp_path / ".other.tmp").mkdir()
    with hidden_folder(tmp_path, "a.txt") as folder:
        (folder / "a.txt").write_text("half")
        discard_unfinished()
        assert [path.name for path in tmp_path.iterdir()] == [".other.tmp"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_open_regular(tmp_path):
    """Files and links to them; a pipe is refused rather than waited for, and so is a device that never ends."""
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for name in ("a", "link"):
        with open_regular(tmp_path / name) as file:
            assert file.read() == b"content"
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(ValueError, match=f"expected a regular file, found a pipe or a device at {path}"):
            open_regular(path)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)


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

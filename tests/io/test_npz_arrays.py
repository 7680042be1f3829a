"""What lies about its size or its place is refused before it takes memory or leaves its folder."""

import io
import re
import tracemalloc
import zipfile

import numpy as np
import pytest
from numpy.lib import format as npy

from nnunet_calib import CaseStatistics
from nnunet_calib.io.atomic_files import is_plain_name
from nnunet_calib.io.npz_arrays import open_arrays
from tests.worlds.measured_cases import make_case

PLAIN = ["a", "case.0", "..a", "ä b", "日本", "x" * 255, " ", "a\u00a0b"]
NOT_PLAIN = [
    "",
    ".",
    "..",
    "/a",
    "a/b",
    "../a",
    "a\\b",
    "C:a",
    "C:",
    "a\0b",
    "a\nb",
    "\x7f",
    "\ud800",
    "x" * 256,
    None,
    5,
    ["a"],
]


@pytest.mark.parametrize("name", PLAIN)
def test_plain_names(name):
    """Whatever people call their cases."""
    assert is_plain_name(name)


@pytest.mark.parametrize("name", NOT_PLAIN, ids=repr)
def test_names_that_lead_elsewhere(name):
    """On this system or another."""
    assert not is_plain_name(name)


def header(shape, dtype="<f8"):
    """The first bytes of an array."""
    file = io.BytesIO()
    npy.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


def write(path, **members):
    """An archive of these contents."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name.replace("__", "/"), content)


def taken(work):
    """The largest memory that NumPy and Python took."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("fortran", [False, True])
def test_arrays(tmp_path, fortran):
    """As NumPy reads them: every type, shape and order, compressed or not."""
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.random((3, 4, 5)),
        "b": np.zeros((0, 3), np.int8),
        "c": np.array("text"),
        "d": rng.random(7) > 0.5,
        "e": np.array(3, ">i4"),
        "f": rng.random((4, 3)).astype(np.float16),
    }
    arrays = {name: np.asfortranarray(array) if fortran else array for name, array in arrays.items()}
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "x.npz", **arrays)
        with open_arrays(tmp_path / "x.npz") as found:
            assert [*found] == [*arrays]
            for name, array in arrays.items():
                read = found.read(name)
                np.testing.assert_array_equal(read, array)
                assert (read.dtype, read.shape) == (array.dtype, array.shape)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (header((10**12,)), "x, float64 of shape (1000000000000,), does not fill its 128 bytes"),
        (header((-1,)), "of shape (-1,), does not fill"),
        (header((2,)) + bytes(24), "of shape (2,), does not fill its 152 bytes"),
        (header((1,), "|O") + bytes(8), "x holds objects, which can run code"),
        (b"\x93NUMPY\x09\x09" + bytes(20), "x is of NumPy's format (9, 9)"),
    ],
    ids=["huge", "negative", "too long", "objects", "version"],
)
def test_headers_that_lie(tmp_path, content, told):
    """NumPy would allocate what a header claims."""
    write(tmp_path / "x.npz", **{"x.npy": content})

    def read():
        with open_arrays(tmp_path / "x.npz") as arrays, pytest.raises(ValueError, match=re.escape(told)):
            arrays.read("x")

    assert taken(read) < 1 << 20


@pytest.mark.parametrize("name", ["..__x.npy", "__etc__x.npy", "a__x.npy", "..\\x.npy"])
def test_members_elsewhere(tmp_path, name):
    """They are never unpacked to files, but who writes such names means no good."""
    write(tmp_path / "x.npz", **{name: header((0,))})
    with pytest.raises(ValueError, match="which may lie outside of it"), open_arrays(tmp_path / "x.npz"):
        pass


def test_a_name_twice(tmp_path):
    """Two readers could see different arrays."""
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
        file.writestr("x.npy", header((0,)))
        with pytest.warns(UserWarning, match="Duplicate"):
            file.writestr("x.npy", header((0,)))
    with pytest.raises(ValueError, match="it holds 'x' twice"), open_arrays(tmp_path / "x.npz"):
        pass


def test_statistics_bomb(tmp_path):
    """100 MB of zeros in a file of 100 kB: more voxels than the case has, refused before they are unpacked."""
    make_case().measure(case="one").save(tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as file:
        arrays = {name: file[name] for name in file.files}
    arrays["sample.logits"] = np.zeros((17_000_000, 3), np.float16)
    np.savez_compressed(tmp_path / "x.npz", **arrays)
    assert (tmp_path / "x.npz").stat().st_size < 200_000
    assert taken(lambda: refused(tmp_path / "x.npz", "x.npz unreadable (it has")) < 10 << 20


def test_largest_statistics(tmp_path):
    """What honest files take may be raised by who trusts them."""
    make_case().measure(case="one").save(tmp_path / "x.npz")
    told = "unreadable (its arrays would take 1 MiB of memory, more than 0)"
    refused(tmp_path / "x.npz", told, max_bytes=1000)
    assert CaseStatistics.load(tmp_path / "x.npz", max_bytes=1 << 20).cases == ("one",)


def refused(path, told, **options):
    """Expect loading to fail with a message that has this part."""
    with pytest.raises(ValueError, match=re.escape(told)):
        CaseStatistics.load(path, **options)

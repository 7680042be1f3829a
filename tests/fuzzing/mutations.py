"""Ways in which a file goes wrong, by chance or on purpose; all from one random generator."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from typing import Any

import numpy as np
from numpy.lib import format as npy

NAMES = ("../../../etc/passwd", "/etc/passwd", "..", "", ".", "C:\\x", "a/b", "a\0b", "\ud800", "x" * 300, "\n", "ä")
NUMBERS = (0, -1, 1, 2**31, 2**63, 10**400, -0.0, 0.5, 1e308, -1e-300, float("nan"), float("inf"), float("-inf"))
OTHERS = (None, True, False, [], {}, [[]], [None], {"": None}, "text", "1", "NaN", [1, "2"], {"a": {"b": []}})


def of_bytes(rng: random.Random, content: bytes, others: list[bytes]) -> bytes:
    """Damage that knows nothing of formats: bits, cuts, holes, parts of other files."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(len(data) + 1)
        length = min(rng.choice((1, 2, 4, 16, 64, 4096)), max(len(data) - at, 0))
        kind = rng.randrange(8)
        if kind <= 1 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 2 and data:
            data[at % len(data)] = rng.randrange(256)
        elif kind == 3:
            del data[at:]
        elif kind == 4:
            del data[at : at + length]
        elif kind == 5:
            data[at : at + length] = bytes(length)
        elif kind == 6:
            data[at:at] = data[at : at + length]
        else:
            other = rng.choice(others)
            start = rng.randrange(len(other) + 1)
            data[at : at + length] = other[start : start + length]
    return bytes(data)


def of_json(rng: random.Random, valid: bytes) -> bytes:
    """Entries of another type, renamed, lost, twice, in the wrong place, huge, or nested without end."""
    content = json.loads(valid)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        holder = {"root": content}
        parent, key = _somewhere(rng, holder)
        kind = rng.randrange(9)
        if kind == 0:
            parent[key] = rng.choice(NUMBERS)
        elif kind == 1:
            parent[key] = _copy(rng.choice(OTHERS))
        elif kind == 2:
            parent[key] = rng.choice(NAMES)
        elif kind == 3 and parent is not holder:
            del parent[key]
        elif kind == 4 and isinstance(parent, dict) and parent is not holder:
            parent[rng.choice((*NAMES, "case", "fold"))] = parent.pop(key)
        elif kind == 5:
            parent[key] = [parent[key]] * rng.choice((1, 2, 50))
        elif kind == 6:
            parent[key] = {rng.choice(("a", "case", "0")): parent[key]}
        elif kind == 7:
            other_parent, other_key = _somewhere(rng, holder)
            parent[key] = _copy(other_parent[other_key])
        else:
            for _ in range(rng.choice((20, 100))):
                parent[key] = [parent[key]]
        content = holder["root"]
    text = json.dumps(content)
    if rng.random() < 0.02:
        depth = rng.choice((100, 100_000))
        text = "[" * depth + text + "]" * (depth - rng.randrange(2))
    return text.encode("utf-8", "surrogatepass")


def _copy(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _somewhere(rng: random.Random, holder: dict[str, Any]) -> tuple[Any, Any]:
    parent: Any = holder
    key: Any = "root"
    while isinstance(parent[key], dict | list) and parent[key] and rng.random() < 0.85:
        parent = parent[key]
        key = rng.choice([*parent]) if isinstance(parent, dict) else rng.randrange(len(parent))
    return parent, key


def of_arrays(rng: random.Random, arrays: dict[str, np.ndarray]) -> bytes:
    """An .npz with a right checksum whose arrays, headers or names are others, or whose directory lies."""
    members = {f"{name}.npy": _member(array) for name, array in arrays.items()}
    for _ in range(rng.choice((1, 1, 1, 2))):
        name = rng.choice([*members])
        kind = rng.randrange(8)
        if kind <= 2:
            array = arrays.get(name.removesuffix(".npy"))
            if array is not None:
                members[name] = _member(_other_values(rng, array))
        elif kind == 3:
            members[name] = _other_header(rng, members[name])
        elif kind == 4:
            del members[name]
            if not members:
                members["x"] = b""
        elif kind == 5:
            members[rng.choice((*NAMES[:8], *NAMES[9:], *members)) or "x"] = members.pop(name)
        elif kind == 6:
            other = rng.choice([*members])
            members[name], members[other] = members[other], members[name]
        else:
            members[name] = members[name][: rng.randrange(len(members[name]) + 1)] + bytes(rng.choice((0, 1, 100)))
    target = io.BytesIO()
    stored = rng.random() < 0.8
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for name, member in members.items():
            info = zipfile.ZipInfo("x")
            info.filename, info.compress_type = name, file.compression
            file.writestr(info, member)
    content = target.getvalue()
    return _lying(rng, content) if rng.random() < 0.15 else content


def _member(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    npy.write_array(file, np.asanyarray(array), allow_pickle=False)
    return file.getvalue()


def _other_values(rng: random.Random, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "U":
        text = str(array)
        at = rng.randrange(len(text) + 1)
        other = rng.choice((text[:at], text + "x", text.replace("0", "-1"), text.replace("false", "1"), "[]", "null"))
        return np.array(other)
    array = np.array(array)
    flat, kind = array.reshape(-1), rng.randrange(9)
    if kind == 0 and flat.size:
        flat[rng.randrange(flat.size)] = -1 if array.dtype.kind == "i" else 1
    elif kind == 1 and flat.size:
        number = rng.choice(NUMBERS[:5]) if array.dtype.kind in "iu" else rng.choice(NUMBERS)
        with np.errstate(all="ignore"):
            flat[rng.randrange(flat.size)] = np.array(float(min(number, 1e308))).astype(array.dtype)
    elif kind == 2:
        return array.astype(rng.choice(("f2", "f4", "f8", ">f8", "i8", "u1", "?", "c16", "U3", "M8[s]", "longdouble")))
    elif kind == 3:
        return array[: rng.randrange(len(array) + 1)] if array.ndim else array[None]
    elif kind == 4:
        return array.T if rng.random() < 0.5 else array.reshape(-1)
    elif kind == 5:
        return array + array if array.dtype.kind != "b" else ~array
    elif kind == 6 and flat.size:
        flat[:] = flat[::-1].copy()
    elif kind == 7:
        return np.concatenate([array, array]) if array.ndim else np.array([array] * 3)
    elif flat.size > 1:
        flat[rng.randrange(flat.size)], flat[0] = flat[0], flat[-1]
    return array


def _other_header(rng: random.Random, member: bytes) -> bytes:
    """A header that claims something else of the same values."""
    if len(member) < 12:
        return member
    length = struct.unpack("<H", member[8:10])[0]
    header = member[10 : 10 + length].decode("latin1")
    shape = header[header.find("(") : header.find(")") + 1]
    large = rng.choice(("(10000000000,)", "(1000000, 1000000)", "(-1,)", "(0,)", "()", "(2, 3)", "(1e3,)", "((1,),)"))
    kind = rng.randrange(5)
    if kind <= 1:
        header = header.replace(shape, large, 1)
    elif kind == 2:
        start = header.find("'descr': '") + 10
        end = header.find("'", start)
        dtype = rng.choice(("|O", "<f8", ">f4", "|V0", "<U0", "|S1000000000", "<f2", "|b1", "nonsense", "<i8", "<f16"))
        header = header[:start] + dtype + header[end:]
    elif kind == 3:
        header = header.replace("False", rng.choice(("True", "None", "0", "open('x')")))
    else:
        header = rng.choice(("(" * 5000, "{}", "[]", "{'descr'", "\x00" * 20, "9" * 9000, "{" * 200))
    encoded = header.encode("latin1")
    version = rng.choice((b"\x01\x00",) * 6 + (b"\x02\x00", b"\x03\x00", b"\x09\x09"))
    short = version == b"\x01\x00"
    size = struct.pack("<H" if short else "<I", min(len(encoded), 0xFFFF if short else 0xFFFFFFFF))
    return member[:6] + version + size + encoded + member[10 + length :]


def _lying(rng: random.Random, content: bytes) -> bytes:
    """A central directory whose sizes, offsets, flags or methods are others."""
    data, at = bytearray(content), content.rfind(b"PK\x01\x02")
    if at < 0:
        return content
    offset, width = rng.choice(((8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (42, 4)))
    value = rng.choice((0, 1, 8, 12, 14, 99, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)) & (256**width - 1)
    data[at + offset : at + offset + width] = value.to_bytes(width, "little")
    return bytes(data)

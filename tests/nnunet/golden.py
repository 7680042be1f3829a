"""Digests of files: their bytes, and what of them is the same on every machine.

Another processor or another version of a library changes the last digits of numbers, and all bytes of a picture. So a
digest holds a hash of the bytes, which is compared where the environment is the recorded one, and a hash of the text
without its numbers beside sums of the numbers, which are compared everywhere.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

import nnunet_calib

PACKAGES = ("nnunetv2", "torch", "numpy", "scipy", "matplotlib", "pillow", "simpleitk")
TEXT = {".json", ".md", ".csv", ".html", ".txt"}
NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?(?![\w.])", re.IGNORECASE)


def environment() -> dict[str, str]:
    """Return what decides about the last digits: versions and the processor."""
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    info = Path("/proc/cpuinfo")
    # a name alone may stand for several generations, whose instructions libraries choose by
    text = info.read_text() if info.is_file() else ""
    told = re.findall(r"^(?:cpu family|model|model name|flags)\s*: (.*)", text, re.MULTILINE)[:4]
    return versions | {
        "python": platform.python_version(),
        "processor": f"{' '.join(told[:-1])}, {_hash(told[-1].encode())}" if told else platform.processor(),
    }


def digest(path: Path, names: dict[str, str]) -> dict[str, Any]:
    """Return the digest of a file.

    Args:
        path: of the file.
        names: texts that change from run to run, such as folders -> what stands for them.
    """
    if path.suffix in TEXT:
        text = path.read_text(encoding="utf-8")
        for name, stands in (names | {nnunet_calib.__version__: "VERSION"}).items():
            text = text.replace(name, stands)
        content = re.sub(r"base64,[\w+/=]+", "base64", text)  # pictures
        content = re.sub(r"\b[0-9a-f]{64}\b", "HASH", content)
        numbers = [float(number) for number in NUMBER.findall(content)]
        return {
            "bytes": _hash(text.encode()),
            "text": _hash(NUMBER.sub("#", content).encode()),
            "sums": _sums(np.array(numbers)),
        }
    arrays = dict(_arrays(path))
    if not arrays:
        return {"bytes": _hash(path.read_bytes()), "text": "", "sums": []}
    numbers = {name: array for name, array in arrays.items() if array.dtype.kind in "fiub"}
    form = {name: f"{array.dtype} {array.shape}" if name in numbers else "text" for name, array in arrays.items()}
    exact = b"".join(array.tobytes() for array in numbers.values())
    sums = np.sum([_sums(array) for array in numbers.values()], axis=0)
    return {"bytes": _hash(exact), "text": _hash(json.dumps(form).encode()), "sums": sums.tolist()}


def differences(found: dict[str, Any], expected: dict[str, Any], *, exact: bool, tolerance: float = 1e-5) -> list[str]:
    """Return in a line each how two collections of digests by name differ."""
    lines = [f"{name}: only {'found' if name in found else 'expected'}" for name in sorted({*found} ^ {*expected})]
    for name in sorted({*found} & {*expected}):
        ours, theirs = found[name], expected[name]
        if ours["text"] != theirs["text"]:
            lines.append(f"{name}: another text or form")
        elif not np.allclose(ours["sums"], theirs["sums"], rtol=tolerance, atol=1e-9):
            lines.append(f"{name}: other numbers")
        elif exact and ours["bytes"] != theirs["bytes"]:
            lines.append(f"{name}: other bytes")
    return lines


def _arrays(path: Path) -> Iterable[tuple[str, np.ndarray]]:
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            yield from ((name, file[name]) for name in sorted(file.files))
    elif path.suffix == ".pth":
        weights = torch.load(path, map_location="cpu", weights_only=False)["network_weights"]
        yield from ((name, weight.numpy()) for name, weight in sorted(weights.items()))
    elif path.name.endswith(".nii.gz"):
        image = sitk.ReadImage(path)
        yield "values", sitk.GetArrayFromImage(image)
        yield "spacing", np.array(image.GetSpacing())


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _sums(values: np.ndarray) -> list[float]:
    """Sizes, and sums with weights by place, which an exchange of two values changes."""
    flat = np.nan_to_num(values.ravel().astype(np.float64))
    weights = 1 + np.arange(flat.size) % 97
    return [float(flat.size), float(np.abs(flat).sum()), float((np.abs(flat) * weights).sum())]

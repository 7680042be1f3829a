"""Write and read the .npz with the statistics of a case: without pickles, and with checks of all that is read.

A file of another origin, or a modified one, must not lead to wrong results. So types and shapes must be those that
`write` gives, sums over bins, classes and weights must give the number of voxels, and the mean probability of each bin
must lie between its edges.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnunet_calib.io.atomic_files import replaced_when_complete
from nnunet_calib.io.npz_arrays import Arrays, open_arrays
from nnunet_calib.io.wording import reason
from nnunet_calib.measuring.class_lumps import from_listed, listed_classes, lists_classes
from nnunet_calib.measuring.entropy_bins import ENTROPY_BINS
from nnunet_calib.measuring.fine_histogram import FINE_BINS, PARTS
from nnunet_calib.measuring.histograms import Histograms
from nnunet_calib.measuring.picture_slice import RepresentativeSlice
from nnunet_calib.measuring.voxel_sample import VoxelSample

FORMAT_VERSION = 2
LISTED_VERSION = 3  # the file lists only the relevant classes of each voxel
_ENTROPY = "histograms.entropy"  # which files of older versions lack
_LISTED = ("sample.common", "sample.number", "sample.classes", "sample.values")
MAX_BYTES = 1 << 30
_MAX_HEADER_BYTES = 1 << 24
_TOLERANCE = 1e-4  # per voxel, in sums of float32 probabilities, which may be up to 1 + 1e-5
_PARTS = {"histograms": Histograms, "sample": VoxelSample, "shown": RepresentativeSlice}


class Content(NamedTuple):
    """The content of a file, see `CaseStatistics`."""

    histograms: Histograms
    sample: VoxelSample
    regions: bool
    boundary_mm: float
    cases: tuple[str, ...]
    model: dict[str, Any]
    shown: RepresentativeSlice | None


def write(content: Content, path: str | os.PathLike[str]) -> None:
    """Write an .npz without pickles; it appears under its name only when it is complete."""
    header = {name: getattr(content, name) for name in ("regions", "boundary_mm", "cases", "model")}
    parts = {name: part for name in _PARTS if (part := getattr(content, name)) is not None}
    arrays: dict[str, Any] = {
        f"{name}.{f.name}": getattr(part, f.name) for name, part in parts.items() for f in fields(part)
    }
    version = FORMAT_VERSION
    if lists_classes(content.sample.logits, content.sample.labels):
        version = LISTED_VERSION
        arrays |= zip(_LISTED, listed_classes(arrays.pop("sample.logits")), strict=True)
    with replaced_when_complete(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, header=np.array(json.dumps({"format_version": version} | header)), **arrays)


def read(path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> Content:
    """Read a file that `write` made.

    Args:
        path: the file.
        max_bytes: limit on the memory of its arrays.

    Raises:
        ValueError: in one sentence, if the file has other content, is damaged, is of another format, or is too large.
        FileNotFoundError: if there is no such file.
    """
    try:
        with open_arrays(path) as arrays:
            arrays.check_total(["header"], _MAX_HEADER_BYTES)
            header = json.loads(str(arrays.read("header")[()]))
            version = header["format_version"]
            known = version in (FORMAT_VERSION, LISTED_VERSION)
            content = _read_parts(arrays, header, max_bytes, listed=version == LISTED_VERSION) if known else None
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile, zlib, json and NumPy each have their own errors for damaged content
        raise ValueError(
            f"expected calibration statistics of a case, found {path} unreadable ({reason(error)})"
        ) from error
    if content is None:
        raise ValueError(
            f"expected calibration statistics of format {FORMAT_VERSION} or {LISTED_VERSION}, found {version!r:.99} in "
            f"{path}: use the nnunet-calib that wrote it, or measure the case again"
        )
    return content


def _read_parts(arrays: Arrays, header: dict[str, Any], max_bytes: int, *, listed: bool) -> Content:
    parts = {name: part for name, part in _PARTS.items() if name != "shown" or "shown.where" in arrays}
    names = {f"{name}.{f.name}" for name, part in parts.items() for f in fields(part)}
    if not (has_entropy := _ENTROPY in arrays):
        names.remove(_ENTROPY)
    whole = "sample.logits"
    heads = 0
    if listed:
        counts = arrays.describe("histograms.counts").shape
        heads = counts[1] - 1 if len(counts) == 3 else 0
        voxels = math.prod(arrays.describe("sample.common").shape)
        max_bytes -= 2 * voxels * heads  # memory of the array that the lists expand to
        names = {*names, *_LISTED} - {whole}
    arrays.check_total(names, max(max_bytes, 0))
    _check_sizes(arrays, names)
    unpacked = {name: arrays.read(name) for name in names}
    if not has_entropy:
        unpacked[_ENTROPY] = np.zeros((PARTS, 2, ENTROPY_BINS))
    if listed:
        unpacked[whole] = _from_lists([unpacked[name] for name in _LISTED], heads)
    read = {name: part(*(unpacked[f"{name}.{f.name}"] for f in fields(part))) for name, part in parts.items()}
    regions, width, cases, model = (header[name] for name in ("regions", "boundary_mm", "cases", "model"))
    _expect(isinstance(regions, bool), "regions", regions)
    _expect(isinstance(width, int | float) and 0 <= width < math.inf, "boundary_mm", width)
    _expect(isinstance(cases, list) and all(isinstance(case, str) for case in cases), "cases", cases)
    _expect(isinstance(model, dict), "model", model)
    content = Content(read["histograms"], read["sample"], regions, float(width), tuple(cases), model, read.get("shown"))
    check(content)
    if not (has_entropy or content.regions):
        np.copyto(content.histograms.entropy, content.sample.histograms().entropy)
    return content


def _from_lists(lists: list[NDArray[Any]], heads: int) -> NDArray[Any]:
    """Return the log-probabilities of all classes, after checks of the lists."""
    common, number, classes, values = lists
    _has(common, (len(common),), "f2", "sample.common")
    _has(number, common.shape, "u2", "sample.number")
    _has(classes, (int(number.sum(dtype=np.int64)),), "u2", "sample.classes")
    _has(values, classes.shape, "f2", "sample.values")
    _expect(number.max(initial=0) <= heads, "sample.number up to", number.max(initial=0))
    _expect(classes.max(initial=0) < max(heads, 1), "sample.classes up to", classes.max(initial=0))
    return from_listed(common, number, classes, values, heads)


def _check_sizes(arrays: Arrays, names: Collection[str]) -> None:
    """Check, before arrays are unpacked, that the sample has no more voxels than the case.

    Compressed, an array of any claimed size can take hardly any space.
    """
    arrays.check_total(["histograms.voxels"], 8 * PARTS)
    voxels = arrays.read("histograms.voxels").sum()
    several = ("sample.classes", "sample.values")  # entries per voxel
    for name in names:
        if name.startswith("sample.") and name not in several:
            shape = arrays.describe(name).shape
            _expect(0 < len(shape) <= 2 and shape[0] <= voxels, f"{name} of shape", f"{shape} for {voxels} voxels")


def check(content: Content) -> None:
    """Raise ValueError for arrays that no case can have."""
    histograms, sample = content.histograms, content.sample
    shape = histograms.counts.shape
    heads = shape[1] - 1 if len(shape) == 3 else 0
    _expect(heads > 0 and shape == (PARTS, heads + 1, FINE_BINS), "histograms.counts of shape", shape)
    _check_histograms(histograms, content.regions)
    n = len(sample.weights) if sample.weights.ndim else -1
    _has(sample.weights, (n,), "f4", "sample.weights")
    _has(sample.logits, (n, heads), "f2", "sample.logits")
    _has(sample.scope_bits, (n,), "u1", "sample.scope_bits")
    _expect(sample.scope_bits.max(initial=0) < PARTS, "sample.scope_bits up to", sample.scope_bits.max(initial=0))
    if content.regions:
        _has(sample.labels, (n, heads), "b1", "sample.labels")
        _expect(sample.labels.view(np.uint8).max(initial=0) <= 1, "sample.labels", "that are not 0 or 1")
    else:
        _expect(sample.labels.shape == (n,) and sample.labels.dtype.kind in "iu", "sample.labels", sample.labels.dtype)
        low, high = sample.labels.min(initial=0), sample.labels.max(initial=0)
        _expect(low >= 0 and high < heads, "sample.labels", f"from {low} to {high}")
    _expect(bool(np.isfinite(sample.logits).all()), "sample.logits", "with NaN or infinity")
    _expect(bool((sample.weights >= 1).all()), "sample.weights", "below 1")
    total, voxels = sample.weights.sum(dtype=np.float64), histograms.voxels.sum()
    _expect(n == 0 or abs(total - voxels) <= 1e-5 * voxels, "sample.weights", f"for {total} of {voxels} voxels")
    if content.shown is not None:
        _check_slice(content.shown, heads)


def _check_histograms(h: Histograms, regions: bool) -> None:
    """Check that sums over the same voxels agree, as integers or as weights of a sample."""
    kind = "i8" if h.counts.dtype.kind == "i" else "f8"
    for name, dtype in (("counts", kind), ("positives", kind), ("probability", "f8")):
        _has(getattr(h, name), h.counts.shape, dtype, f"histograms.{name}")
    for name, dtype in (("nll", "f8"), ("brier", "f8"), ("voxels", kind)):
        _has(getattr(h, name), (PARTS,), dtype, f"histograms.{name}")
    _has(h.entropy, (PARTS, 2, ENTROPY_BINS), "f8", _ENTROPY)
    finite = all(bool(np.isfinite(getattr(h, f.name)).all()) for f in fields(h))
    _expect(finite, "histograms", "with NaN or infinity")
    most = 2**53  # up to which float64 holds all integers
    _expect(bool((h.voxels >= 0).all() and (h.voxels <= most).all()), "histograms.voxels of", h.voxels.tolist())
    slack = 1e-9 * h.counts if kind == "f8" else 0  # for rounded weights
    in_range = (h.counts >= 0) & (h.counts <= most) & (h.positives >= 0) & (h.positives <= h.counts + slack)
    _expect(bool(in_range.all()), "histograms.counts and positives", "that no voxels can have")
    heads = h.counts.shape[1] - 1
    rows = np.array([1] * heads + [heads if regions else 1])
    allowed = 1e-6 * (1 + h.voxels) if kind == "f8" else np.zeros(PARTS)
    off = np.abs(h.counts.sum(2) - h.voxels[:, None] * rows).max(1)
    _expect(bool((off <= heads * allowed).all()), "histograms.counts", "whose sums are not histograms.voxels")
    if not regions:  # each voxel belongs to one class
        off = np.abs(h.positives[:, :-1].sum((1, 2)) - h.voxels)
        _expect(bool((off <= heads * allowed).all()), "histograms.positives", "whose sums are not histograms.voxels")
    _expect(bool((h.entropy >= 0).all()), _ENTROPY, "below 0")
    # older files may lack it, and their sample, which stands in for it, has only the total in common with the voxels
    total, voxels = h.entropy.sum(), h.voxels.sum()
    _expect(not total or abs(total - voxels) <= 1e-5 * voxels, _ENTROPY, f"for {total} of {voxels} voxels")
    edges, spare = np.arange(FINE_BINS + 1) / FINE_BINS, _TOLERANCE * h.counts + 1e-9
    inside = (h.probability >= edges[:-1] * h.counts - spare) & (h.probability <= edges[1:] * h.counts + spare)
    _expect(bool(inside.all()), "histograms.probability", "outside of the edges of the bins")
    for name, largest in (("nll", 100), ("brier", 2 + _TOLERANCE)):
        values = getattr(h, name)
        fits = (values >= -_TOLERANCE * h.voxels - 1e-9) & (values <= largest * h.voxels + 1e-9)
        _expect(bool(fits.all()), f"histograms.{name} of", values.tolist())


def _check_slice(shown: RepresentativeSlice, heads: int) -> None:
    where = shown.where
    _expect(where.dtype == np.int64 and where.shape in ((2, 3), (3, 3)), "shown.where of shape", where.shape)
    _expect(bool((where[:, 0] >= 0).all() and (where[:, 2] >= 1).all()), "shown.where of", where.tolist())
    sides = tuple(len(range(*map(int, axis))) for axis in where)
    _expect(sides[:-2] in ((), (1,)), "shown.where of", where.tolist())
    _has(shown.spacing, (2,), "f8", "shown.spacing")
    _expect(bool((np.isfinite(shown.spacing) & (shown.spacing > 0)).all()), "shown.spacing of", shown.spacing.tolist())
    _has(shown.labels, sides[-2:], "u2", "shown.labels")
    _has(shown.probabilities, (heads, *sides[-2:]), "u1", "shown.probabilities")
    _has(shown.image, (*shown.image.shape[:1], *sides[-2:]), "f2", "shown.image")


def _has(array: NDArray[Any], shape: tuple[int, ...], dtype: str, name: str) -> None:
    _expect(array.shape == shape and array.dtype == np.dtype(dtype), name, f"of shape {array.shape}, {array.dtype}")


def _expect(holds: bool, name: str, found: object) -> None:
    if not holds:
        raise ValueError(f"it has {name} {found!s:.99}")

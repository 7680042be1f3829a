"""Measuring of one case: the probabilities of its image against its label file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_calib.measuring.case_statistics import MAX_VOXELS, CaseStatistics
from nnunet_calib.measuring.raters import SUMS_DIFFER
from nnunet_calib.measuring.volume import Probabilities
from nnunet_calib.results.heads import Heads

_OPAQUE = (255, 65535)  # in 8 and 16 bits


def measure_case(
    probabilities: Probabilities,
    labels_file: Path | Sequence[Path],
    reader: Any,
    heads: Heads,
    *,
    case: str,
    model: dict[str, Any],
    spacing: Sequence[float] | None = None,
    boundary_mm: float | None = None,
    crop: tuple[slice, ...] | None = None,
    max_voxels: int = MAX_VOXELS,
    raters: int | None = None,
) -> CaseStatistics:
    """Measure probabilities against a label file; `spacing` in mm defaults to that of the file.

    Several files have the frequency of one label each, as for `read_frequencies`.

    For the other arguments and for errors see `CaseStatistics.from_probabilities`. Errors of nnU-Net's reader are not
    caught.
    """
    labels: NDArray[Any]
    if isinstance(labels_file, Path):
        labels, own_spacing = read_labels(labels_file, reader)
    else:
        labels, own_spacing = read_frequencies(labels_file, reader)
    return CaseStatistics.from_probabilities(
        probabilities,
        labels,
        regions=heads.regions,
        ignore_label=heads.ignore_label,
        spacing=own_spacing if spacing is None else spacing,
        boundary_mm=boundary_mm,
        crop=crop,
        max_voxels=max_voxels,
        raters=raters,
        case=case,
        model=model,
    )


def read_labels(file: Path, reader: Any) -> tuple[NDArray[np.int16], Sequence[float]]:
    """Return the label map (*spatial) in a file, and its spacing in mm.

    Raises:
        ValueError: if the file has several layers, or values that are no labels. Errors of the reader are not caught.
    """
    labels, properties = reader.read_seg(str(file))
    return _in_two_bytes(_only_layer(labels, len(properties["spacing"]), file), file), properties["spacing"]


def read_frequencies(files: Sequence[Path], reader: Any) -> tuple[NDArray[np.float32], Sequence[float]]:
    """Return the frequencies of the labels 0, 1, ... (labels, *spatial) among raters, and the spacing in mm.

    Args:
        files: a file for each label from 1 with its frequency in each voxel, from 0 to 1; label 0 has the rest.
        reader: nnU-Net's reader for label maps.

    Raises:
        ValueError: if a file has several layers, or if the files differ in shape, or for values that are no
            frequencies. Errors of the reader are not caught.
    """
    layers = []
    for file in files:
        values, properties = reader.read_seg(str(file))
        layers.append(_only_layer(values, len(properties["spacing"]), file).astype(np.float32))
        if layers[-1].shape != layers[0].shape:
            raise ValueError(
                f"expected frequencies of one shape, found {layers[0].shape} in {files[0]} and {layers[-1].shape} in "
                f"{file}: write all of them on the grid of the image"
            )
        if not (layers[-1].min(initial=0) >= 0 and layers[-1].max(initial=0) <= 1):  # neither holds for NaN
            raise ValueError(
                f"expected frequencies of a label from 0 to 1, found {layers[-1].min()} to {layers[-1].max()} in "
                f"{file}: divide them by the number of raters"
            )
    rest = 1 - np.sum(layers, axis=0, dtype=np.float32)
    if rest.min(initial=0) < -SUMS_DIFFER:
        raise ValueError(
            f"expected frequencies of labels that sum to 1 at most, found {1 - rest.min():.3g} in "
            f"{', '.join(map(str, files))}: each rater gives a voxel one label"
        )
    return np.stack([np.maximum(rest, 0), *layers]), properties["spacing"]


def _only_layer(labels: NDArray[Any], axes: int, file: Path) -> NDArray[Any]:
    """Return the label map of a file, whose layers may be the equal colours of a grey picture.

    Args:
        labels: (layers, *spatial), from nnU-Net's reader.
        axes: number of axes of the image. For a vector image it is one less than `labels` has beside the layers: the
            readers put its layers last.
        file: file that messages name.

    Raises:
        ValueError: if layers differ: nnU-Net would silently take the first.
    """
    layers = labels.shape[-1] if axes < labels.ndim - 1 else len(labels)
    if layers == 1 or (layers == len(labels) and _is_grey(labels)):
        layer: NDArray[Any] = labels[0]
        return layer
    raise ValueError(
        f"expected one label map, found {layers} layers in {file}: save one layer, in which each voxel has one number; "
        f"structures that overlap are regions of dataset.json, with a number for what they share"
    )


def _is_grey(layers: NDArray[Any]) -> bool:
    """Return whether all layers are equal, apart from an alpha channel without transparency."""
    same = [np.array_equal(layer, layers[0]) for layer in layers]
    if len(layers) == 4 and not same[3]:
        alpha = layers[3]
        same[3] = alpha.min() == alpha.max() and alpha.flat[0] in _OPAQUE
    return all(same)


def _in_two_bytes(labels: NDArray[Any], file: Path) -> NDArray[np.int16]:
    """Return labels as 16-bit integers: some readers return float32, which takes twice the memory."""
    with np.errstate(invalid="ignore"):  # NaN
        integers = labels.astype(np.int16)
    if not np.can_cast(labels.dtype, np.int16) and (wrong := integers != labels).any():
        raise ValueError(
            f"expected whole numbers up to {np.iinfo(np.int16).max} as labels, found {labels[wrong][0]} in {file}: "
            f"check the label map"
        )
    return integers

"""Values of a map: probabilities, entropy or confidence of each voxel, as float32 or scaled to integers.

| map | labels | regions |
|---|---|---|
| probabilities | p_c, one map per class | p_r, one map per region |
| entropy | -sum_c p_c log p_c, up to log C | mean over regions of -p log p - (1 - p) log(1 - p), up to log 2 |
| confidence | max_c p_c | max(p, 1 - p), one map per region |
| mutual_information | entropy of the mean over folds - mean over folds of the entropies | the same |
| variance | variance over folds of p_c, one map per class | of p_r, one map per region |

Entropy is in nats. It is the negative log-likelihood that the model itself expects, so that for regions it is a mean,
like `nll`. Integers hold value / maximum * 255 or 65535, rounded; the maximum is 1, for entropy and mutual
information log C or log 2, for variance 1/4.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from nnunet_calib.measuring.volume import Probabilities, check_range, slab_slices

PROBABILITIES, ENTROPY, CONFIDENCE = KINDS = ("probabilities", "entropy", "confidence")
MUTUAL_INFORMATION, VARIANCE = FOLD_KINDS = ("mutual_information", "variance")  # of several folds
DTYPES = ("float32", "uint8", "uint16")


@dataclass(frozen=True)
class MapOptions:
    """Choice of the maps to write, and of their format.

    Attributes:
        kinds: some of `KINDS` and `FOLD_KINDS`.
        dtype: one of `DTYPES`.
        layout: for maps with a channel per class or region, "files" (one each) or "4d" (all in one).
    """

    kinds: tuple[str, ...] = KINDS
    dtype: str = "float32"
    layout: str = "files"

    @property
    def steps(self) -> int:
        """Number of steps that an integer type divides the range into; 0 for float32."""
        return 0 if self.dtype == "float32" else int(np.iinfo(self.dtype).max)


class Disagreement(Protocol):
    """Maps of the folds' disagreement, slab by slab; see `FoldStatistics`."""

    def variance(self, slab: slice) -> NDArray[np.float32]: ...  # noqa: D102

    def mutual_information(self, slab: slice) -> NDArray[np.float32]: ...  # noqa: D102


def entropy(probabilities: torch.Tensor, *, regions: bool) -> torch.Tensor:
    """Return the entropy (*spatial) in nats of probabilities (C, *spatial), with 0 log 0 = 0."""
    h: torch.Tensor = torch.special.entr(probabilities)
    return (h + torch.special.entr(1 - probabilities)).mean(0) if regions else h.sum(0)


def confidence(probabilities: torch.Tensor, *, regions: bool) -> torch.Tensor:
    """Return the probability of each voxel's decision: (1, *spatial), or (C, *spatial) for regions."""
    return torch.maximum(probabilities, 1 - probabilities) if regions else probabilities.amax(0, keepdim=True)


def maximum(kind: str, channels: int, *, regions: bool) -> float:
    """Return the largest value a map can have: 1, the largest entropy in nats, or the largest variance."""
    if kind in (ENTROPY, MUTUAL_INFORMATION):
        return math.log(2) if regions else math.log(channels)
    return 0.25 if kind == VARIANCE else 1.0


def compute_maps(
    probabilities: Probabilities,
    options: MapOptions,
    *,
    regions: bool,
    shape: tuple[int, ...] | None = None,
    crop: tuple[slice, ...] | None = None,
    also: Callable[[slice, NDArray[np.float32]], None] | None = None,
    folds: Disagreement | None = None,
) -> dict[str, NDArray[Any]]:
    """Compute the maps of a case, slab by slab.

    Args:
        probabilities: (C, *spatial), in [0, 1], of regions, or of labels with the background first.
        options: kinds and type of the maps.
        regions: whether each channel is a region.
        shape: shape of the whole image; None means that of the probabilities.
        crop: box of the probabilities in the image; voxels outside are certain background, as in nnU-Net's export.
        also: called with each slab of the first axis and its probabilities.
        folds: disagreement of the folds, for the maps of it.

    Returns:
        Maps of the whole image by kind, (n, *shape) with n channels; entropy has one.

    Raises:
        ValueError: if a probability is NaN or outside [0, 1].
    """
    channels, *spatial = probabilities.shape
    shape, crop = shape or tuple(spatial), crop or tuple(slice(0, size) for size in spatial)
    maps, inside = {}, {}
    for kind in options.kinds:
        n = 1 if kind in (ENTROPY, MUTUAL_INFORMATION) or (kind == CONFIDENCE and not regions) else channels
        maps[kind] = np.zeros((n, *shape), options.dtype)
        # certain background: its probability is 1, that of regions 0, and the confidence of either is 1
        if kind == CONFIDENCE or (kind == PROBABILITIES and not regions):
            maps[kind][slice(None) if kind == CONFIDENCE else 0] = options.steps or 1
        inside[kind] = maps[kind][(slice(None), *crop)]
    for slab in slab_slices(spatial, channels):
        values_here = np.asarray(probabilities[:, slab], np.float32)
        check_range(values_here)
        if also is not None:
            also(slab, values_here)
        p = torch.from_numpy(values_here)
        for kind, view in inside.items():
            values = _values(kind, p, slab, folds, regions=regions)
            if options.steps:
                values = values / maximum(kind, channels, regions=regions)
                values = (values.clamp(0, 1) * options.steps).round_()
            view[:, slab] = values.numpy()
    return maps


def _values(kind: str, p: torch.Tensor, slab: slice, folds: Disagreement | None, *, regions: bool) -> torch.Tensor:
    """Return the values (n, *spatial) of a map in a slab with the probabilities p (C, *spatial)."""
    if kind == PROBABILITIES:
        return p
    if kind == ENTROPY:
        return entropy(p, regions=regions)[None]
    if kind == CONFIDENCE:
        return confidence(p, regions=regions)
    if folds is None:
        raise ValueError(f"expected several folds for a map of {kind}, got none: name them as in -f 0 1")
    return torch.from_numpy(folds.variance(slab) if kind == VARIANCE else folds.mutual_information(slab))


def describe_maps(options: MapOptions, channels: int, *, regions: bool) -> dict[str, Any]:
    """Describe the values of each map, as JSON values: a stored value times `step` is the value in `unit`."""
    definitions = {
        PROBABILITIES: ("probability", "p of each class", "p of each region"),
        ENTROPY: ("nats", "-sum over classes of p log p", "mean over regions of -p log p - (1 - p) log(1 - p)"),
        CONFIDENCE: ("probability", "largest p of all classes", "max(p, 1 - p) of each region"),
        MUTUAL_INFORMATION: ("nats", *["entropy of the mean over folds of p - mean over folds of the entropies"] * 2),
        VARIANCE: ("probability squared", "variance over folds of p of each class", "the same of each region"),
    }
    described = {}
    for kind in options.kinds:
        unit, of_labels, of_regions = definitions[kind]
        top = maximum(kind, channels, regions=regions)
        scaled = "p" if kind == PROBABILITIES else kind.replace("_", " ")
        nats = " * log(2)" if regions else f" * log({channels})"
        factor = {PROBABILITIES: "", CONFIDENCE: "", VARIANCE: " / 4"}.get(kind, nats)
        described[kind] = {
            "definition": of_regions if regions else of_labels,
            "unit": unit,
            "maximum": top,
            "step": top / options.steps if options.steps else 1.0,
            "value": f"{scaled} = value / {options.steps}{factor}" if options.steps else f"{scaled} = value",
        }
    return described

"""A synthetic case of CT size: organs, the logits of a network that finds them, and the ground truth."""

from __future__ import annotations

import numpy as np

SPACING, NETWORK_SPACING = (2.0, 0.8, 0.8), (1.5, 1.5, 1.5)  # mm, slices first


def organs(size_mm: np.ndarray, number: int) -> list[dict[str, np.ndarray]]:
    """Return bumpy ellipsoids: centres, radii and bumps in mm."""
    rng = np.random.default_rng(number)
    return [
        {
            "centre": size_mm * rng.uniform(0.2, 0.8, 3),
            "radii": size_mm.min() * rng.uniform(0.04, 0.15, 3),
            "waves": rng.normal(0, 1 / 5, (6, 3)),
            "phases": rng.uniform(0, 2 * np.pi, 6),
        }
        for _ in range(number)
    ]


def depth_mm(organ: dict[str, np.ndarray], axes: list[np.ndarray], waves: slice) -> np.ndarray:
    """Return the approximate depth in an organ of each point of a grid, negative outside."""
    centre, radii = organ["centre"], organ["radii"]
    squares = [np.square((x - c) / r).astype(np.float32) for x, c, r in zip(axes, centre, radii, strict=True)]
    z, y, x = np.ix_(*squares)
    depth = (1 - np.sqrt(z + y + x)) * np.float32(radii.min())
    for wave, phase in zip(organ["waves"][waves], organ["phases"][waves], strict=True):
        z, y, x = np.ix_(*(np.exp(1j * k * a).astype(np.complex64) for k, a in zip(wave, axes, strict=True)))
        depth += ((z * y) * np.complex64(np.exp(1j * phase)) * x).real
    return depth


def network_logits(size_mm: np.ndarray, classes: int, axes: list[np.ndarray]) -> np.ndarray:
    """Return logits that are uncertain only at borders: probabilities go from .01 to .99 within about 3 mm."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((classes, *map(len, axes)), dtype=np.float32)
    logits *= 0.7
    deepest = np.full(logits.shape[1:], -np.inf, np.float32)
    for organ, channel in zip(organs(size_mm, classes - 1), logits[1:], strict=True):
        depth = depth_mm(organ, axes, slice(0, 3))
        np.maximum(deepest, depth, out=deepest)
        channel += np.clip(1.5 * depth, -12, 10)
    logits[0] += np.clip(-1.5 * deepest, -12, 10)
    return logits


def true_labels(size_mm: np.ndarray, classes: int, axes: list[np.ndarray]) -> np.ndarray:
    """Return the labels of the same organs with different bumps."""
    labels, deepest = np.zeros([len(a) for a in axes], np.uint8), np.zeros([len(a) for a in axes], np.float32)
    for c, organ in enumerate(organs(size_mm, classes - 1), 1):
        depth = depth_mm(organ, axes, slice(3, 6))
        labels[depth > deepest] = c
        np.maximum(deepest, depth, out=deepest)
    return labels


def grid(shape: tuple[int, ...], spacing: tuple[float, ...], start_mm: np.ndarray) -> list[np.ndarray]:
    """Return the coordinates of voxel centres along each axis, in mm."""
    return [(np.arange(n) + 0.5) * s + t for n, s, t in zip(shape, spacing, start_mm, strict=True)]

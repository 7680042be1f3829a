"""The losses once more, slow and obvious: loops over voxels, heads, neighbours and bins, in float64.

Nothing here comes from the package. Each loss returns its value and its gradient in closed form, except for soft bins,
whose gradient `slope` takes from differences of the value.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterator

import numpy as np

Position = tuple[int, ...]


class Volume:
    """Logits (B, C, *spatial) and their target, asked voxel by voxel."""

    def __init__(self, logits: np.ndarray, target: np.ndarray, *, regions: bool, ignore_label: int | None) -> None:
        """Find the voxels that count and their probabilities."""
        self.logits, self.target, self.regions = logits, target, regions
        self.batch, self.heads, *self.shape = logits.shape
        self.voxels = []  # (image, position) of every voxel that counts
        for b in range(self.batch):
            for position in np.ndindex(*self.shape):
                mark = target[(b, -1, *position)]
                if ignore_label is None or mark != (1 if regions else ignore_label):
                    self.voxels.append((b, position))
        self.counting = set(self.voxels)
        self.probabilities = np.full(logits.shape, np.nan)
        for b, position in self.voxels:
            z = logits[(b, slice(None), *position)]
            for c in range(self.heads):
                rivals = [0.0, z[c]] if regions else z
                self.probabilities[(b, c, *position)] = 1 / sum(math.exp(rival - z[c]) for rival in rivals)

    def label(self, b: int, c: int, position: Position) -> int:
        """The label at a position; for regions 1 inside and 0 outside of region c."""
        return int(self.target[(b, c if self.regions else 0, *position)])

    def own_label(self, c: int) -> int:
        """The label that belongs to head c."""
        return 1 if self.regions else c

    def neighbours(
        self, b: int, position: Position, kernel_size: int | Position
    ) -> Iterator[tuple[Position, Position]]:
        """(offset, position) of the neighbours that count; past the border, the nearest voxel inside stands in."""
        sizes = [kernel_size] * len(self.shape) if isinstance(kernel_size, int) else kernel_size
        for offset in itertools.product(*(range(-(k // 2), k // 2 + 1) for k in sizes)):
            where = tuple(min(max(x + o, 0), n - 1) for x, o, n in zip(position, offset, self.shape, strict=True))
            if (b, where) in self.counting:
                yield offset, where

    def through_activation(self, slopes: np.ndarray) -> np.ndarray:
        """Gradient with respect to the logits from that with respect to the probabilities."""
        gradient = np.zeros_like(slopes)
        for b, position in self.voxels:
            p, slope = (x[(b, slice(None), *position)] for x in (self.probabilities, slopes))
            for c, k in itertools.product(range(self.heads), repeat=2):
                if c == k or not self.regions:
                    gradient[(b, c, *position)] += slope[k] * p[k] * ((c == k) - p[c])
        return gradient


def soft_label(volume: Volume, b: int, c: int, position: Position, kernel_size: int | Position, sigma: float) -> float:
    """Label smoothed over its neighbourhood: half by the voxel itself, half by its neighbours, Gaussian among them."""
    sizes = [kernel_size] * len(volume.shape) if isinstance(kernel_size, int) else kernel_size
    offsets = itertools.product(*(range(-(k // 2), k // 2 + 1) for k in sizes))
    gaussian = {offset: math.exp(-sum(o * o for o in offset) / (2 * sigma**2)) for offset in offsets}
    centre = (0,) * len(volume.shape)
    others = sum(g for offset, g in gaussian.items() if offset != centre)
    inside = everything = 0.0
    for offset, where in volume.neighbours(b, position, kernel_size):
        weight = 1 / 2 if offset == centre else gaussian[offset] / (2 * others)
        everything += weight
        if volume.label(b, c, where) == volume.own_label(c):
            inside += weight
    return inside / everything


def prior_value(
    volume: Volume, b: int, c: int, position: Position, kernel_size: int | Position, prior: str, sigma: float
) -> float:
    """NACL's tau: the share of head c's label in the neighbourhood, or whether it is the label `prior` picks."""
    if prior == "gaussian":
        return soft_label(volume, b, c, position, kernel_size, sigma)
    found = [volume.label(b, c, where) for _, where in volume.neighbours(b, position, kernel_size)]
    if prior == "mean":
        return found.count(volume.own_label(c)) / len(found)
    if prior == "mode":
        chosen = min(statistics.multimode(found))
    else:
        chosen = {"max": max, "min": min, "median": statistics.median_low}[prior](found)
    return float(chosen == volume.own_label(c))


def nacl(
    volume: Volume,
    *,
    kernel_size: int | Position = 3,
    prior: str = "mean",
    penalty: str = "l1",
    on: str = "logits",
    sigma: float = 1.0,
) -> tuple[float, np.ndarray]:
    """Mean distance between tau and the logits (or probabilities), and its gradient."""
    total, slopes = 0.0, np.zeros_like(volume.logits)
    count = len(volume.voxels) * volume.heads
    for (b, position), c in itertools.product(volume.voxels, range(volume.heads)):
        at = (b, c, *position)
        tau = prior_value(volume, b, c, position, kernel_size, prior, sigma)
        if on == "logits":
            difference = volume.logits[at] - (2 * tau - 1 if volume.regions else tau)
        else:
            difference = volume.probabilities[at] - tau
        total += abs(difference) if penalty == "l1" else difference**2
        slopes[at] = (np.sign(difference) if penalty == "l1" else 2 * difference) / count
    return total / count, slopes if on == "logits" else volume.through_activation(slopes)


def svls(volume: Volume, *, kernel_size: int | Position = 3, sigma: float = 1.0) -> tuple[float, np.ndarray]:
    """Cross-entropy (per region: binary cross-entropy) with soft labels, and its gradient."""
    total, gradient = 0.0, np.zeros_like(volume.logits)
    count = len(volume.voxels) * (volume.heads if volume.regions else 1)
    for b, position in volume.voxels:
        soft = [soft_label(volume, b, c, position, kernel_size, sigma) for c in range(volume.heads)]
        for c in range(volume.heads):
            p = volume.probabilities[(b, c, *position)]
            total -= soft[c] * math.log(p)
            if volume.regions:
                total -= (1 - soft[c]) * math.log(1 - p)
            gradient[(b, c, *position)] = ((1 if volume.regions else sum(soft)) * p - soft[c]) / count
    return total / count, gradient


def bin_shares(p: float, num_bins: int, binning: str) -> dict[int, float]:
    """Which bins hold a probability, with what weight."""
    if binning == "hard":
        return {next((m for m in range(num_bins) if m / num_bins <= p < (m + 1) / num_bins), num_bins - 1): 1.0}
    centres = [(m + 0.5) / num_bins for m in range(num_bins)]
    if p <= centres[0]:
        return {0: 1.0}
    if p >= centres[-1]:
        return {num_bins - 1: 1.0}
    lower = max(m for m in range(num_bins) if centres[m] <= p)
    upper_weight = (p - centres[lower]) / (centres[lower + 1] - centres[lower])
    return {lower: 1 - upper_weight, lower + 1: upper_weight}


def ml1_ace(
    volume: Volume, *, num_bins: int = 20, reduction: str = "ace", binning: str = "hard", absent_classes: str = "skip"
) -> tuple[float, np.ndarray]:
    """Calibration error, mean over classes, then over images; its gradient is meant for hard bins only."""
    total, slopes = 0.0, np.zeros_like(volume.logits)
    images = {}  # image -> head -> bin -> [weight, probability, positives]
    for (b, position), c in itertools.product(volume.voxels, range(volume.heads)):
        bins = images.setdefault(b, {}).setdefault(c, {})
        p = volume.probabilities[(b, c, *position)]
        for m, weight in bin_shares(p, num_bins, binning).items():
            sums = bins.setdefault(m, [0.0, 0.0, 0.0])
            for k, value in enumerate((1, p, volume.label(b, c, position) == volume.own_label(c))):
                sums[k] += weight * value
    present = {b: {c for c in heads if sum(y for _, _, y in heads[c].values()) > 0} for b, heads in images.items()}
    if absent_classes == "skip":
        images = {b: heads for b, heads in images.items() if present[b]}
    for b, heads in images.items():
        share = 1 / len(images) / (len(present[b]) if absent_classes == "skip" else volume.heads)
        for c in heads if absent_classes == "keep" else present[b]:
            all_weight = sum(n for n, _, _ in heads[c].values())
            filled = {m: sums for m, sums in heads[c].items() if sums[0] >= (0.01 if binning == "soft" else 1)}
            gaps = {m: p / n - y / n for m, (n, p, y) in filled.items()}
            worst = max(gaps, key=lambda m: abs(gaps[m]))
            importance = {
                m: {"ace": 1 / len(filled), "ece": filled[m][0] / all_weight, "mce": m == worst}[reduction]
                for m in filled
            }
            total += share * sum(importance[m] * abs(gaps[m]) for m in filled)
            for position in (position for image, position in volume.voxels if image == b):
                p = volume.probabilities[(b, c, *position)]
                for m in bin_shares(p, num_bins, "hard").keys() & filled.keys():
                    slopes[(b, c, *position)] = share * importance[m] * np.sign(gaps[m]) / filled[m][0]
    return total, volume.through_activation(slopes)


Rated = Callable[[list[float], list[float], int], float]  # a voxel by its logits, probabilities and label


def pointwise(volume: Volume, rated: Rated) -> float:
    """Mean of what each voxel is rated; for regions of each head, a softmax of the logits 0 and z."""
    ratings = []
    for b, position in volume.voxels:
        z, p = (x[(b, slice(None), *position)].tolist() for x in (volume.logits, volume.probabilities))
        if volume.regions:
            for c in range(volume.heads):
                ratings.append(rated([0.0, z[c]], [1 - p[c], p[c]], volume.label(b, c, position)))
        else:
            ratings.append(rated(z, p, volume.label(b, 0, position)))
    return statistics.fmean(ratings)


def label_smoothing(volume: Volume, *, alpha: float = 0.1) -> float:
    """Cross-entropy with the label, and a share of that with all classes."""
    return pointwise(
        volume, lambda z, p, y: -(1 - alpha) * math.log(p[y]) - alpha * statistics.fmean(math.log(x) for x in p)
    )


def margin(volume: Volume, *, margin: float = 10.0) -> float:
    """How far logits are below the largest, beyond a margin."""
    return pointwise(volume, lambda z, p, y: statistics.fmean(max(max(z) - x - margin, 0) for x in z))


def focal(volume: Volume, *, gamma: float = 3.0) -> float:
    """Cross-entropy, less of sure voxels."""
    return pointwise(volume, lambda z, p, y: -((1 - p[y]) ** gamma) * math.log(p[y]))


def negative_entropy(volume: Volume) -> float:
    """Sum of p log p."""
    return pointwise(volume, lambda z, p, y: sum(x * math.log(x) for x in p))


def dice_plus_plus(
    volume: Volume, *, gamma: float = 2.0, smooth: float = 1e-5, background: bool = False, pool: str = "image"
) -> float:
    """1 - the Dice coefficient with powers of the errors, by image or of all images together."""
    groups = [range(volume.batch)] if pool == "batch" else [[b] for b in range(volume.batch)]
    lacking = []
    for images, c in itertools.product(groups, range(volume.heads)):
        if c == 0 and not (background or volume.regions):
            continue
        true = errors = 0.0
        for b, position in volume.voxels:
            if b in images:
                p = volume.probabilities[(b, c, *position)]
                if volume.label(b, c, position) == volume.own_label(c):
                    true, errors = true + p, errors + (1 - p) ** gamma
                else:
                    errors += p**gamma
        lacking.append(1 - (2 * true + smooth) / (2 * true + errors + smooth))
    return statistics.fmean(lacking)


def slope(loss: Callable[[np.ndarray], float], logits: np.ndarray, direction: np.ndarray, step: float = 1e-6) -> float:
    """Derivative of a loss of the logits along a direction, by central differences."""
    return (loss(logits + step * direction) - loss(logits - step * direction)) / (2 * step)

"""The negative log-likelihood (NLL) of voxels as a function of beta = 1 / temperature, and its minimum."""

from __future__ import annotations

import itertools
import math
from collections.abc import Generator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_TOLERANCE = 1e-7  # in log beta
_NEAR = 1e-4  # in log beta: a point this near gives the NLL at the minimum to 1e-12 and the standard error to 1e-4
_MAX_NEWTON = 12  # passes before the bracket is halved instead; no fit has needed more than 9
_CHUNK = 1 << 18  # logits at a time: intermediate results stay in the cache
_SEED = 20240306


class Sums(NamedTuple):
    """Sums over voxels of weight times a term; for regions, a term is the mean over the heads.

    With d = z - max(z), the logits relative to the largest one (regions: -|z|, as a sigmoid is the softmax of 0 and z):

    Attributes:
        nll: log sum_c exp(beta d_c) - beta d_y.
        expected: -E_p[d] with p = softmax(beta d). It falls with beta, from the mean of -d to 0.
        observed: -d_y. The derivative of the NLL is observed - expected; at the minimum the two are equal.
        curvature: Var_p[d], the second derivative.
        squares: the sum over groups (without groups, over voxels) of their squared derivatives.
    """

    nll: float
    expected: float
    observed: float
    curvature: float
    squares: float


class Voxels(NamedTuple):
    """Logits (n, C), labels (n,) or for regions (n, C), and optional weights (n,) and groups (n,)."""

    logits: Tensor
    labels: Tensor
    weights: Tensor | None
    groups: Tensor | None
    regions: bool

    def sample(self, size: int) -> Voxels:
        """Draw voxels at random with a fixed seed, with replacement and without their groups."""
        picked = torch.randint(len(self.logits), (size,), generator=torch.Generator().manual_seed(_SEED))
        weights = None if self.weights is None else self.weights[picked]
        return Voxels(self.logits[picked], self.labels[picked], weights, None, self.regions)

    def sums(self, betas: Sequence[float]) -> list[Sums]:
        """Return the sums at each beta, in one pass over the voxels.

        Terms are computed in the logits' own precision, but at least in float32, and summed in float64.
        """
        dtype = torch.float64 if self.logits.dtype == torch.float64 else torch.float32
        heads = self.logits.shape[1]
        sums = torch.zeros(len(betas), 5, dtype=torch.float64)
        if self.groups is not None:
            by_group = torch.zeros(len(betas), int(self.groups.max()) + 1, dtype=torch.float64)
        step = max(_CHUNK // heads, 1)
        for start in range(0, len(self.logits), step):
            part = slice(start, start + step)
            below, label_index, below_label = self._below(part, dtype)
            observed = self._per_voxel(-below_label, part)
            for k, beta in enumerate(betas):
                nll, expected, curvature = (
                    self._per_voxel(term, part) for term in _terms(below, label_index, below_label, beta)
                )
                for i, term in enumerate((nll, expected, observed, curvature)):
                    sums[k, i] += term.sum(dtype=torch.float64)
                gradient = observed.sub(expected).double()
                if self.groups is None:
                    sums[k, 4] += gradient.dot(gradient)
                else:
                    by_group[k].index_add_(0, self.groups[part], gradient)
        if self.groups is not None:
            sums[:, 4] = by_group.square().sum(1)
        return [Sums(*row) for row in sums.tolist()]

    def _per_voxel(self, term: Tensor, part: slice) -> Tensor:
        """Return the weighted term of each voxel; for regions, the mean over its heads."""
        if self.regions:
            term = term.view(-1, self.logits.shape[1]).mean(1)
        return term if self.weights is None else term * self.weights[part].to(term.dtype)

    def _below(self, part: slice, dtype: torch.dtype) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return d of a part (C, n), the labels' index into it (1, n), and d of the labels (n,).

        For regions, each head counts as a voxel of its own with two answers. Only d of the less probable answer is
        returned, (1, n * C), without an index, since that of the other one is 0.
        """
        logits, labels = self.logits[part], self.labels[part]
        if self.regions:
            z = logits.to(dtype).reshape(-1)
            below = -z.abs()
            return below[None], None, torch.where((z > 0) == labels.reshape(-1).bool(), 0, below)
        below = torch.stack(logits.unbind(1)).to(dtype)  # several times faster than copying the transpose
        below -= below.amax(0)
        index = labels.long()[None]
        return below, index, below.gather(0, index)[0]


def _terms(below: Tensor, label_index: Tensor | None, below_label: Tensor, beta: float) -> tuple[Tensor, ...]:
    """Return NLL, -E_p[d] and Var_p[d], each (n,)."""
    powers = below.mul(beta * math.log2(math.e)).exp2_()  # several times faster than exp, most of all at 0
    first = powers * below
    if label_index is not None:
        # takes away the largest class, whose power is 1, before the small ones are lost in the sum; where the label is
        # another class this is only a rounding error of a large NLL
        powers.scatter_add_(0, label_index, powers.new_full((1, 1), -1).expand_as(label_index))
    rest = powers.sum(0)
    total = rest + 1
    log_total = total.log().sub_((total - 1).sub_(rest).div_(total))  # equals log1p(rest), which is ten times slower
    expected = first.sum(0).neg_().div_(total)
    # p of the largest class is at least 1 / C, so this difference keeps its precision
    variance = first.mul_(below).sum(0).div_(total).addcmul_(expected, expected, value=-1)
    return log_total.sub_(below_label, alpha=beta), expected, variance


class Point(NamedTuple):
    """The sums at theta = log beta."""

    theta: float
    sums: Sums

    @property
    def gradient(self) -> float:
        """Derivative of the NLL with respect to beta."""
        return self.sums.observed - self.sums.expected

    def log_ratio(self) -> tuple[float, float]:
        """Return log(expected / observed) and its derivative with respect to theta; NaN if undefined.

        The search looks for the root of this ratio, which is nearly linear in theta (exactly so if the differences of
        the logits follow a power law), unlike the gradient.
        """
        expected, observed = self.sums.expected, self.sums.observed
        if min(expected, observed, self.sums.curvature) <= 0:
            return math.nan, math.nan
        return math.log(expected / observed), -math.exp(self.theta) * self.sums.curvature / expected


def _root(point: Point, other: Point | None) -> tuple[float, float]:
    """Estimate the theta at which the log ratio is 0, and the error of Newton's estimate; NaN if undefined.

    The estimate is the cubic, theta as a function of the log ratio, through values and slopes of both points. It
    converges with order 2.7, so its distance from Newton's estimate is the error of the latter and exceeds its own.
    """
    value, slope = point.log_ratio()
    newton = point.theta - value / slope
    if other is None:
        return newton, math.inf
    other_value, other_slope = other.log_ratio()
    width = value - other_value
    if not abs(width) > 0:
        return newton, math.inf
    t = -other_value / width
    u = 1 - t
    cubic = u * u * ((1 + 2 * t) * other.theta + t * width / other_slope)
    cubic += t * t * ((1 + 2 * u) * point.theta - u * width / slope)
    return cubic, abs(cubic - newton)


class Found(NamedTuple):
    """Theta of the smallest NLL within the bounds, the points tried (the last one is near it), and number of passes."""

    theta: float
    points: list[Point]
    passes: int


def minimise(voxels: Voxels, thetas: list[float], bounds: tuple[float, float]) -> Found:
    """Minimise the NLL of voxels; see `search`."""
    asking = search(thetas, bounds)
    betas = next(asking)
    try:
        while True:
            betas = asking.send(voxels.sums(betas))
    except StopIteration as stop:
        found: Found = stop.value
        return found


def search(thetas: list[float], bounds: tuple[float, float]) -> Generator[list[float], list[Sums], Found]:
    """Minimise the NLL within bounds, as a coroutine: yields betas, receives their sums, returns the minimum.

    The first pass tries all `thetas`, of which the last is the best guess. As a coroutine, several searches can share
    their passes over the voxels.
    """
    low, high = bounds
    points: list[Point] = []
    for passes in itertools.count(1):
        sums_at = yield [math.exp(theta) for theta in thetas]
        for theta, sums in zip(thetas, sums_at, strict=True):
            if not all(map(math.isfinite, sums)):
                raise ValueError(
                    "expected finite logits, got NaN or Inf: look for a diverged model or damaged predictions"
                )
            points.append(Point(theta, sums))
            low, high = (max(low, theta), high) if points[-1].gradient < 0 else (low, min(high, theta))
        last = points[-1]
        end = high if last.gradient < 0 else low
        if last.gradient == 0 or end == last.theta:  # at a bound, with the minimum beyond
            return Found(last.theta, points, passes)
        target, error = _root(last, points[-2] if len(points) > 1 else None)
        step = abs(target - last.theta)
        if step < _TOLERANCE or (step < _NEAR and error < _TOLERANCE) or high - low < _TOLERANCE:
            return Found(min(max(target, low), high), points, passes)
        if not low < target < high or passes > _MAX_NEWTON:
            untried = end in bounds and all(point.theta != end for point in points)
            target = end if untried else (low + high) / 2
        thetas = [target]
    raise AssertionError("unreachable: the bracket is halved until it is small")

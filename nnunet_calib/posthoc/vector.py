r"""Vector scaling: a factor and an offset for the logit of each class, or of each region.

.. math:: p(z) = \mathrm{softmax}(w \odot (z - \bar z) + b), \qquad \text{regions: } \sigma(w_r z_r + b_r)

Probabilities determine the logits of a voxel only up to a constant. Subtracting the mean over the classes makes the map
the same for logits and log-probabilities, and keeps it linear. The NLL is convex in w and b. A penalty pulls them
towards a single temperature,

.. math:: \mathrm{NLL} + \tfrac{\lambda}{2} \sum_c \big((w_c - 1 / T)^2 + b_c^2\big),

with the strength that does best on left-out cases. The order of the classes can change, and with it the segmentation.

References:
    Guo et al., On calibration of modern neural networks, ICML 2017, arXiv 1706.04599.
    Kull et al., Beyond temperature scaling, NeurIPS 2019, arXiv 1910.12656.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from nnunet_calib.posthoc.calibrator import Key, WeightedVoxels
from nnunet_calib.posthoc.class_voxels import Cases, check_heads, count_voxels, mean_nll, per_channel
from nnunet_calib.posthoc.likelihood import Voxels
from nnunet_calib.posthoc.many_fits import fit_jointly, voxels_of
from nnunet_calib.posthoc.temperature import TEMPERATURE_BOUNDS, TemperatureFit
from nnunet_calib.threads import one_thread

STRENGTHS = (1.0, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)  # of the penalty, relative to the NLL in nats per voxel
GROUPS = 5  # cases of one fold are dealt into these to choose the strength
MAX_CLASSES = 8  # with more, a voxel sample keeps only the largest logits
_TOLERANCE = 1e-12  # stop when another step would gain less, in nats per voxel
_MAX_STEPS = 60


@dataclass(frozen=True)
class Vector:
    """Factors and offsets of logits.

    Attributes:
        temperature: temperature that the penalty pulls towards, and that classes with too few voxels take.
        factors: w of each class or region.
        offsets: b of each class or region.
        regions: whether the heads are regions.

    Raises:
        ValueError: if a number is not finite, or if the numbers of factors and offsets differ.
    """

    temperature: float
    factors: tuple[float, ...]
    offsets: tuple[float, ...]
    regions: bool

    kind: ClassVar[str] = "vector"
    noun: ClassVar[str] = "vector scaling"
    indefinite: ClassVar[str] = noun
    short: ClassVar[str] = "w z + b"
    effect: ClassVar[str] = "Vector scaling moves those of each class by themselves, and may change the segmentation."
    keeps_segmentation: ClassVar[bool] = False
    form: ClassVar[dict[str, Any]] = {"temperature": float, "factors": [float], "offsets": [float], "regions": bool}

    def __post_init__(self) -> None:
        numbers = (self.temperature, *self.factors, *self.offsets)
        if not (len(self.factors) == len(self.offsets) > 0 and all(map(math.isfinite, numbers))):
            raise ValueError(f"expected as many factors as offsets, all finite, got {self.factors} and {self.offsets}")

    @property
    def at_bound(self) -> bool:
        """Whether the temperature that the penalty pulls towards lies on a bound of its search."""
        return self.temperature in TEMPERATURE_BOUNDS

    def logits(self, z: Tensor, *, regions: bool) -> Tensor:
        """Return w (z - mean of z over classes) + b, or w z + b for regions."""
        check_heads(z, len(self.factors), regions, self.regions)
        w, b = (torch.tensor(x, dtype=z.dtype, device=z.device) for x in (self.factors, self.offsets))
        return per_channel(w, z) * (z if regions else z - z.mean(0)) + per_channel(b, z)

    def last_layer(self, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Return weight and bias of a layer that outputs calibrated logits; a layer without a bias gets one."""
        w, b = (torch.tensor(x, dtype=torch.float64) for x in (self.factors, self.offsets))

        def scaled(x: Tensor) -> Tensor:
            return per_channel(w, x) * (x if self.regions else x - x.mean(0))

        return (None if weight is None else scaled(weight)), (b if bias is None else scaled(bias) + b)

    def to_json(self) -> dict[str, Any]:
        """Return factors and offsets."""
        return {
            "kind": self.kind,
            "temperature": float(self.temperature),
            "factors": [*map(float, self.factors)],
            "offsets": [*map(float, self.offsets)],
            "regions": self.regions,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Vector:
        """Return the calibrator that `to_json` described."""
        factors, offsets = (tuple(map(float, content[name])) for name in ("factors", "offsets"))
        return cls(float(content["temperature"]), factors, offsets, content["regions"])

    def words(self, digits: str = ".4f") -> str:
        """Return "w from 0.6100 to 0.9300, b from -0.1000 to 0.2000"."""
        parts = (("w", self.factors), ("b", self.offsets))
        return ", ".join(f"{name} from {min(x):{digits}} to {max(x):{digits}}" for name, x in parts)

    def meaning(self) -> str:
        """Return a clause on what is done with the logits."""
        return "w z + b of its logits gives the smallest NLL on these cases, and may change the segmentation"


@dataclass(frozen=True)
class VectorFit:
    """Fitted factors and offsets.

    Attributes:
        calibrator: the fitted calibrator.
        of_all: fit of one temperature.
        factor_errors: standard errors of the factors, with cases as independent; 0 for a class that takes 1 / T.
        offset_errors: the same for the offsets.
        strength: strength of the penalty.
        take_temperature: indices of the classes with too few voxels, which take the temperature.
        nll_after: mean negative log-likelihood per voxel, in nats (regions: mean over heads).
    """

    calibrator: Vector
    of_all: TemperatureFit
    factor_errors: tuple[float, ...]
    offset_errors: tuple[float, ...]
    strength: float
    take_temperature: tuple[int, ...]
    nll_after: float

    def to_json(self) -> dict[str, Any]:
        """Return the fit as JSON values."""
        return (
            self.of_all.to_json()
            | self.calibrator.to_json()
            | {
                "factor_errors": [*self.factor_errors],
                "offset_errors": [*self.offset_errors],
                "strength": self.strength,
                "take_temperature": [*self.take_temperature],
                "nll_after": self.nll_after,
            }
        )


class _Sums(NamedTuple):
    """Sums over voxels at given w and b: NLL, its gradient (2C) and Hessian (2C, 2C), squared gradients of cases."""

    weight: Tensor
    nll: Tensor
    gradient: Tensor
    hessian: Tensor
    squares: Tensor


class _Problem(NamedTuple):
    """A fit to a set of cases, with the classes that have enough voxels for a factor and an offset of their own."""

    members: frozenset[int]
    enough: tuple[bool, ...]

    @property
    def free(self) -> Tensor:
        """Whether each parameter (2C) is fitted."""
        return torch.tensor(self.enough * 2)


class _Penalty(NamedTuple):
    """Centre that the penalty pulls the parameters towards, and its strength."""

    centre: Tensor
    strength: float


class _Point(NamedTuple):
    theta: Tensor
    sums: _Sums
    value: float


def fit_vector(
    cases: Cases, sets: Mapping[Key, Container[int]], groups: Sequence[int] | None = None
) -> dict[Key, VectorFit]:
    """Fit factors and offsets to each set of cases; arguments and errors as `many_fits.fit_jointly`.

    Args:
        cases: returns the voxels of the cases.
        sets: the cases of each set, by their index.
        groups: the fold of each case. The strength of the penalty is chosen by the smallest NLL of left-out folds;
            within one fold, or without `groups`, every fifth case is left out in turn.

    Raises:
        ValueError: also for more than `MAX_CLASSES` classes.
    """
    counts = count_voxels(cases, sets, _members)
    if not counts.regions and counts.heads > MAX_CLASSES:
        raise ValueError(
            f"expected at most {MAX_CLASSES} classes to fit vector scaling to, got {counts.heads}, of which the "
            f"samples of voxels keep only the largest: take --calibrator classwise"
        )
    none = (False,) * counts.heads
    wanted = {
        key: _Problem(
            frozenset(case for case in range(counts.cases) if case in sets[key]), counts.enough.get(key, none)
        )
        for key in sets
    }
    # equal sets of cases are fitted only once
    left_out = {problem: _left_out(problem.members, groups) for problem in {*wanted.values()}}
    without = {
        (problem, group): problem._replace(members=problem.members - group)
        for problem, parts in left_out.items()
        for group in parts
    }
    every = {*left_out, *without.values()}
    temperatures = fit_jointly(cases, {problem: problem.members for problem in every})
    centres = {problem: _centre(temperatures[problem].temperature, counts.heads) for problem in every}
    start = centres
    found: list[dict[_Problem, _Point]] = []
    losses: dict[_Problem, list[float]] = {problem: [] for problem in left_out}
    for strength in STRENGTHS:
        penalties = {problem: _Penalty(centre, strength) for problem, centre in centres.items()}
        found.append(_minimise(cases, penalties, start))
        start = {problem: point.theta for problem, point in found[-1].items()}
        made = {problem: _calibrator(temperatures[problem], start[problem], counts.regions) for problem in every}
        nll = mean_nll(cases, {(of, group): (group, made[fitted]) for (of, group), fitted in without.items()})
        for of, parts in left_out.items():
            losses[of].append(sum(nll[of, group] for group in parts))
    fits = {}
    for key, problem in wanted.items():
        best = losses[problem].index(min(losses[problem]))
        point = found[best][problem]
        errors = _standard_errors(point, problem, _Penalty(centres[problem], STRENGTHS[best])).view(2, -1).tolist()
        fits[key] = VectorFit(
            _calibrator(temperatures[problem], point.theta, counts.regions),
            temperatures[problem],
            tuple(errors[0]),
            tuple(errors[1]),
            STRENGTHS[best],
            tuple(head for head, enough in enumerate(problem.enough) if not enough),
            float(point.sums.nll / point.sums.weight),
        )
    return fits


def _left_out(members: frozenset[int], groups: Sequence[int] | None) -> list[frozenset[int]]:
    """Return the parts of a set of cases to leave out in turn; none for a single case."""
    folds = {case: groups[case] for case in members} if groups is not None else {}
    if len({*folds.values()}) < 2:
        folds = {case: place % GROUPS for place, case in enumerate(sorted(members))}
    parts = [frozenset(case for case in members if folds[case] == fold) for fold in sorted({*folds.values()})]
    return parts if len(parts) > 1 else []


def _members(voxels: Voxels) -> Tensor:
    """Return whether each voxel belongs to each class."""
    if voxels.regions:
        return voxels.labels.bool()
    return voxels.labels.long()[:, None] == torch.arange(voxels.logits.shape[1])


def _centre(temperature: float, heads: int) -> Tensor:
    return torch.cat(
        [torch.full((heads,), 1 / temperature, dtype=torch.float64), torch.zeros(heads, dtype=torch.float64)]
    )


def _calibrator(of_all: TemperatureFit, theta: Tensor, regions: bool) -> Vector:
    factors, offsets = theta.view(2, -1).tolist()
    return Vector(of_all.temperature, tuple(factors), tuple(offsets), regions)


def _minimise(
    cases: Cases, penalties: Mapping[_Problem, _Penalty], start: Mapping[_Problem, Tensor]
) -> dict[_Problem, _Point]:
    """Minimise all problems by Newton's method in the same passes; a step without gain is halved."""
    points: dict[_Problem, _Point] = {}
    asked = dict(start)
    for _ in range(_MAX_STEPS):
        sums = _one_pass(cases, asked)
        for problem in [*asked]:
            theta, penalty, best = asked[problem], penalties[problem], points.get(problem)
            value = _value(sums[problem], theta, penalty)
            if best is not None and not value <= best.value:  # beyond the quadratic range, or at the minimum
                if value - best.value < _TOLERANCE:
                    del asked[problem]
                else:
                    asked[problem] = (theta + best.theta) / 2
                continue
            points[problem] = _Point(theta, sums[problem], value)
            step, gain = _step(points[problem], problem, penalty)
            if gain < _TOLERANCE:
                del asked[problem]
            else:
                asked[problem] = theta + step
        if not asked:
            break
    return points


def _value(sums: _Sums, theta: Tensor, penalty: _Penalty) -> float:
    return float(sums.nll / sums.weight + penalty.strength / 2 * (theta - penalty.centre).square().sum())


def _penalised(point: _Point, free: Tensor, penalty: _Penalty) -> tuple[Tensor, Tensor]:
    """Return gradient and Hessian of the penalised mean NLL with respect to the free parameters."""
    gradient = point.sums.gradient / point.sums.weight + penalty.strength * (point.theta - penalty.centre)
    hessian = point.sums.hessian / point.sums.weight + penalty.strength * torch.eye(len(free), dtype=torch.float64)
    return gradient[free], hessian[free][:, free]


def _step(point: _Point, problem: _Problem, penalty: _Penalty) -> tuple[Tensor, float]:
    """Return Newton's step and its gain if the NLL were quadratic."""
    step, free = torch.zeros_like(point.theta), problem.free
    if not free.any():
        return step, 0.0
    gradient, hessian = _penalised(point, free, penalty)
    step[free] = -torch.linalg.solve(hessian, gradient)
    return step, float(-step[free] @ gradient / 2)


def _standard_errors(point: _Point, problem: _Problem, penalty: _Penalty) -> Tensor:
    """Return the sandwich estimates of the standard errors, with cases as independent."""
    errors, free = torch.zeros_like(point.theta), problem.free
    if free.any():
        _, hessian = _penalised(point, free, penalty)
        half = torch.linalg.solve(hessian, point.sums.squares[free][:, free] / point.sums.weight**2)
        errors[free] = torch.linalg.solve(hessian, half.T).diagonal().clamp_min(0).sqrt()
    return errors


def _one_pass(cases: Cases, asked: Mapping[_Problem, Tensor]) -> dict[_Problem, _Sums]:
    """Return the sums of each problem at its parameters."""
    sums: dict[_Problem, _Sums] = {}
    for number, sample in enumerate(cases()):
        of_case: dict[tuple[float, ...], _Sums] = {}
        for problem, theta in asked.items():
            if number not in problem.members or not len(sample):
                continue
            at = tuple(theta.tolist())
            if at not in of_case:
                of_case[at] = _sums(sample, theta)
            before = sums.get(problem)
            added = of_case[at] if before is None else (a + b for a, b in zip(before, of_case[at], strict=True))
            sums[problem] = _Sums(*added)
    return sums


def _sums(sample: WeightedVoxels, theta: Tensor) -> _Sums:
    """Return the sums of one case."""
    voxels = voxels_of(sample)
    z = voxels.logits.double()
    w, b = theta.view(2, -1)
    weight = torch.as_tensor(sample.weights, dtype=torch.float64)
    with one_thread():
        if voxels.regions:
            heads = z.shape[1]
            s, y = z * w + b, voxels.labels.double()
            p, share = s.sigmoid(), weight[:, None] / heads
            nll = (share * (softplus(s) - y * s)).sum()
            residual, spread = share * (p - y), share * p * (1 - p)
            hessian = torch.zeros(2 * heads, 2 * heads, dtype=torch.float64)
        else:
            z = z - z.mean(1, keepdim=True)
            log_p = torch.log_softmax(z * w + b, 1)
            y, p = voxels.labels.long()[:, None], log_p.exp()
            nll = -(weight @ log_p.gather(1, y)[:, 0])
            residual = (p - torch.zeros_like(p).scatter_(1, y, 1.0)) * weight[:, None]
            spread = p * weight[:, None]
            products = torch.cat([p * z, p], 1)
            hessian = -products.T @ (weight[:, None] * products)
        blocks = [[(spread * z * z).sum(0), (spread * z).sum(0)], [(spread * z).sum(0), spread.sum(0)]]
        hessian += torch.cat([torch.cat([torch.diag(x) for x in row], 1) for row in blocks])
        gradient = torch.cat([(residual * z).sum(0), residual.sum(0)])
    return _Sums(weight.sum(), nll, gradient, hessian, torch.outer(gradient, gradient))

"""Temperature scaling: one number T > 0 that calibrates a model's logits.

p(T) = softmax(z / T), or sigmoid(z / T) for regions. T keeps the order of the classes and the regions' threshold of
1/2, so the segmentation does not change.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from nnunet_calib.posthoc.likelihood import Found, Voxels, minimise
from nnunet_calib.posthoc.logits import Array, as_tensor, calibrated, log_probabilities

TEMPERATURE_BOUNDS = (0.05, 20.0)
THETA_BOUNDS = (-math.log(TEMPERATURE_BOUNDS[1]), -math.log(TEMPERATURE_BOUNDS[0]))  # of theta = log beta = -log T
_LARGEST_IN_FLOAT32 = 1e30  # of a logit: its differences times 1 / T are still finite, unlike those of 3e38
_WARM_START = 1 << 17  # voxels to begin with, if there are more than twice as many


@dataclass(frozen=True)
class Temperature:
    """A temperature that divides logits, the simplest `Calibrator`.

    Attributes:
        value: T > 0.

    Raises:
        ValueError: for a temperature that is not a positive number.
    """

    value: float

    kind: ClassVar[str] = "temperature"
    noun: ClassVar[str] = "temperature"
    indefinite: ClassVar[str] = "a temperature"
    short: ClassVar[str] = "T"
    effect: ClassVar[str] = (
        "Temperature scaling moves them away from 0 and 1, or towards them, and changes no segmentation."
    )
    keeps_segmentation: ClassVar[bool] = True
    form: ClassVar[dict[str, Any]] = {"temperature": float}

    def __post_init__(self) -> None:
        if not (self.value > 0 and math.isfinite(self.value)):
            raise ValueError(f"expected a temperature above 0, got {self.value}")

    @property
    def at_bound(self) -> bool:
        """Whether T lies on a bound of the search."""
        return self.value in TEMPERATURE_BOUNDS

    def logits(self, z: Tensor, *, regions: bool) -> Tensor:
        """Return z / T, whatever the heads."""
        return z / self.value

    def last_layer(self, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Return weight and bias divided by T."""
        return (None if weight is None else weight / self.value), (None if bias is None else bias / self.value)

    def to_json(self) -> dict[str, Any]:
        """Return T."""
        return {"temperature": float(self.value)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Temperature:
        """Return the temperature in the content of a temperature.json, or in a row of summary.json."""
        return cls(float(content["temperature"]))

    def words(self, digits: str = ".4f") -> str:
        """Return "T = 1.3800"."""
        return f"T = {self.value:{digits}}"

    def meaning(self) -> str:
        """Return a clause on whether the model is overconfident."""
        sure = (
            "too sure of itself"
            if self.value > 1
            else "not sure enough"
            if self.value < 1
            else "as sure as it should be"
        )
        return f"on these cases the model is {sure}; dividing its logits by T gives the smallest NLL"


@dataclass(frozen=True)
class TemperatureFit:
    """A fitted temperature.

    Attributes:
        temperature: T; above 1 the model was overconfident.
        standard_error: standard error of T, see `fit_temperature`; inf if the data do not determine T.
        nll_before: mean negative log-likelihood per voxel at T = 1, in nats (regions: mean over heads).
        nll_after: the same at T.
        at_bound: whether T lies on a bound of the search interval, with the minimum there or beyond.
        iterations: number of passes over all voxels.
    """

    temperature: float
    standard_error: float
    nll_before: float
    nll_after: float
    at_bound: bool
    iterations: int

    @property
    def calibrator(self) -> Temperature:
        """T as a calibrator."""
        return Temperature(self.temperature)

    @property
    def of_all(self) -> TemperatureFit:
        """The fit itself, as that of the temperature of all voxels."""
        return self

    def to_json(self) -> dict[str, Any]:
        """Return the fit as temperature.json has it."""
        return {name: value for name, value in asdict(self).items() if name != "iterations"}


def apply_temperature(probabilities: Array, temperature: float, *, regions: bool = False) -> Array:
    r"""Return the probabilities of the model with its logits divided by T.

    .. math:: p_c(T) = \frac{p_c^{1/T}}{\sum_k p_k^{1/T}}, \qquad \text{regions: } \sigma(\mathrm{logit}(p) / T)

    Args:
        probabilities: (C, *spatial) in [0, 1], NumPy array or tensor; zeros and ones are clamped.
        temperature: T > 0; 1 returns the probabilities unchanged up to rounding.
        regions: whether each channel is a sigmoid of its own rather than part of a softmax.

    Returns:
        The same type and shape, floating point. The order of the classes is kept, and so is p > 1/2 for regions.

    Raises:
        ValueError: for a temperature that is not a positive number.
    """
    logits = log_probabilities(probabilities, regions=regions)
    return calibrated(logits, Temperature(temperature), regions=regions)


def fit_temperature(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    regions: bool = False,
    groups: ArrayLike | None = None,
) -> TemperatureFit:
    r"""Fit the temperature that minimises the mean negative log-likelihood of voxels.

    In beta = 1 / T the likelihood is convex:

    .. math:: \frac{d\,\mathrm{NLL}_i}{d\beta} = E_p[z_i] - z_{i,y_i}, \qquad
              \frac{d^2\,\mathrm{NLL}_i}{d\beta^2} = \mathrm{Var}_p[z_i]

    so Newton's method, safeguarded by a bracket, finds the one minimum for T in [0.05, 20], to 1e-7 of T. With many
    voxels, it starts from the minimum of a random part, drawn with a fixed seed. Voxels are processed in parts, without
    a full-size copy: in the logits' own precision but at least in float32 (T is still good to 1e-6), with sums in
    float64.

    Args:
        logits: (n, C); log-probabilities will do.
        labels: (n,) integers in [0, C), or (n, C) binary with `regions`.
        weights: (n,) how many voxels each one stands for, 0 or more; None means 1.
        regions: whether the columns are sigmoids of their own rather than a softmax.
        groups: (n,) integers from 0, e.g. the case a voxel comes from. Voxels of a case resemble each other: with
            groups, the standard error takes only the groups as independent (the sandwich estimate); without, every
            voxel.

    Returns:
        The fit. If no temperature changes the likelihood, T = 1 with an infinite standard error.

    Raises:
        ValueError: if there are no voxels, if shapes do not match, if a label is not a class, if a weight is negative
            or all are 0, if a group is not an integer from 0, or if a logit is NaN or infinite.

    References:
        Guo et al., On calibration of modern neural networks, ICML 2017, arXiv 1706.04599.
    """
    voxels, total = _checked(logits, labels, weights, regions, groups)
    thetas = [0.0]
    if len(voxels.logits) > 2 * _WARM_START:
        guess, *_ = minimise(voxels.sample(_WARM_START), thetas, THETA_BOUNDS)
        thetas = [0.0] if guess == 0 else [0.0, guess]
    return fit_of(minimise(voxels, thetas, THETA_BOUNDS), total)


def fit_of(found: Found, total: float) -> TemperatureFit:
    """Return the fit of a search that began at T = 1, given the total weight of the voxels."""
    theta, points, passes = found
    last = points[-1]
    beta = math.exp(theta)
    change = beta - math.exp(last.theta)  # small enough for two terms of the Taylor series to give the NLL to 1e-12
    nll_after = last.sums.nll + change * last.gradient + change**2 / 2 * last.sums.curvature
    # a bound is returned exactly, without rounding
    ends = dict(zip(THETA_BOUNDS, TEMPERATURE_BOUNDS[::-1], strict=True))
    temperature = ends.get(theta, 1 / beta)
    known = last.sums.curvature > 0
    return TemperatureFit(
        temperature=temperature,
        standard_error=temperature**2 * math.sqrt(last.sums.squares) / last.sums.curvature if known else math.inf,
        nll_before=points[0].sums.nll / total,
        nll_after=nll_after / total,
        at_bound=theta in THETA_BOUNDS,
        iterations=passes,
    )


def nll_at(
    logits: ArrayLike,
    labels: ArrayLike,
    temperatures: Sequence[float],
    *,
    weights: ArrayLike | None = None,
    regions: bool = False,
) -> NDArray[np.float64]:
    """Return the mean negative log-likelihood per voxel at each temperature, in nats, in one pass over the voxels.

    Args:
        logits: (n, C); log-probabilities will do.
        labels: (n,) integers in [0, C), or (n, C) binary with `regions`.
        temperatures: temperatures above 0.
        weights: (n,) how many voxels each one stands for, 0 or more; None means 1.
        regions: whether the columns are sigmoids of their own rather than a softmax.

    Returns:
        One value per temperature; for regions, the mean over heads. It is not finite if a logit is not.

    Raises:
        ValueError: as for `fit_temperature`, except for logits that are not finite.
    """
    voxels, total = _checked(logits, labels, weights, regions, None)
    return np.array([sums.nll / total for sums in voxels.sums([1 / t for t in temperatures])])


def _checked(
    logits: ArrayLike, labels: ArrayLike, weights: ArrayLike | None, regions: bool, groups: ArrayLike | None
) -> tuple[Voxels, float]:
    """Check the arguments, and return the voxels and the sum of their weights."""
    z, y = as_tensor(logits), as_tensor(labels)
    w = None if weights is None else as_tensor(weights)
    if z.ndim != 2 or len(z) == 0 or y.shape != (z.shape if regions else z.shape[:1]):
        raise ValueError(
            f"expected logits (n, C) with n > 0 and labels {'(n, C)' if regions else '(n,)'}, got "
            f"{tuple(z.shape)} and {tuple(y.shape)}"
        )
    if z.dtype == torch.float32 and max(map(abs, z.aminmax())) > _LARGEST_IN_FLOAT32:
        z = z.double()
    _check_whole(y, "labels", 1 if regions else z.shape[1] - 1)
    total = float(len(z) if w is None else w.sum(dtype=torch.float64))
    if w is not None and not (w.shape == z.shape[:1] and w.min() >= 0 and 0 < total < math.inf):
        raise ValueError(
            f"expected weights ({len(z)},) of at least 0, not all of them 0, got {tuple(w.shape)} with sum {total}"
        )
    return Voxels(z, y, w, None if groups is None else _numbered(groups, len(z)), regions), total


def _check_whole(numbers: Tensor, what: str, largest: int | None = None) -> None:
    """Raise ValueError for anything but integers from 0."""
    low, high = numbers.min().item(), numbers.max().item()
    whole = not numbers.is_floating_point() or bool((numbers == numbers.floor()).all())
    if not (whole and low >= 0 and high <= (math.inf if largest is None else largest)):
        to = "" if largest is None else f" to {largest}"
        raise ValueError(f"expected {what} that are whole numbers from 0{to}, got values from {low} to {high}")


def _numbered(groups: ArrayLike, voxels: int) -> Tensor:
    """Return the groups of voxels, renumbered unless all numbers are below the number of voxels."""
    found = as_tensor(groups)
    if found.shape != (voxels,):
        raise ValueError(f"expected groups ({voxels},), one for each voxel, got {tuple(found.shape)}")
    _check_whole(found, "groups")
    # there is a sum for each number up to the largest
    return found.long() if found.max() < voxels else torch.unique(found, return_inverse=True)[1]

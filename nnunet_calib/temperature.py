"""Temperature scaling: one number T > 0 that makes a model's logits as sure as they should be.

p(T) = softmax(z / T), or sigmoid(z / T) for regions. T keeps the order of the classes and the regions' threshold of
1/2, so that the segmentation stays as it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

Array = TypeVar("Array", np.ndarray, torch.Tensor)

TEMPERATURE_BOUNDS = (0.05, 20.0)
_TOLERANCE = 1e-7
_MAX_PASSES = 60
_CHUNK = 1 << 18

# Probabilities are clamped before their logarithm is taken: to the smallest normal float32 for a softmax, and to what
# float32 can tell from 0 and 1 for a sigmoid.
MIN_PROBABILITY = float(np.finfo(np.float32).tiny)
MIN_REGION_PROBABILITY = 2.0**-24


@dataclass(frozen=True)
class TemperatureFit:
    """A fitted temperature.

    Attributes:
        temperature: T; above 1 the model was overconfident.
        standard_error: of T, see `fit_temperature`; inf where the data do not determine T.
        nll_before: mean negative log-likelihood per voxel at T = 1, in nats (regions: mean over heads).
        nll_after: the same at T.
        at_bound: T lies on a bound of the search interval: the minimum is there or beyond.
        iterations: passes over the voxels.
    """

    temperature: float
    standard_error: float
    nll_before: float
    nll_after: float
    at_bound: bool
    iterations: int


def log_probabilities(probabilities: Array, *, regions: bool = False) -> Array:
    """Logits that belong to probabilities: log p for a softmax (up to a constant per voxel), logit(p) for regions.

    Works on any shape. Zeros (and ones, for regions) are clamped, so that the result is finite.
    """
    p = _as_tensor(probabilities)
    p = p.float() if p.dtype in (torch.float16, torch.bfloat16) else p  # too coarse for the clamps
    if regions:
        p = p.clamp(MIN_REGION_PROBABILITY, 1 - MIN_REGION_PROBABILITY)
        logits = torch.log(p) - torch.log1p(-p)
    else:
        logits = torch.log(p.clamp_min(MIN_PROBABILITY))
    return logits if isinstance(probabilities, torch.Tensor) else logits.numpy()


def _as_tensor(x: ArrayLike) -> Tensor:
    """A tensor, without a copy where PyTorch can share the memory (not of read-only and of flipped arrays)."""
    if isinstance(x, np.ndarray) and not (x.flags.writeable and all(stride >= 0 for stride in x.strides)):
        x = x.copy()
    return torch.as_tensor(x)


def apply_temperature(probabilities: Array, temperature: float, *, regions: bool = False) -> Array:
    r"""Probabilities as the model would have given them with logits divided by T.

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
    return scale_logits(log_probabilities(probabilities, regions=regions), temperature, regions=regions)


def scale_logits(logits: Array, temperature: float, *, regions: bool = False) -> Array:
    """softmax(z / T) over the first axis, or sigmoid(z / T); shapes, types and errors as `apply_temperature`."""
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"expected a temperature above 0, got {temperature}")
    z = _as_tensor(logits) / temperature
    p = torch.sigmoid(z) if regions else torch.softmax(z, dim=0)
    return p if isinstance(logits, torch.Tensor) else p.numpy()


def _pass(z: Tensor, y: Tensor, w: Tensor | None, beta: float, regions: bool, each: bool) -> tuple[Tensor, Tensor]:
    """Sums over voxels of w * (NLL, its first and second derivative by beta), and each voxel's first derivative."""
    sums, gradients = torch.zeros(3, dtype=torch.float64), []
    for start in range(0, len(z), _CHUNK):
        part = slice(start, start + _CHUNK)
        logits, labels = z[part].double(), y[part]
        if regions:
            labels = labels.double()
            p = torch.sigmoid(beta * logits)
            nll = (torch.nn.functional.softplus(beta * logits) - labels * beta * logits).mean(1)
            gradient = ((p - labels) * logits).mean(1)
            curvature = (p * (1 - p) * logits.square()).mean(1)
        else:
            logits = logits - logits.amax(1, keepdim=True)  # exact zeros where all are equal
            log_p = torch.log_softmax(beta * logits, dim=1)
            p = log_p.exp()
            labels = labels.long()[:, None]
            mean = (p * logits).sum(1)
            nll = -log_p.gather(1, labels)[:, 0]
            gradient = mean - logits.gather(1, labels)[:, 0]
            curvature = (p * (logits - mean[:, None]).square()).sum(1)
        terms = torch.stack([nll, gradient, curvature])
        if w is not None:
            terms = terms * w[part].double()
        sums += terms.sum(1)
        if each:
            gradients.append(terms[1])
    return sums, torch.cat(gradients) if each else torch.empty(0)


def fit_temperature(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    regions: bool = False,
    groups: ArrayLike | None = None,
) -> TemperatureFit:
    r"""The temperature that minimises the mean negative log-likelihood of voxels.

    In beta = 1 / T the likelihood is convex:

    .. math:: \frac{d\,\mathrm{NLL}_i}{d\beta} = E_p[z_i] - z_{i,y_i}, \qquad
              \frac{d^2\,\mathrm{NLL}_i}{d\beta^2} = \mathrm{Var}_p[z_i]

    so that Newton's method on log beta, safeguarded by a bracket, finds the one minimum within T in [0.05, 20].

    Args:
        logits: (n, C); log-probabilities do.
        labels: (n,) integers in [0, C), or (n, C) binary with `regions`.
        weights: (n,) how many voxels each one stands for; None means 1.
        regions: whether the columns are sigmoids of their own rather than a softmax.
        groups: (n,) integers from 0, e.g. the case a voxel comes from. Voxels of a case resemble each other; with
            groups the standard error takes only the groups as independent (the sandwich estimate), else every voxel.

    Returns:
        The fit. Where no temperature changes the likelihood, T = 1 with an infinite standard error.

    Raises:
        ValueError: if there are no voxels, if shapes do not belong together, or if a logit is NaN or infinite.

    References:
        Guo et al., On calibration of modern neural networks, ICML 2017, arXiv 1706.04599.
    """
    z, y = _as_tensor(logits), _as_tensor(labels)
    w = None if weights is None else _as_tensor(weights)
    if z.ndim != 2 or len(z) == 0 or y.shape != (z.shape if regions else z.shape[:1]):
        raise ValueError(
            f"expected logits (n, C) with n > 0 and labels {'(n, C)' if regions else '(n,)'}, got "
            f"{tuple(z.shape)} and {tuple(y.shape)}"
        )
    if not torch.isfinite(z).all():
        raise ValueError("expected finite logits, got NaN or Inf: look for a diverged model or damaged predictions")
    total = float(len(z) if w is None else w.double().sum())

    low, high = (-math.log(bound) for bound in reversed(TEMPERATURE_BOUNDS))
    bounds, theta, passes, nll_before = (low, high), 0.0, 0, math.nan
    while True:
        sums, _ = _pass(z, y, w, math.exp(theta), regions, each=False)
        nll, gradient, curvature = sums.tolist()
        passes += 1
        if passes == 1:
            nll_before = nll / total
        if gradient == 0 or (theta == bounds[0] and gradient > 0) or (theta == bounds[1] and gradient < 0):
            break
        low, high = (theta, high) if gradient < 0 else (low, theta)
        step = -gradient / (math.exp(theta) * curvature) if curvature > 0 else math.inf * -gradient
        # a step beyond the bracket goes to a bound that is still untried, else to the middle
        target = theta + step
        if not low < target < high:
            end = high if step > 0 else low
            target = end if end in bounds and end != theta else (low + high) / 2
        if abs(target - theta) < _TOLERANCE or passes == _MAX_PASSES:
            break
        theta = target

    beta = math.exp(theta)
    # exactly the bound, where it is one
    temperature = {bounds[0]: TEMPERATURE_BOUNDS[1], bounds[1]: TEMPERATURE_BOUNDS[0]}.get(theta, 1 / beta)
    _, gradients = _pass(z, y, w, beta, regions, each=True)
    if groups is not None:
        gradients = torch.zeros(int(_as_tensor(groups).max()) + 1, dtype=torch.float64).index_add_(
            0, _as_tensor(groups).long(), gradients
        )
    spread = float(gradients.square().sum().sqrt())
    return TemperatureFit(
        temperature=temperature,
        standard_error=temperature**2 * spread / curvature if curvature > 0 else math.inf,
        nll_before=nll_before,
        nll_after=nll / total,
        at_bound=theta in bounds,
        iterations=passes + 1,
    )

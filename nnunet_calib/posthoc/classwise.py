r"""Class-wise temperature scaling: a temperature for each predicted class, or for each region.

.. math:: p(z) = \mathrm{softmax}(z / T_k), \quad k = \arg\max_c z_c, \qquad \text{regions: } \sigma(z_r / T_r)

Each voxel keeps the order of its classes, and each region its threshold of 1/2, so the segmentation does not change.
Each T minimises a convex NLL of its own: that of the voxels predicted as the class, or that of the region.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnunet_calib.posthoc.calibrator import Key, WeightedVoxels
from nnunet_calib.posthoc.class_voxels import Cases, check_heads, count_voxels, mean_nll, per_channel
from nnunet_calib.posthoc.likelihood import Voxels
from nnunet_calib.posthoc.many_fits import fit_jointly
from nnunet_calib.posthoc.temperature import TEMPERATURE_BOUNDS, TemperatureFit


@dataclass(frozen=True)
class Classwise:
    """Temperatures by class.

    Attributes:
        temperature: temperature of all voxels together, which classes with too few voxels take.
        temperatures: temperature of each class or region, above 0.
        regions: whether the heads are regions.

    Raises:
        ValueError: for a temperature that is not a positive number.
    """

    temperature: float
    temperatures: tuple[float, ...]
    regions: bool

    kind: ClassVar[str] = "classwise"
    noun: ClassVar[str] = "temperatures by class"
    indefinite: ClassVar[str] = noun
    short: ClassVar[str] = "T by class"
    effect: ClassVar[str] = (
        "Temperatures by class move them away from 0 and 1, or towards them, and change no segmentation."
    )
    keeps_segmentation: ClassVar[bool] = True
    form: ClassVar[dict[str, Any]] = {"temperature": float, "temperatures": [float], "regions": bool}

    def __post_init__(self) -> None:
        wrong = [t for t in (self.temperature, *self.temperatures) if not (t > 0 and math.isfinite(t))]
        if wrong or not self.temperatures:
            raise ValueError(f"expected temperatures above 0, got {wrong[0] if wrong else 'none'}")

    @property
    def at_bound(self) -> bool:
        """Whether the temperature of all voxels lies on a bound of the search; the others never do."""
        return self.temperature in TEMPERATURE_BOUNDS

    def logits(self, z: Tensor, *, regions: bool) -> Tensor:
        """Return z / T_k, where k is the class with the largest logit in the voxel, or z_r / T_r for regions."""
        check_heads(z, len(self.temperatures), regions, self.regions)
        t = torch.tensor(self.temperatures, dtype=z.dtype, device=z.device)
        return z / (per_channel(t, z) if regions else t[z.argmax(0)])

    def last_layer(self, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Return weight and bias with each region's channel divided by its temperature."""
        if not self.regions:
            raise ValueError(
                "expected a calibrator that is linear in the logits, got temperatures by class, of which a voxel gets "
                "that of its predicted class: nnunet_calib predict applies them"
            )
        t = torch.tensor(self.temperatures, dtype=torch.float64)
        return (None if weight is None else weight / per_channel(t, weight)), (None if bias is None else bias / t)

    def to_json(self) -> dict[str, Any]:
        """Return the temperatures."""
        return {
            "kind": self.kind,
            "temperature": float(self.temperature),
            "temperatures": [*map(float, self.temperatures)],
            "regions": self.regions,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Classwise:
        """Return the calibrator that `to_json` described."""
        return cls(float(content["temperature"]), tuple(map(float, content["temperatures"])), content["regions"])

    def words(self, digits: str = ".4f") -> str:
        """Return "T by class from 1.1000 to 1.7000"."""
        return f"T by {self._what} from {min(self.temperatures):{digits}} to {max(self.temperatures):{digits}}"

    def meaning(self) -> str:
        """Return a clause on how many classes the model is overconfident for."""
        sure = sum(t > 1 for t in self.temperatures)
        heads = "regions" if self.regions else "predicted classes"
        return (
            f"on these cases the model is too sure of itself for {sure} of {len(self.temperatures)} {heads}; dividing "
            f"its logits by these T gives the smallest NLL"
        )

    @property
    def _what(self) -> str:
        return "region" if self.regions else "class"


@dataclass(frozen=True)
class ClasswiseFit:
    """Fitted temperatures by class.

    Attributes:
        calibrator: the fitted calibrator.
        of_all: fit of one temperature to all voxels.
        standard_errors: standard error of each temperature, with cases as independent.
        take_temperature: indices of the classes that take the temperature of all voxels, because their own are too few
            or do not determine one.
        nll_after: mean negative log-likelihood per voxel, in nats (regions: mean over heads).
    """

    calibrator: Classwise
    of_all: TemperatureFit
    standard_errors: tuple[float, ...]
    take_temperature: tuple[int, ...]
    nll_after: float

    def to_json(self) -> dict[str, Any]:
        """Return the fit as JSON values."""
        return (
            self.of_all.to_json()
            | self.calibrator.to_json()
            | {
                "standard_errors": [*self.standard_errors],
                "take_temperature": [*self.take_temperature],
                "nll_after": self.nll_after,
            }
        )


def fit_classwise(cases: Cases, sets: Mapping[Key, Container[int]]) -> dict[Key, ClasswiseFit]:
    """Fit temperatures by class to each set of cases; arguments and errors as `many_fits.fit_jointly`.

    All searches, including the one for all voxels together, share their passes over the cases.
    """
    counts = count_voxels(cases, sets, _members)
    parts = counts.heads + 1  # of each case: all its voxels, then those of each class
    numbers = {key: [case for case in range(counts.cases) if case in sets[key]] for key in sets}
    fits = fit_jointly(
        lambda: (part for sample in cases() for part in (sample, *_parts(sample))),
        {
            (key, part): {case * parts + part for case in numbers[key]}
            for key in sets
            for part in (0, *(head + 1 for head, enough in enumerate(counts.enough.get(key, ())) if enough))
        },
    )
    found = {}
    for key in sets:
        of_all = fits[key, 0]
        known = [fits.get((key, head + 1)) for head in range(counts.heads)]
        known = [None if fit is None or fit.at_bound else fit for fit in known]
        calibrator = Classwise(
            of_all.temperature, tuple((fit or of_all).temperature for fit in known), regions=counts.regions
        )
        found[key] = ClasswiseFit(
            calibrator,
            of_all,
            tuple((fit or of_all).standard_error for fit in known),
            tuple(head for head, fit in enumerate(known) if fit is None),
            math.nan,
        )
    after = mean_nll(cases, {key: (sets[key], found[key].calibrator) for key in sets})
    return {key: replace(fit, nll_after=after[key]) for key, fit in found.items()}


@dataclass(frozen=True)
class _Part:
    """Voxels of one part of a case."""

    logits: NDArray[np.float16]
    labels: NDArray[Any]
    weights: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.weights)


def _parts(sample: WeightedVoxels) -> Iterator[_Part]:
    """Yield the voxels predicted as each class, or for regions each region's column of all voxels."""
    if sample.labels.ndim == 2:
        for head in range(sample.logits.shape[1]):
            columns = slice(head, head + 1)
            logits, labels = (np.ascontiguousarray(x[:, columns]) for x in (sample.logits, sample.labels))
            yield _Part(logits, labels, sample.weights)
        return
    predicted = sample.logits.argmax(1)
    for head in range(sample.logits.shape[1]):
        here = predicted == head
        yield _Part(sample.logits[here], sample.labels[here], sample.weights[here])


def _members(voxels: Voxels) -> Tensor:
    """Return whether each voxel is predicted as each class; for regions, whether it is labelled or predicted as one."""
    if voxels.regions:
        return voxels.labels.bool() | (voxels.logits > 0)
    return voxels.logits.float().argmax(1)[:, None] == torch.arange(voxels.logits.shape[1])

"""Counts of voxels by class, and the NLL after calibration, for calibrators with parameters for each class."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from typing import Generic, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from nnunet_calib.posthoc.calibrator import Calibrator, Key, WeightedVoxels
from nnunet_calib.posthoc.likelihood import Voxels
from nnunet_calib.posthoc.many_fits import voxels_of
from nnunet_calib.threads import one_thread

MIN_VOXELS, MIN_CASES = 1_000, 10  # needed in a class to fit parameters of its own

Cases = Callable[[], Iterable[WeightedVoxels]]


class Counts(NamedTuple, Generic[Key]):
    """Amount of data to fit on.

    Attributes:
        cases: number of cases.
        heads: number of classes or regions.
        regions: whether the heads are regions.
        enough: for each set, whether each head has `MIN_VOXELS` effective voxels in `MIN_CASES` cases or more.
    """

    cases: int
    heads: int
    regions: bool
    enough: dict[Key, tuple[bool, ...]]


def count_voxels(cases: Cases, sets: Mapping[Key, Container[int]], members: Callable[[Voxels], Tensor]) -> Counts[Key]:
    r"""Count the voxels of each class in sets of cases, in one pass.

    Weighted voxels count as :math:`(\sum w)^2 / \sum w^2` voxels of equal weights.

    Args:
        cases: returns the voxels of the cases, as for `many_fits.fit_jointly`.
        sets: the cases of each set, by their index.
        members: returns whether each voxel belongs to each class, (n, C).

    References:
        Kish, Survey sampling, Wiley 1965.
    """
    sums: dict[Key, Tensor] = {}
    number, heads, regions = 0, 0, False
    for sample in cases():
        voxels = voxels_of(sample)
        heads, regions = voxels.logits.shape[1], voxels.regions
        if len(sample):
            weights = torch.as_tensor(sample.weights, dtype=torch.float64)
            belongs = members(voxels).double()
            of_case = torch.stack([weights @ belongs, weights.square() @ belongs, belongs.amax(0)])
            for key in sets:
                if number in sets[key]:
                    sums[key] = sums.get(key, torch.zeros_like(of_case)) + of_case
        number += 1
    enough = {
        key: tuple(((total.square() >= MIN_VOXELS * squares) & (total > 0) & (found >= MIN_CASES)).tolist())
        for key, (total, squares, found) in sums.items()
    }
    return Counts(number, heads, regions, enough)


def mean_nll(cases: Cases, judged: Mapping[Key, tuple[Container[int], Calibrator]]) -> dict[Key, float]:
    """Return the mean NLL per voxel of each set of cases after its calibrator, in one pass; NaN without a voxel."""
    sums = dict.fromkeys(judged, torch.zeros(2, dtype=torch.float64))
    for number, sample in enumerate(cases()):
        found: dict[Calibrator, Tensor] = {}
        for key, (members, calibrator) in judged.items():
            if number in members and len(sample):
                if calibrator not in found:
                    found[calibrator] = _nll(sample, calibrator)
                sums[key] = sums[key] + found[calibrator]
    return {key: float(nll / weight) for key, (nll, weight) in sums.items()}


def _nll(sample: WeightedVoxels, calibrator: Calibrator) -> Tensor:
    """Return the sum of the weighted NLL and the sum of the weights."""
    voxels = voxels_of(sample)
    with one_thread():
        z = calibrator.logits(voxels.logits.float().T, regions=voxels.regions).T
        if voxels.regions:
            nll = binary_cross_entropy_with_logits(z, voxels.labels.to(z.dtype), reduction="none").mean(1)
        else:
            nll = cross_entropy(z, voxels.labels.long(), reduction="none")
    weights = torch.as_tensor(sample.weights, dtype=torch.float64)
    return torch.stack([weights @ nll.double(), weights.sum()])


def per_channel(values: Tensor, z: Tensor) -> Tensor:
    """Return values (C,) in a shape that broadcasts over the channels of z, (C, ...)."""
    return values.view(-1, *[1] * (z.ndim - 1))


def check_heads(z: Tensor, heads: int, regions: bool, expected_regions: bool) -> None:
    """Raise ValueError if logits have other heads than those the calibrator was fitted to."""
    if (len(z), regions) != (heads, expected_regions):
        names = {True: "regions", False: "classes"}
        raise ValueError(
            f"expected a calibrator of {len(z)} {names[regions]}, got one of {heads} {names[expected_regions]}: fit it "
            f"to predictions of this model"
        )

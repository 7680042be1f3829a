"""Temperatures of many sets of cases in the same few passes, with one case in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping

import numpy as np
import torch

from nnunet_calib.posthoc.calibrator import Key, WeightedVoxels
from nnunet_calib.posthoc.likelihood import Found, Sums, Voxels, search
from nnunet_calib.posthoc.temperature import THETA_BOUNDS, TemperatureFit, fit_of
from nnunet_calib.threads import one_thread

_FIRST = [0.0, -0.5]  # theta: T = 1, and 1.6, which is nearer to most fits


def fit_jointly(
    cases: Callable[[], Iterable[WeightedVoxels]], sets: Mapping[Key, Container[int]]
) -> dict[Key, TemperatureFit]:
    """Fit a temperature to each set of cases, as `fit_temperature` would with the cases as groups.

    The sums of a case are added to every set it belongs to. All searches run in step and need four or five passes. No
    search depends on the cases of other sets, and the results do not depend on the number of threads, to the last
    digit.

    Args:
        cases: returns the voxels of the cases, the same ones in the same order at each call.
        sets: the cases of each set, by their index.

    Raises:
        ValueError: for a set without a voxel, or if a logit is NaN or infinite.
    """
    searches = {key: search(_FIRST, THETA_BOUNDS) for key in sets}
    asked = {key: next(one) for key, one in searches.items()}
    found: dict[Key, Found] = {}
    while asked:
        sums, weights = _one_pass(cases(), {key: (sets[key], betas) for key, betas in asked.items()})
        if not found and (empty := [key for key in sets if not weights[key]]):
            raise ValueError(f"expected voxels to fit a temperature on, found none in {empty[0]}")
        if not found:
            totals = weights
        for key in list(asked):
            try:
                asked[key] = searches[key].send(sums[key])
            except StopIteration as stop:
                found[key] = stop.value
                del asked[key]
    return {key: fit_of(found[key], totals[key]) for key in sets}


def _one_pass(
    cases: Iterable[WeightedVoxels], asked: Mapping[Key, tuple[Container[int], list[float]]]
) -> tuple[dict[Key, list[Sums]], dict[Key, float]]:
    """Return the sums of each set at its betas, and its total weight."""
    sums = {key: [Sums(0, 0, 0, 0, 0)] * len(betas) for key, (_, betas) in asked.items()}
    weights = dict.fromkeys(asked, 0.0)
    for number, sample in enumerate(cases):
        keys = [key for key, (members, _) in asked.items() if number in members]
        if not keys or not len(sample):
            continue
        of_case = _sums(sample, sorted({beta for key in keys for beta in asked[key][1]}))
        weight = float(sample.weights.sum(dtype=np.float64))
        for key in keys:
            weights[key] += weight
            sums[key] = [
                Sums(*map(sum, zip(total, of_case[beta], strict=True)))
                for total, beta in zip(sums[key], asked[key][1], strict=True)
            ]
    return sums, weights


def _sums(sample: WeightedVoxels, betas: list[float]) -> dict[float, Sums]:
    """Return the sums of one case, which is one independent unit in the standard error."""
    with one_thread():
        found = voxels_of(sample).sums(betas)
    return {
        beta: one._replace(squares=(one.observed - one.expected) ** 2) for beta, one in zip(betas, found, strict=True)
    }


def voxels_of(sample: WeightedVoxels) -> Voxels:
    """Return the voxels of a case as tensors that share its memory."""
    regions = sample.labels.ndim == 2
    labels = sample.labels if regions else sample.labels.astype(np.int32)  # PyTorch before 2.3 has no uint16
    logits, weights = torch.from_numpy(sample.logits), torch.from_numpy(sample.weights)
    return Voxels(logits, torch.from_numpy(labels), weights, None, regions)

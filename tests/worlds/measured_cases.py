"""The cases that are measured, and the calibration errors once more as loops over voxels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from scipy.special import expit, softmax

from nnunet_calib import CaseStatistics
from nnunet_calib.measuring.histograms import Histograms

IGNORE_LABEL = 9
BOUNDARY_MM = 2.0
MODES = ("labels", "labels+ignore", "regions", "regions+ignore")


@dataclass(frozen=True)
class Case:
    """Probabilities (C, *spatial) and labels (*spatial) with the options that go with them."""

    probabilities: np.ndarray
    labels: np.ndarray
    regions: tuple[tuple[int, ...], ...] | None = None
    ignore_label: int | None = None
    spacing: tuple[float, ...] | None = None

    def measure(self, **options: Any) -> CaseStatistics:
        """Statistics of the case."""
        known = {"regions": self.regions, "ignore_label": self.ignore_label, "spacing": self.spacing}
        return CaseStatistics.from_probabilities(self.probabilities, self.labels, **known | options)

    def targets(self) -> np.ndarray:
        """(C, *spatial) bool: where each class or region is."""
        members = self.regions or [(c,) for c in range(len(self.probabilities))]
        return np.stack([np.isin(self.labels, values) for values in members])

    def with_probabilities(self, probabilities: Any) -> Case:
        """The same labels with other probabilities."""
        return replace(self, probabilities=probabilities)


def make_case(mode: str = "labels", shape: tuple[int, ...] = (7, 6, 5), heads: int = 3, seed: int = 0) -> Case:
    """Blocks of labels, and float32 probabilities that are right more often than not.

    The default band of 2 mm reaches one voxel along the second axis, and none along the others.
    Regions are nested: the first head holds all labels above 0, the second all above 1, and so on.
    """
    rng = np.random.default_rng(seed)
    regions = tuple(tuple(range(c + 1, heads + 1)) for c in range(heads)) if mode.startswith("regions") else None
    coarse = rng.integers(0, heads + (regions is not None), [-(-n // 3) for n in shape])
    labels = coarse.repeat(3, 0).repeat(3, 1)
    labels = (labels.repeat(3, 2) if len(shape) == 3 else labels)[tuple(slice(n) for n in shape)].astype(np.uint8)
    case = Case(np.empty((heads, *shape)), labels, regions, spacing=(4.0, 1.5, 2.5)[: len(shape)])
    logits = 1.5 * rng.standard_normal((heads, *shape)) + 2 * case.targets() - (regions is not None)
    case = case.with_probabilities((expit(logits) if regions else softmax(logits, axis=0)).astype(np.float32))
    if mode.endswith("ignore"):
        labels[rng.random(shape) < 0.2] = IGNORE_LABEL
        case = replace(case, ignore_label=IGNORE_LABEL)
    return case


@pytest.fixture(params=MODES)
def case(request) -> Case:
    """A small 3D case of each label mode."""
    return make_case(request.param)


def assert_same_histograms(ours: Histograms, expected: Histograms) -> None:
    """Counts exactly, sums to 1e-9."""
    for name in ("counts", "positives", "voxels", "entropy"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(expected, name), err_msg=name)
    for name in ("probability", "nll", "brier"):
        np.testing.assert_allclose(getattr(ours, name), getattr(expected, name), rtol=1e-9, atol=1e-12, err_msg=name)


def assert_same_sample(ours: CaseStatistics, expected: CaseStatistics) -> None:
    """The voxel samples agree in every array."""
    for name in ("logits", "labels", "weights", "scope_bits"):
        np.testing.assert_array_equal(getattr(ours.sample, name), getattr(expected.sample, name), err_msg=name)


def slow_scope(case: Case, scope: str) -> Iterator[tuple[int, ...]]:
    """Positions of the voxels of a scope, from its definition."""
    every = [i for i in np.ndindex(case.labels.shape) if case.labels[i] != case.ignore_label]
    spacing = case.spacing or (1.0,) * case.labels.ndim
    boundary = [a for a in every if any(math.dist(a, b) == 1 and case.labels[a] != case.labels[b] for b in every)]
    foreground = set(itertools.chain(*case.regions)) if case.regions else set(range(1, IGNORE_LABEL))
    for a in every:
        near = any(
            math.hypot(*(s * (i - j) for s, i, j in zip(spacing, a, b, strict=True))) <= BOUNDARY_MM for b in boundary
        )
        if {"image": True, "foreground": case.labels[a] in foreground, "boundary": near}[scope]:
            yield a


def slow_gaps(pairs: list[tuple[float, bool]], num_bins: int) -> dict[str, float]:
    """ECE, ACE and MCE of (probability, truth) pairs, with bins from exact fractions."""
    bins: dict[int, list[tuple[float, bool]]] = {}
    for p, y in pairs:
        bins.setdefault(min(math.floor(Fraction(p) * num_bins), num_bins - 1), []).append((p, y))
    sizes = [len(members) for members in bins.values()]
    gaps = [abs(math.fsum(y - p for p, y in members)) / len(members) for members in bins.values()]
    ece = math.fsum(n * gap for n, gap in zip(sizes, gaps, strict=True)) / sum(sizes)
    return {"ece": ece, "ace": math.fsum(gaps) / len(gaps), "mce": max(gaps)}


def slow_errors(case: Case, num_bins: int, scope: str) -> dict[str, Any]:
    """All calibration errors and scores of a case in which every class is present."""
    positions, heads, targets = list(slow_scope(case, scope)), range(len(case.probabilities)), case.targets()
    marginal = [[(float(case.probabilities[(c, *i)]), bool(targets[(c, *i)])) for i in positions] for c in heads]
    voxels = list(zip(*marginal, strict=True))
    chance = [[p if y else 1 - p for p, y in voxel] for voxel in voxels]  # that each head gives to the truth
    if case.regions:
        top = [(max(p, 1 - p), (p > 0.5) == y) for voxel in voxels for p, y in voxel]
        nll = [-sum(math.log(q) for q in qs) / len(heads) for qs in chance]
    else:
        top = [max(voxel) for voxel in voxels]  # no ties: the pair with the largest probability
        nll = [-math.log(sum(p for p, y in voxel if y)) for voxel in voxels]
    brier = [sum((1 - q) ** 2 for q in qs) / (len(heads) if case.regions else 1) for qs in chance]
    gaps = [slow_gaps(pairs, num_bins) for pairs in marginal]
    return (
        {name: [gap[name] for gap in gaps] for name in ("ece", "ace", "mce")}
        | {f"top_label_{name}": value for name, value in slow_gaps(top, num_bins).items()}
        | {"nll": math.fsum(nll) / len(nll), "brier": math.fsum(brier) / len(brier)}
    )

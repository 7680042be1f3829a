"""Volumes of any small shape, number of classes, type and label mode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from scipy.special import expit, softmax

# The same examples each time, however slow the machine is.
SAME = settings(derandomize=True, deadline=None, max_examples=40, database=None)
FEW = settings(SAME, max_examples=15)

SHAPES = st.one_of(
    st.lists(st.integers(1, 7), min_size=2, max_size=3).map(tuple), st.sampled_from([(1, 1), (1, 1, 1), (2, 1, 9)])
)
IGNORED = 9


@dataclass(frozen=True)
class Made:
    """One or more volumes, before they are made into what a loss or the statistics take.

    Attributes:
        logits: (B, C, *spatial) float64.
        labels: (B, *spatial), IGNORED where they are not known.
        regions: the labels of each head, or None for classes.
        ignores: whether a label may be IGNORED.
    """

    logits: np.ndarray
    labels: np.ndarray
    regions: tuple[tuple[int, ...], ...] | None
    ignores: bool

    @property
    def heads(self) -> int:
        """Classes or regions."""
        return self.logits.shape[1]

    @property
    def maps(self) -> np.ndarray:
        """(B, C, *spatial) whether a voxel belongs to a head."""
        members = self.regions or tuple((c,) for c in range(self.heads))
        return np.stack([np.isin(self.labels, values) for values in members], axis=1)

    @property
    def mode(self) -> dict[str, Any]:
        """Options of a loss."""
        return {"regions": self.regions is not None, "ignore_label": IGNORED if self.ignores else None}

    def tensors(self, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and target of a loss."""
        target = self.labels[:, None]
        if self.regions is not None:
            target = self.maps
            if self.ignores:
                target = np.concatenate([target, (self.labels == IGNORED)[:, None]], axis=1)
        return torch.tensor(self.logits).to(dtype), torch.tensor(target.astype(np.int64))

    def probabilities(self, image: int = 0) -> np.ndarray:
        """Of one image, float64."""
        z = self.logits[image]
        return expit(z) if self.regions else softmax(z, axis=0)

    def options(self) -> dict[str, Any]:
        """Of `CaseStatistics.from_probabilities`."""
        return {"regions": self.regions, "ignore_label": IGNORED if self.ignores else None}


@st.composite
def volumes(draw: st.DrawFn, images: int = 1, regions: bool | None = None) -> Made:
    """Logits of any size, labels that they know more or less well; often a class is absent, or nearly all ignored."""
    shape, heads = draw(SHAPES), draw(st.integers(2, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    by_region = draw(st.booleans()) if regions is None else regions
    members = tuple(tuple(range(c + 1, heads + 1)) for c in range(heads)) if by_region else None
    present = draw(st.integers(1, heads + by_region))  # values
    labels = rng.integers(0, present, (images, *shape))
    scale, known = draw(st.sampled_from([0.0, 0.3, 2.0, 30.0])), draw(st.sampled_from([0.0, 2.0, 10.0]))
    ignores = draw(st.booleans())
    made = Made(np.empty((images, heads, *shape)), labels, members, ignores)
    logits = scale * rng.standard_normal((images, heads, *shape)) + known * (made.maps - by_region * 0.5)
    if ignores:
        labels[rng.random(labels.shape) < draw(st.sampled_from([0.0, 0.3, 0.95, 1.0]))] = IGNORED
    return Made(logits, labels, members, ignores)

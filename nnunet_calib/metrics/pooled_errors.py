"""Errors of the voxels of all cases together, and of resamples of the cases.

A case of few voxels has errors mostly by chance, and so has their mean over cases; pooled, chance averages out.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nnunet_calib.measuring.case_statistics import CaseStatistics
from nnunet_calib.measuring.scopes import SCOPES
from nnunet_calib.metrics.bin_sums import BinSums
from nnunet_calib.metrics.catalogue import SCORES
from nnunet_calib.metrics.errors import NUM_BINS
from nnunet_calib.metrics.significance import resampling_counts

RESAMPLES = 2_000

# By scope and name: of errors (pools, heads + 1), the top label last; of scores (pools,).
PoolErrors = dict[str, dict[str, NDArray[np.float64]]]


class CaseSums(NamedTuple):
    """What pooled errors need of a case.

    Attributes:
        bins: (scopes, heads + 1, M) sums in bins.
        scores: (scopes, 2) sums of the scores.
        voxels: (scopes,) number of voxels.
    """

    bins: BinSums
    scores: NDArray[np.float64]
    voxels: NDArray[Any]

    @classmethod
    def of(cls, statistics: CaseStatistics) -> CaseSums:
        """Return the sums of a case."""
        scopes = [statistics.histograms.scope(scope) for scope in SCOPES]
        return cls(
            BinSums.stack([BinSums.of(statistics, NUM_BINS, scope) for scope in SCOPES]),
            np.array([[getattr(h, score) for score in SCORES] for h in scopes], dtype=np.float64),
            np.array([h.voxels for h in scopes]),
        )

    def without_voxels(self) -> CaseSums:
        """Return the sums over no voxel."""
        return CaseSums(self.bins.map(np.zeros_like), np.zeros_like(self.scores), np.zeros_like(self.voxels))


class PooledCases:
    """Cases whose voxels are pooled."""

    def __init__(self, cases: Sequence[CaseSums]) -> None:
        self._bins = BinSums.stack([case.bins for case in cases])
        self._scores = np.stack([case.scores for case in cases])
        self._voxels = np.stack([case.voxels for case in cases])

    def errors(self) -> PoolErrors:
        """Return the errors of all cases as one pool, those by chance included."""
        return self._errors(np.ones((1, len(self._voxels))), by_chance=True)

    def resampled(self) -> PoolErrors:
        """Return the errors of resamples of the cases, without those by chance; seeded, so that models share them."""
        return self._errors(resampling_counts(len(self._voxels), RESAMPLES), by_chance=False)

    def cases(self, scope: str) -> int:
        """Return the number of cases with a voxel in a scope."""
        return int(np.count_nonzero(self._voxels[:, SCOPES.index(scope)]))

    def _errors(self, times: NDArray[np.float64], *, by_chance: bool) -> PoolErrors:
        """Return the errors of pools in which cases count so many times, (pools, cases)."""
        # a class without a voxel in the whole image has no errors, as in `calibration_errors`
        present = times @ self._bins.positives[:, SCOPES.index("image")].sum(-1) > 0
        present[:, -1] = True
        result: PoolErrors = {}
        for number, scope in enumerate(SCOPES):
            rows = []
            for row in range(present.shape[1]):  # one by one: resamples take memory
                sums = self._bins.map(partial(_pooled, times, (number, row)))
                rows.append(sums.errors() if by_chance else sums.gap_errors())
            with np.errstate(invalid="ignore", divide="ignore"):
                scores = (times @ self._scores[:, number]) / (times @ self._voxels[:, number])[:, None]
            errors = {name: np.stack([row[name] for row in rows], axis=-1) for name in rows[0]}
            result[scope] = {name: np.where(present, values, np.nan) for name, values in errors.items()}
            result[scope] |= dict(zip(SCORES, scores.T, strict=True))
        return result


def _pooled(times: NDArray[np.float64], place: tuple[int, int], values: NDArray[Any]) -> NDArray[np.float64]:
    """Return sums over the cases (pools, M) of values (cases, scopes, rows, M) at a scope and row."""
    return np.asarray(times @ values[(slice(None), *place)])

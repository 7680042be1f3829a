"""What a report is drawn from: the files of a calibration folder, of one fold or of merged folds.

Cases are read one after the other. What stays of each are the bins of its diagrams, which take kilobytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from nnunet_calib.io.json_forms import read_json
from nnunet_calib.io.names import shown
from nnunet_calib.measuring.case_statistics import CaseStatistics
from nnunet_calib.measuring.picture_slice import RepresentativeSlice
from nnunet_calib.metrics.errors import ReliabilityCurve, reliability_curve
from nnunet_calib.posthoc.temperature import nll_at
from nnunet_calib.results.error_tree import case_error
from nnunet_calib.results.schemas import SUMMARY, UNCALIBRATED

_AGAIN = "make it again with nnunet_calib validate, crossval or evaluate"


class DrawnCases:
    """Bins of each case, and the sums over all of them.

    Attributes:
        curves: of the cases.
        present: for each of them (heads + 1,) bool: whether it has the class; the last is the top label.
    """

    def __init__(self, cases: Iterable[CaseStatistics] = ()) -> None:
        self.curves: list[ReliabilityCurve] = []
        self.present: list[NDArray[np.bool_]] = []
        self._pooled: CaseStatistics | None = None
        for case in cases:
            self.add(case)

    def add(self, case: CaseStatistics) -> None:
        """Add a case, of which its bins stay."""
        self.curves.append(reliability_curve(case))
        self.present.append(case.histograms.positives.sum((0, 2)) > 0)
        if self._pooled is None:
            self._pooled = case.without_voxels()
        else:
            self._pooled = replace(self._pooled, histograms=self._pooled.histograms + case.histograms)

    @property
    def pooled(self) -> CaseStatistics:
        """Histograms of the voxels of all cases."""
        if self._pooled is None:
            raise ValueError("expected at least one case to draw, got none")
        return self._pooled

    def __len__(self) -> int:
        return len(self.curves)

    def having(self, row: int, present: Sequence[NDArray[np.bool_]]) -> list[ReliabilityCurve]:
        """The bins of those cases that have a class, as `present` says."""
        return [*compress(self.curves, (there[row] for there in present))]


@dataclass(frozen=True)
class ReportedCase:
    """A case as it is judged.

    Attributes:
        row: its entry of `metric_per_case` in summary.json.
        temperature: that it is judged by.
        read: its statistics, from its file: what follows reads them each time, and keeps nothing in memory.
    """

    row: dict[str, Any]
    temperature: float
    read: Callable[[], CaseStatistics]

    @property
    def before(self) -> CaseStatistics:
        """At T = 1."""
        return self.read()

    @property
    def after(self) -> CaseStatistics:
        """With the temperature it is judged by."""
        return _judged(self.read(), self.temperature)

    @property
    def shown(self) -> RepresentativeSlice | None:
        """Its slice for pictures, at T = 1."""
        return self.read().shown

    @property
    def name(self) -> str:
        """The case's name."""
        return str(self.row["case"])


@dataclass(frozen=True)
class Results:
    """The content of a calibration folder.

    Attributes:
        summary: of summary.json.
        cases: in its order.
        before: the cases at T = 1.
        after: each with the temperature it is judged by.
        temperatures: (n,) around the fitted temperature and 1.
        nll: (n,) mean NLL per voxel of all cases at each of them, in nats.
    """

    summary: dict[str, Any]
    cases: tuple[ReportedCase, ...]
    before: DrawnCases
    after: DrawnCases
    temperatures: NDArray[np.float64]
    nll: NDArray[np.float64]

    @property
    def names(self) -> list[str]:
        """Of the heads, and of the top label."""
        return [*self.summary["heads"]["names"], "top label"]

    @property
    def temperature(self) -> float:
        """The temperature of all cases."""
        return float(self.summary["temperature"]["temperature"])

    @classmethod
    def read(cls, calibration_folder: Path) -> Results:
        """Read summary.json and the case files that it names.

        Raises:
            FileNotFoundError: if one of them is not there.
            ValueError: if one is damaged, or is not of the case, or of the heads, that summary.json names.
        """
        summary = read_json(calibration_folder / "summary.json", SUMMARY, _AGAIN)
        summary["heads"]["names"] = [*map(shown, summary["heads"]["names"])]
        fitted = summary["temperature"]["temperature"]
        temperatures = np.geomspace(min(fitted, 1) / 2, max(fitted, 1) * 2, 41)
        tried = [*map(float, temperatures)]
        nll, voxels, cases = np.zeros(len(temperatures)), 0.0, []
        before, after = DrawnCases(), DrawnCases()
        for row in tqdm(summary["metric_per_case"], desc="reading cases", unit="case"):
            folder = calibration_folder
            if "fold" in row:  # merged folds: the cases stay where they are
                folder = folder.parents[1] / f"fold_{row['fold']}" / "validation" / "calibration"
            file = folder / "cases" / f"{row['case']}.npz"
            case = _load(file, row, summary)
            temperature = row["temperature"] or fitted  # a fold of one case has none that was fitted without it
            before.add(case)
            if len(case.sample):
                weight = float(case.sample.weights.sum(dtype=np.float64))
                nll += weight * nll_at(
                    case.sample.logits, case.sample.labels, tried, weights=case.sample.weights, regions=case.regions
                )
                voxels += weight
            after.add(_judged(case, temperature))
            cases.append(ReportedCase(row, temperature, partial(_load, file, row, summary)))
        return cls(summary, tuple(cases), before, after, temperatures, nll / max(voxels, 1))


def _load(file: Path, row: dict[str, Any], summary: dict[str, Any]) -> CaseStatistics:
    """A case that the summary was made of: while a fold is validated again, others take their places."""
    advice = "measure the fold again with nnunet_calib validate, and merge folds again with nnunet_calib crossval"
    try:
        case = CaseStatistics.load(file)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"expected the statistics of a case in {file}, found none: {advice}") from error
    weights = summary["model"].get("weights_sha256")
    if isinstance(weights, dict):  # merged folds
        weights = weights.get(str(row.get("fold")))
    if case.model.get("weights_sha256") != weights:
        raise ValueError(f"expected the case that summary.json tells of, found {file} of other weights: {advice}")
    heads = len(summary["heads"]["names"])
    regions = summary["heads"]["regions"] is not None
    if (case.cases, case.num_heads, case.regions) != ((row["case"],), heads, regions):
        raise ValueError(
            f"expected the statistics of case {row['case']} with {heads} heads, as summary.json has them, found those "
            f"of {', '.join(case.cases)!r:.99} with {case.num_heads} in {file}: {advice}"
        )
    return case


def _judged(case: CaseStatistics, temperature: float) -> CaseStatistics:
    return case.with_temperature(temperature) if len(case.sample) else case


def worst_cases(cases: Sequence[ReportedCase], scope: str = "image") -> list[ReportedCase]:
    """The cases by falling ACE at T = 1, mean over the foreground classes they have; those without a value last."""

    def error(case: ReportedCase) -> float:
        value = case_error(case.row[UNCALIBRATED][scope], "ace")
        return -1.0 if np.isnan(value) else value

    return sorted(cases, key=error, reverse=True)

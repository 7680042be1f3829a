"""Data for reports, read from the calibration folder of one fold or of merged folds.

Cases are read one at a time, and only the bins of their diagrams, a few kilobytes, stay in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
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
from nnunet_calib.posthoc import from_json
from nnunet_calib.posthoc.calibrator import Calibrator
from nnunet_calib.posthoc.temperature import nll_at
from nnunet_calib.results.error_tree import case_error
from nnunet_calib.results.heads import Heads
from nnunet_calib.results.judged_cases import is_calibrated, is_of_network, load_case
from nnunet_calib.results.layout import calibration_of_fold, case_file
from nnunet_calib.results.schemas import SUMMARY, UNCALIBRATED, ReportedRow, Summary

_AGAIN = "make it again with nnunet_calib validate, crossval or evaluate"


class DrawnCases:
    """Bins of each case, and the sums over all of them.

    Attributes:
        curves: bins of each case.
        present: for each case, (heads + 1,) bool: whether it has the class; the last entry is the top label.
    """

    def __init__(self, cases: Iterable[CaseStatistics] = ()) -> None:
        self.curves: list[ReliabilityCurve] = []
        self.present: list[NDArray[np.bool_]] = []
        self._pooled: CaseStatistics | None = None
        for case in cases:
            self.add(case)

    def add(self, case: CaseStatistics) -> None:
        """Add a case, keeping only its bins."""
        self.curves.append(reliability_curve(case))
        self.present.append(case.histograms.positives.sum((0, 2)) > 0)
        if self._pooled is None:
            self._pooled = case.without_voxels()
        else:
            self._pooled = replace(self._pooled, histograms=self._pooled.histograms + case.histograms)

    @property
    def pooled(self) -> CaseStatistics:
        """Histograms of the voxels of all cases together."""
        if self._pooled is None:
            raise ValueError("expected at least one case to draw, got none")
        return self._pooled

    def __len__(self) -> int:
        return len(self.curves)

    def having(self, row: int, present: Sequence[NDArray[np.bool_]]) -> list[ReliabilityCurve]:
        """Return the bins of the cases that have a class, according to `present`."""
        return [*compress(self.curves, (there[row] for there in present))]


@dataclass(frozen=True)
class ReportedCase:
    """A case of a report, whose statistics are read from its file at each access, to keep memory low.

    Attributes:
        row: the case's entry of `metric_per_case` in summary.json.
        calibrator: calibrator that the case is judged with.
        read: returns the case's statistics, from its file.
    """

    row: ReportedRow
    calibrator: Calibrator
    read: Callable[[], CaseStatistics]

    @property
    def before(self) -> CaseStatistics:
        """Statistics before calibration."""
        return self.read()

    @property
    def after(self) -> CaseStatistics:
        """Statistics after calibration."""
        return _judged(self.read(), self.calibrator)

    @property
    def shown(self) -> RepresentativeSlice | None:
        """Slice for pictures, before calibration."""
        return self.read().shown

    @property
    def name(self) -> str:
        """Name of the case."""
        return str(self.row["case"])


@dataclass(frozen=True)
class Results:
    """The content of a calibration folder.

    Attributes:
        summary: content of summary.json.
        cases: cases in the order of summary.json.
        calibrator: calibrator fitted to all cases.
        before: cases before calibration.
        after: cases after calibration, each with the calibrator it is judged with.
        temperatures: (n,) temperatures around the fitted one and 1; around 1 if the calibrator has none.
        nll: (n,) mean NLL per voxel of all cases at each temperature, in nats.
    """

    summary: Summary
    cases: tuple[ReportedCase, ...]
    calibrator: Calibrator
    before: DrawnCases
    after: DrawnCases
    temperatures: NDArray[np.float64]
    nll: NDArray[np.float64]

    @property
    def names(self) -> list[str]:
        """Names of the heads and of the top label."""
        return [*self.summary["heads"]["names"], "top label"]

    @property
    def names_by_key(self) -> dict[str, str]:
        """Name of each head by its key."""
        return Heads.of_summary(self.summary["heads"]).names_by_key

    @property
    def foreground_names(self) -> dict[str, str]:
        """Name of each structure by its key."""
        heads = Heads.of_summary(self.summary["heads"])
        return {key: heads.names_by_key[key] for key in heads.foreground}

    @classmethod
    def read(cls, calibration_folder: Path, summary: Summary | None = None) -> Results:
        """Read summary.json, unless its content is given, and the case files that it names.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if a file is damaged, or does not match the case or the heads in summary.json.
        """
        file = calibration_folder / "summary.json"
        if summary is None:
            summary = read_json(file, SUMMARY, _AGAIN)
        summary["heads"]["names"] = [*map(shown, summary["heads"]["names"])]
        fitted = _calibrator(summary["temperature"], file)
        t = fitted.to_json().get("temperature", 1.0)
        temperatures = np.geomspace(min(t, 1) / 2, max(t, 1) * 2, 41)
        tried = [*map(float, temperatures)]
        nll, voxels, cases = np.zeros(len(temperatures)), 0.0, []
        before, after = DrawnCases(), DrawnCases()
        for row in tqdm(summary["metric_per_case"], desc="reading cases", unit="case"):
            # the cases of merged folds stay in the folders of their folds
            folder = calibration_of_fold(calibration_folder, row["fold"]) if "fold" in row else calibration_folder
            case = _load(folder, row, summary)
            # for a fold with a single case, no calibrator can be fitted without it
            calibrator = _calibrator(row, file) if is_calibrated(row) else fitted
            before.add(case)
            if len(case.sample):
                weight = float(case.sample.weights.sum(dtype=np.float64))
                nll += weight * nll_at(
                    case.sample.logits, case.sample.labels, tried, weights=case.sample.weights, regions=case.regions
                )
                voxels += weight
            after.add(_judged(case, calibrator))
            cases.append(ReportedCase(row, calibrator, partial(_load, folder, row, summary)))
        return cls(summary, tuple(cases), fitted, before, after, temperatures, nll / max(voxels, 1))


def _calibrator(content: Mapping[str, Any], file: Path) -> Calibrator:
    """Return the calibrator that an entry of summary.json describes."""
    try:
        return from_json(content)
    except ValueError as error:
        raise ValueError(f"{error} in {file}: {_AGAIN}") from error


def _load(folder: Path, row: ReportedRow, summary: Summary) -> CaseStatistics:
    """Load a case, and check that it is the summarised one, which measuring the fold again replaces."""
    advice = "measure the fold again with nnunet_calib validate, and merge folds again with nnunet_calib crossval"
    file = case_file(folder, row["case"])
    try:
        case = load_case(folder, row["case"])
    except FileNotFoundError as error:
        raise FileNotFoundError(f"expected the statistics of a case in {file}, found none: {advice}") from error
    model = summary["model"]
    if isinstance(weights := model.get("weights_sha256"), dict):  # merged folds
        model = {"weights_sha256": weights.get(str(row.get("fold")))}
    if not is_of_network(case, {"weights_sha256": None} | model):
        raise ValueError(f"expected the case that summary.json tells of, found {file} of other weights: {advice}")
    heads, regions = len(summary["heads"]["names"]), summary["heads"]["regions"] is not None
    if (case.num_heads, case.regions) != (heads, regions):
        raise ValueError(
            f"expected the statistics of case {row['case']} with {heads} heads, as summary.json has them, found "
            f"{case.num_heads} in {file}: {advice}"
        )
    return case


def _judged(case: CaseStatistics, calibrator: Calibrator) -> CaseStatistics:
    return case.with_temperature(calibrator) if len(case.sample) else case


def worst_cases(cases: Sequence[ReportedCase], scope: str = "image") -> list[ReportedCase]:
    """Return the cases by falling mean foreground ACE before calibration; cases without one come last."""

    def error(case: ReportedCase) -> float:
        value = case_error(case.row[UNCALIBRATED][scope], "ace")
        return -1.0 if np.isnan(value) else value

    return sorted(cases, key=error, reverse=True)

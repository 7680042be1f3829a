"""What a report is drawn from: the files of a calibration folder, of one fold or of merged folds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from nnunet_calib.slices import RepresentativeSlice
from nnunet_calib.statistics import CaseStatistics
from nnunet_calib.temperature import nll_at


@dataclass(frozen=True)
class ReportedCase:
    """A case as it is judged.

    Attributes:
        row: its entry of `metric_per_case` in summary.json.
        before: its histograms at T = 1.
        after: with the temperature it is judged by.
        temperature: that temperature.
        shown: its slice for pictures, at T = 1.
    """

    row: dict[str, Any]
    before: CaseStatistics
    after: CaseStatistics
    temperature: float
    shown: RepresentativeSlice | None

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
        temperatures: (n,) around the fitted temperature and 1.
        nll: (n,) mean NLL per voxel of all cases at each of them, in nats.
    """

    summary: dict[str, Any]
    cases: tuple[ReportedCase, ...]
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
            ValueError: if one is damaged.
        """
        summary = json.loads((calibration_folder / "summary.json").read_text(encoding="utf-8"))
        fitted = summary["temperature"]["temperature"]
        temperatures = np.geomspace(min(fitted, 1) / 2, max(fitted, 1) * 2, 41)
        tried = [*map(float, temperatures)]
        nll, voxels, cases = np.zeros(len(temperatures)), 0.0, []
        for row in tqdm(summary["metric_per_case"], desc="reading cases", unit="case"):
            folder = calibration_folder
            if "fold" in row:  # merged folds: the cases stay where they are
                folder = folder.parents[1] / f"fold_{row['fold']}" / "validation" / "calibration"
            case = _load(folder / "cases" / f"{row['case']}.npz", summary["model"], row.get("fold"))
            temperature = row["temperature"] or fitted  # a fold of one case has none that was fitted without it
            if sample := len(case.sample):
                weight = float(case.sample.weights.sum(dtype=np.float64))
                nll += weight * nll_at(
                    case.sample.logits, case.sample.labels, tried, weights=case.sample.weights,
                    regions=case.regions,
                )  # fmt: skip
                voxels += weight
            scaled = case.with_temperature(temperature) if sample else case
            cases.append(
                ReportedCase(row, case.without_voxels(), scaled.without_voxels(), temperature, case.shown)
            )
        return cls(summary, tuple(cases), temperatures, nll / max(voxels, 1))


def _load(file: Path, model: dict[str, Any], fold: int | None) -> CaseStatistics:
    """A case that the summary was made of: while a fold is validated again, others take their places."""
    advice = "measure the fold again with nnunet_calib validate, and merge folds again with nnunet_calib crossval"
    try:
        case = CaseStatistics.load(file)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"expected the statistics of a case in {file}, found none: {advice}") from error
    weights = model.get("weights_sha256")
    if isinstance(weights, dict):  # merged folds
        weights = weights[str(fold)]
    if case.model.get("weights_sha256") != weights:
        raise ValueError(f"expected the case that summary.json tells of, found {file} of other weights: {advice}")
    return case


def worst_cases(cases: Sequence[ReportedCase], scope: str = "image") -> list[ReportedCase]:
    """The cases by falling ACE at T = 1, mean over the foreground classes they have; those without a value last."""

    def error(case: ReportedCase) -> float:
        value = case_error(case.row, "uncalibrated", "ace", scope)
        return -1.0 if np.isnan(value) else value

    return sorted(cases, key=error, reverse=True)


def case_error(row: dict[str, Any], stage: str, metric: str, scope: str = "image") -> float:
    """A metric of a row of `metric_per_case`; of ECE, ACE and MCE the mean over the foreground. NaN if it has none."""
    values = row[stage][scope]
    if metric in values:
        return float("nan") if values[metric] is None else float(values[metric])
    keys = [key for key in values["per_class"] if key != "0"]
    found = [values["per_class"][key][metric] for key in keys]
    found = [float(v) for v in found if v is not None and not np.isnan(v)]
    return float(np.mean(found)) if found else float("nan")

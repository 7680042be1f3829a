"""Found and missed lesions by confidence: FROC curves from lists of lesions, which add over cases.

A predicted lesion with a confidence of at least t counts as found at the threshold t. The sensitivity is the share of
the true lesions that some of these meet, and a false positive is one of them that meets no true lesion; which lesions
meet, `Lesions.meeting` decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import nnunet_calib
from nnunet_calib.decisions.lesions import FOUND_BY_VOXELS, Lesions, LesionSums
from nnunet_calib.io.atomic_files import write_json
from nnunet_calib.io.json_forms import read_json
from nnunet_calib.io.wording import aligned, number
from nnunet_calib.results.fold_summary import FORMAT_VERSION
from nnunet_calib.results.layout import LESIONS_FILE
from nnunet_calib.results.schemas import LESIONS, STAGES

CONFIDENCES = ("mean_p", "max_p")
RATES = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)  # false positives per case
THRESHOLDS = tuple(n / 10 for n in range(1, 10))

DEFINITIONS = {
    "lesion": "connected component (26 neighbours, 8 in 2D) of a structure: predicted ones of the segmentation, by "
    "the largest p, or p > 1/2 of a region; true ones of the label map; ignored voxels belong to none",
    "found": f"a true lesion that shares {FOUND_BY_VOXELS} voxel or more with a predicted one of the structure",
    "false": "a predicted lesion that shares fewer with every true one",
    "mean_p": "mean p of the structure over the voxels of the predicted lesion; a true lesion has the largest one of "
    "the predicted lesions that find it",
    "max_p": "the largest p over its voxels, likewise",
    "sensitivity": "found / true lesions of all cases, of those with a confidence of at least the threshold",
    "false_per_case": "false lesions / cases, likewise",
    "sensitivity_at": "the largest sensitivity of a threshold with at most so many false lesions per case",
    "mean_sensitivity": "mean of these",
}


class Froc(NamedTuple):
    """FROC curve at falling thresholds, from one above every confidence to the smallest confidence.

    Attributes:
        thresholds: (n,) thresholds, the first one infinite.
        sensitivity: (n,) share of the true lesions that are found; NaN without a true lesion.
        false_per_case: (n,) predicted lesions that meet no true one, per case.
    """

    thresholds: NDArray[np.float64]
    sensitivity: NDArray[np.float64]
    false_per_case: NDArray[np.float64]

    def at(self, threshold: float) -> tuple[float, float]:
        """Return sensitivity and false lesions per case at a threshold."""
        last = int(np.count_nonzero(self.thresholds >= threshold)) - 1
        return float(self.sensitivity[last]), float(self.false_per_case[last])

    def sensitivity_at(self, rate: float) -> float:
        """Return the largest sensitivity with at most so many false lesions per case."""
        return float(self.sensitivity[self.false_per_case <= rate + 1e-12].max())


def froc(found: Sequence[float], missed: int, false: Sequence[float], cases: int) -> Froc:
    """Return the FROC curve of the lesions of all cases.

    Args:
        found: confidence of each true lesion that is found.
        missed: number of true lesions that are not.
        false: confidence of each predicted lesion that meets no true one.
        cases: number of cases, at least 1.

    References:
        Chakraborty and Winter, Free-response methodology, Radiology 174, 1990. The rates are those of Setio et al.,
        Medical Image Analysis 42, 2017 (LUNA16).
    """
    thresholds = np.unique([*found, *false, np.inf])[::-1]
    counts = [np.searchsorted(np.sort(np.negative(values)), -thresholds, side="right") for values in (found, false)]
    true = len(found) + missed
    return Froc(thresholds, counts[0] / true if true else np.full(len(thresholds), np.nan), counts[1] / cases)


def lesions_of_case(
    predicted: Lesions, sums: Mapping[str, LesionSums], true: Lesions, keys: Sequence[str]
) -> dict[str, Any]:
    """Return the predicted and the true lesions of a case, by structure, as lists for a file.

    Args:
        predicted: predicted lesions.
        sums: stage -> their sums of p.
        true: lesions of the label map.
        keys: keys of all heads; those without any lesion are left out.
    """
    pairs = predicted.meeting(true)
    of_stage = {}
    for stage, of in sums.items():
        of_stage[stage] = {name: getattr(of, name) for name in CONFIDENCES}
    result: dict[str, Any] = {}
    for head, key in enumerate(keys):
        ours, theirs = (np.flatnonzero(of.structures == head) for of in (predicted, true))
        if not len(ours) and not len(theirs):
            continue
        meets = np.bincount(pairs[0], minlength=len(predicted))[ours]
        entry: dict[str, Any] = {
            "predicted": {"voxels": predicted.voxels[ours].tolist(), "meets": meets.tolist()},
            "true": {"voxels": true.voxels[theirs].tolist()},
        }
        for stage, values in of_stage.items():
            entry["predicted"][stage] = {name: values[name][ours].tolist() for name in CONFIDENCES}
            entry["true"][stage] = {name: _found_with(values[name], pairs, len(true))[theirs] for name in CONFIDENCES}
            entry["true"][stage] = {name: found.tolist() for name, found in entry["true"][stage].items()}
        result[key] = entry
    return result


def _found_with(confidence: NDArray[np.float64], pairs: NDArray[np.int64], true: int) -> NDArray[np.float64]:
    """Return for each true lesion the largest confidence of the predicted ones that meet it; NaN if none does."""
    found = np.full(true, -np.inf)
    np.maximum.at(found, pairs[1], confidence[pairs[0]])
    return np.where(np.isinf(found), np.nan, found)


def froc_of_cases(rows: Sequence[Mapping[str, Any]], key: str, stage: str, confidence: str) -> Froc:
    """Return the FROC curve of a structure.

    Args:
        rows: cases, each with its `structures` from `lesions_of_case`; NaN or None for a missed lesion.
        key: key of the structure.
        stage: before or after calibration, one of `STAGES`.
        confidence: one of `CONFIDENCES`.
    """
    found: list[float] = []
    false: list[float] = []
    missed = 0
    for row in rows:
        if (of := row["structures"].get(key)) is None:
            continue
        values = np.array(of["true"][stage][confidence], np.float64)
        found += values[~np.isnan(values)].tolist()
        missed += int(np.isnan(values).sum())
        predicted = zip(of["predicted"]["meets"], of["predicted"][stage][confidence], strict=True)
        false += [value for meets, value in predicted if not meets]
    return froc(found, missed, false, len(rows))


def write_lesions(folder: Path, model: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the lesions of cases into a calibration folder; `rows` as for `froc_of_cases`, each with its `case`."""
    content = {
        "format_version": FORMAT_VERSION,
        "nnunet_calib": nnunet_calib.__version__,
        "model": model,
        "definitions": DEFINITIONS,
        "metric_per_case": [*rows],
    }
    write_json(content, folder / LESIONS_FILE)


def read_lesions(folder: Path) -> list[dict[str, Any]] | None:
    """Return what `write_lesions` has written; None for a calibration folder without lesions.

    Raises:
        ValueError: if the file is damaged.
    """
    file, again = folder / LESIONS_FILE, "make it again with nnunet_calib evaluate --lesions"
    if not file.is_file():
        return None
    rows: list[dict[str, Any]] = read_json(file, LESIONS, again)["metric_per_case"]
    if not rows:
        raise ValueError(f"expected the lesions of at least one case, found none in {file}: {again}")
    for row in rows:
        for of in (lesions for structure in row["structures"].values() for lesions in structure.values()):
            lists = [of["voxels"], *([of["meets"]] if "meets" in of else [])]
            lists += [of[stage][name] for stage in STAGES for name in CONFIDENCES]
            if len({*map(len, lists)}) > 1:
                raise ValueError(f"expected equally many values of each lesion of {row['case']} in {file}: {again}")
    return rows


def lesion_summary(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> dict[str, Any]:
    """Return the entry `lesions` of a summary.json, from cases with their `structures` from `lesions_of_case`."""
    structures: dict[str, Any] = {}
    for key in keys:
        of_case = [row["structures"][key] for row in rows if key in row["structures"]]
        all_found = froc_of_cases(rows, key, STAGES[0], CONFIDENCES[0])
        structures[key] = {
            "true": sum(len(of["true"]["voxels"]) for of in of_case),
            "predicted": sum(len(of["predicted"]["voxels"]) for of in of_case),
            "sensitivity": float(all_found.sensitivity[-1]),
            "false_per_case": float(all_found.false_per_case[-1]),
        }
        for stage in STAGES:
            structures[key][stage] = {name: _numbers(froc_of_cases(rows, key, stage, name)) for name in CONFIDENCES}
    return {"definitions": DEFINITIONS, "cases": len(rows), "structures": structures}


def _numbers(curve: Froc) -> dict[str, Any]:
    at_rates = {f"{rate:g}": curve.sensitivity_at(rate) for rate in RATES}
    at_thresholds = [curve.at(threshold) for threshold in THRESHOLDS]
    return {
        "sensitivity_at": at_rates,
        "mean_sensitivity": float(np.mean([*at_rates.values()])),
        "thresholds": [*THRESHOLDS],
        "sensitivity": [sensitivity for sensitivity, _ in at_thresholds],
        "false_per_case": [false for _, false in at_thresholds],
    }


def lesion_table(lesions: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Return the table of the lesions of each structure, for the terminal.

    Args:
        lesions: the entry `lesions` of a summary.json.
        names: key -> name of each structure.
    """
    rows = [["lesions", "true", "found", "false / case", "by", *(f"{rate:g} / case" for rate in RATES), "mean"]]
    for key, of in lesions["structures"].items():
        for name in CONFIDENCES:
            curve = of[STAGES[1]][name]
            row = [
                f"{key} {names[key]}",
                str(of["true"]),
                number(of["sensitivity"], 3),
                number(of["false_per_case"], 2),
            ]
            row += [name, *(number(value, 3) for value in curve["sensitivity_at"].values())]
            rows.append([*row, number(curve["mean_sensitivity"], 3)])
    return "\n".join(aligned(rows))

"""Expected volume and Dice of cross-validated cases, judged by their true ones, and the intervals for new cases."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import nnunet_calib
from nnunet_calib.decisions.conformal import LogInterval, conformal_interval, fewest_residuals
from nnunet_calib.decisions.expected_sums import ExpectedSums
from nnunet_calib.io.atomic_files import write_json
from nnunet_calib.io.json_forms import read_json
from nnunet_calib.measuring.case_statistics import CaseStatistics
from nnunet_calib.metrics.ranks import auroc_of_scores, spearman
from nnunet_calib.posthoc import IDENTITY, from_json
from nnunet_calib.posthoc.calibrator import Calibrator
from nnunet_calib.posthoc.logits import calibrated
from nnunet_calib.results.error_tree import mean_of_known
from nnunet_calib.results.fold_summary import FORMAT_VERSION
from nnunet_calib.results.heads import Heads
from nnunet_calib.results.judged_cases import is_calibrated, load_case
from nnunet_calib.results.layout import EXPECTED_FILE, calibration_of_fold
from nnunet_calib.results.schemas import CALIBRATED, EXPECTED, STAGES, SUMMARY, UNCALIBRATED
from nnunet_calib.threads import one_thread

LEVEL = 0.9
WORST = 0.1  # share of the cases with the smallest Dice that a score is to find

DEFINITIONS = {
    "expected_voxels": "sum of p over the voxels of the case",
    "expected_dice": "2 sum of p over the segmentation / (segmented voxels + sum of p)",
    "mean_entropy": "mean entropy over the segmentation of the structure, in nats (Mehrtash et al., IEEE TMI 2020)",
    UNCALIBRATED: "p as the network predicts it",
    CALIBRATED: "p with the temperature that the case is judged with in summary.json, which was fitted without it",
    "source": "true_voxels are exact; all else is estimated from the kept voxels of the case, dice is nnU-Net's",
    "volumes": "of the cases that have the structure, log(true / expected voxels), or true / segmented: `low` and "
    f"`high` are the limits of the split-conformal interval of level {LEVEL:g} for a new case, null for fewer than "
    f"{fewest_residuals(LEVEL)} cases; `covered` is the share of the cases between the limits from the other folds",
    "dice": "of the cases with a Dice and a segmentation of the structure: `error` is the mean of "
    "|expected - true Dice|, `spearman` the rank correlation with the true Dice (of the entropy with its negative), "
    f"`worst` the area under the ROC curve for finding the {WORST:.0%} of the cases with the smallest Dice",
}
PROMISE = (
    "In a new case that is exchangeable with the cross-validated cases and predicted by a network like theirs, the "
    f"true volume lies in the interval with a probability of at least {LEVEL:.0%}. Another scanner or population "
    "breaks this, and for an ensemble of the folds it is no guarantee."
)
DISAGREEMENT = (
    "The disagreement of the folds cannot be judged here: each case was held out by one network, and the others were "
    "trained on it."
)


def write_expected(folder: Path, dice: Mapping[str, Mapping[str, float]]) -> None:
    """Write the expected volumes and Dice of merged folds beside their summary.json.

    The case files are read once, one at a time.

    Args:
        folder: calibration folder of merged folds, with summary.json.
        dice: case -> key of a structure -> nnU-Net's Dice; cases and structures without one may lack.

    Raises:
        ValueError: if a file is damaged.
        OSError: if a file is missing or cannot be written.
    """
    summary = read_json(folder / "summary.json", SUMMARY, "merge the folds again with nnunet_calib crossval")
    heads = Heads.of_summary(summary["heads"])
    rows = [*_rows(folder, summary, heads, dice)]
    content = {
        "format_version": FORMAT_VERSION,
        "nnunet_calib": nnunet_calib.__version__,
        "model": summary["model"],
        "level": LEVEL,
        "promise": PROMISE,
        "notes": [DISAGREEMENT],
        "definitions": DEFINITIONS,
        **judged(rows, heads),
        "metric_per_case": rows,
    }
    write_json(content, folder / EXPECTED_FILE)


def read_expected(folder: Path) -> dict[str, Any] | None:
    """Return the expected volumes and Dice of merged folds; None for a calibration folder without them.

    Raises:
        ValueError: if the file is damaged.
    """
    file = folder / EXPECTED_FILE
    if not file.is_file():
        return None
    content: dict[str, Any] = read_json(file, EXPECTED, "merge the folds again with nnunet_calib crossval")
    return content


def volume_limits(folder: Path) -> dict[str, LogInterval]:
    """Return the interval of each structure's true volume around the calibrated expected one, in merged folds.

    Structures with too few cases are left out; without expected.json there are none.

    Raises:
        ValueError: if the file is damaged.
    """
    content = read_expected(folder)
    volumes = {} if content is None else content["volumes"]
    found = {key: (of[CALIBRATED]["low"], of[CALIBRATED]["high"]) for key, of in volumes.items()}
    return {key: LogInterval(low, high) for key, (low, high) in found.items() if None not in (low, high)}


def _rows(
    folder: Path, summary: Mapping[str, Any], heads: Heads, dice: Mapping[str, Mapping[str, float]]
) -> Iterator[dict[str, Any]]:
    for row in summary["metric_per_case"]:
        if not is_calibrated(row):
            continue
        own = calibration_of_fold(folder, row["fold"]) if "fold" in row else folder
        statistics = load_case(own, row["case"])
        if not len(statistics.sample):
            continue
        yield {
            "case": row["case"],
            "fold": row.get("fold"),
            "structures": expected_of_case(statistics, from_json(row), heads, dice.get(row["case"], {})),
        }


@one_thread()
def expected_of_case(
    statistics: CaseStatistics, calibrator: Calibrator, heads: Heads, dice: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    """Return for each structure of a measured case its volumes in voxels, and its expected and true Dice.

    Args:
        statistics: the case.
        calibrator: calibrator that was fitted without the case.
        heads: heads of the network.
        dice: key of a structure -> true Dice.
    """
    true = statistics.histograms.scope("image").positives.sum(1)
    sample, regions = statistics.sample, heads.regions is not None
    z = sample.logits.T.astype(np.float32)
    # of regions that nest, nnU-Net's segmentation can differ in single voxels
    segmented = z > 0 if regions else z.argmax(0) == np.arange(len(z))[:, None]
    sums = {}
    for stage, used in zip(STAGES, (IDENTITY, calibrator), strict=True):
        sums[stage] = ExpectedSums(len(z))
        p = calibrated(z, used, regions=regions)
        sums[stage].add(p, sample.weights)
        sums[stage].add_segmented(p, segmented, sample.weights, regions=regions)
    found: dict[str, dict[str, Any]] = {}
    for head, key in enumerate(heads.keys):
        if head == heads.background:
            continue
        found[key] = {
            "true_voxels": int(true[head]),
            "segmented_voxels": float(sums[UNCALIBRATED].segmented[head]),
            "dice": dice.get(key, math.nan),
        }
        for stage, of in sums.items():
            found[key][stage] = {
                "expected_voxels": float(of.expected[head]),
                "expected_dice": float(of.dice[head]),
                "mean_entropy": float(of.mean_entropy[head]),
            }
    return found


def judged(rows: Sequence[Mapping[str, Any]], heads: Heads) -> dict[str, Any]:
    """Return `volumes` and `dice` of each structure, as in the file.

    Args:
        rows: the cases, each with its fold and `structures` from `expected_of_case`.
        heads: heads of the network.
    """
    volumes: dict[str, dict[str, Any]] = {}
    dice: dict[str, dict[str, Any]] = {}
    for key in heads.foreground:
        of_cases = [(row["fold"], row["structures"][key]) for row in rows]
        pairs = [(fold, s["true_voxels"], s["segmented_voxels"]) for fold, s in of_cases]
        volumes[key] = {"segmented": _volumes(pairs)}
        for stage in STAGES:
            pairs = [(fold, s["true_voxels"], s[stage]["expected_voxels"]) for fold, s in of_cases]
            volumes[key][stage] = _volumes(pairs)
        known = [s for _, s in of_cases if not math.isnan(s["dice"]) and s["segmented_voxels"] > 0]
        dice[key] = {"cases": len(known), "dice": mean_of_known([s["dice"] for s in known])}
        dice[key] |= {stage: _dice(known, stage) for stage in STAGES}
    return {"volumes": volumes, "dice": dice}


def _volumes(pairs: Sequence[tuple[Any, float, float]]) -> dict[str, Any]:
    """Return the interval of the log ratio from all cases, and how the intervals of the other folds cover each fold.

    Args:
        pairs: fold, true volume and estimated volume of each case.
    """
    residuals = [(fold, math.log(true / volume)) for fold, true, volume in pairs if true > 0 and volume > 0]
    covered = []
    for fold in dict.fromkeys(fold for fold, _ in residuals):
        low, high = conformal_interval([r for other, r in residuals if other != fold], LEVEL)
        if not math.isnan(low):
            covered += [low <= r <= high for other, r in residuals if other == fold]
    low, high = conformal_interval([r for _, r in residuals], LEVEL)
    return {
        "cases": len(residuals),
        "mean": mean_of_known([r for _, r in residuals]),
        "low": low,
        "high": high,
        "covered": mean_of_known(covered),
    }


def _dice(known: Sequence[Mapping[str, Any]], stage: str) -> dict[str, Any]:
    """Return how the expected Dice, and the entropy, order the cases by their true Dice."""
    true = np.array([s["dice"] for s in known])
    expected, entropy = (np.array([s[stage][name] for s in known]) for name in ("expected_dice", "mean_entropy"))
    worst = true <= np.sort(true)[math.ceil(WORST * len(true)) - 1] if len(true) else np.zeros(0, bool)
    return {
        "error": mean_of_known(np.abs(expected - true).tolist()),
        "spearman": spearman(expected, true),
        "worst": auroc_of_scores(-expected, worst),
        "mean_entropy": {"spearman": spearman(-entropy, true), "worst": auroc_of_scores(entropy, worst)},
    }

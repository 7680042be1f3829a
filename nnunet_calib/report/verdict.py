"""The three sentences at the top of a report: how far to trust the probabilities, where least, and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnunet_calib.figures.drawn_results import DrawnCases, Results
from nnunet_calib.io.json_forms import read_json
from nnunet_calib.io.wording import missing, number
from nnunet_calib.metrics.errors import NUM_BINS
from nnunet_calib.metrics.significance import ratio_intervals
from nnunet_calib.posthoc import from_json
from nnunet_calib.posthoc.temperature import Temperature
from nnunet_calib.results.heads import Heads
from nnunet_calib.results.layout import CALIBRATORS, IDENTITY, THRESHOLDS_FILE, Fold, ModelFolder
from nnunet_calib.results.schemas import CALIBRATOR_FITS, STAGES, THRESHOLDS, Summary

BAND = (0.85, 0.95)  # probabilities that a reader takes for nearly certain
_AGAIN = "make it again with nnunet_calib crossval --calibrators, or thresholds"
_BINS = slice(round(BAND[0] * NUM_BINS), round(BAND[1] * NUM_BINS))


def verdict(results: Results, folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the question and the answer of each sentence; commands are between backticks.

    Args:
        results: a fold, or merged folds.
        folder: their calibration folder, for thresholds.json and calibrators.json.

    Raises:
        ValueError: if one of these files is damaged.
    """
    yield "How far can the probabilities be trusted?", _trust(results)
    yield "For which structure least?", _least(results.summary, results.calibrator.noun)
    yield "What to do?", _advice(results.summary, folder)


def _trust(results: Results) -> str:
    background = Heads.of_summary(results.summary["heads"]).background
    heads = [head for head in range(len(results.summary["heads"]["keys"])) if head != background]
    voxels, probability, inside = _in_band(results.before, heads)
    said = f"{100 * BAND[0]:.0f} to {100 * BAND[1]:.0f} %"
    if not voxels.sum():
        ace = results.summary["metrics"][STAGES[0]]["image"]["foreground_mean"]["ace"]
        points = number(_percent(ace), 1)
        off = "no case has a structure" if missing(ace) else f"they are off by {points} percentage points"
        return f"The model gives no voxel a structure with a probability of {said}; over all probabilities {off} (ACE)."
    low, high = (float(limit) for limit in ratio_intervals(inside, voxels))
    share, mean = inside.sum() / voxels.sum(), probability.sum() / voxels.sum()
    limits = (share, share) if np.isnan(low) else (low, high)
    word = "too high" if mean > limits[1] else "too low" if mean < limits[0] else "about right"
    interval = "" if np.isnan(low) else f" (95 % interval over cases {100 * low:.0f} to {100 * high:.0f} %)"
    after = _in_band(results.after, heads)
    calibrated = 100 * after[2].sum() / after[0].sum() if after[0].sum() else None
    with_noun = "" if calibrated is None else f", and with {results.calibrator.noun} in {calibrated:.0f} %"
    return (
        f"They are {word} as the network gives them: where it says {said}, the structure is there in "
        f"{100 * share:.0f} % of the voxels{interval}{with_noun}."
    )


def _in_band(cases: DrawnCases, heads: Sequence[int]) -> tuple[NDArray[np.float64], ...]:
    """Return voxels, summed probabilities and voxels inside of each case, over heads and the bins of the band."""
    counts, confidence, frequency = (
        np.array([getattr(curve, name)[heads, _BINS] for curve in cases.curves], np.float64)
        for name in ("counts", "confidence", "frequency")
    )
    return tuple((counts * np.nan_to_num(values)).sum((1, 2)) for values in (1.0, confidence, frequency))


def _least(summary: Summary, noun: str) -> str:
    heads = Heads.of_summary(summary["heads"])
    names = heads.names_by_key
    before, after = (summary.get("pooled", summary["metrics"])[stage]["image"]["per_class"] for stage in STAGES)
    errors = {key: before[key]["ace"] for key in heads.foreground if not missing(before[key]["ace"])}
    if not errors:
        return "No case has a structure to judge."

    def said(key: str) -> str:
        return f"by {number(_percent(errors[key]), 1)}, with {noun} by {number(_percent(after[key]['ace']), 1)}"

    worst, best = max(errors, key=lambda key: errors[key]), min(errors, key=lambda key: errors[key])
    others = "" if worst == best else f"; for {names[best]}, the best one, {said(best)}"
    return f"{names[worst]}: the probabilities are off {said(worst)} percentage points (ACE){others}."


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _advice(summary: Summary, folder: Path) -> str:
    fit, model = summary["temperature"], summary["model"]
    calibrator, error = from_json(fit), fit.get("standard_error")
    if calibrator.at_bound or fit.get("at_bound"):
        return "Do not use its temperature, which lies on the bound of the search: look at the worst cases below first."
    one_number = isinstance(calibrator, Temperature)
    with_it = calibrator.words(".3f") if one_number else f"the {calibrator.noun}"
    fold = model.get("fold")
    folds = fit.get("folds") or ([] if fold is None else [fold])
    if not folds or not all(model.get(name) for name in IDENTITY):
        return (
            f"Calibrate with {with_it}: `nnunet_calib export -i PRED --temperature temperature.json` writes the "
            f"probabilities as images."
        )
    of = ModelFolder(folder, *(model[name] for name in IDENTITY))
    if one_number and error is not None and abs(calibrator.to_json()["temperature"] - 1) <= 2 * error:
        clauses = [f"Use the probabilities as they are: {with_it} would hardly change them"]
    else:
        kind = "" if one_number else f" --calibrator {calibrator.kind}"
        clauses = [f"Calibrate with {with_it}: `{of.command('bake', *folds)}{kind}` writes it into the checkpoint"]
    return f"{'; '.join([*clauses, *_better(folder, calibrator.kind), *_thresholds(of, folds, summary)])}."


def _better(folder: Path, used: str) -> Iterator[str]:
    """Yield the calibrator that is recommended instead of the one used."""
    file = folder / CALIBRATORS
    better = read_json(file, CALIBRATOR_FITS, _AGAIN).get("recommended", used) if file.is_file() else used
    if better != used:
        yield f"`--calibrator {better}` is recommended there, for its smaller NLL out of fold"


def _thresholds(of: ModelFolder, folds: Sequence[Fold], summary: Summary) -> Iterator[str]:
    """Yield the thresholds of the highest recall, or the command that chooses some."""
    file = of.path / THRESHOLDS_FILE
    levels = read_json(file, THRESHOLDS, _AGAIN)["levels"] if file.is_file() else []
    if recalls := [row for row in levels if row["of"] == "recall"]:
        row = max(recalls, key=lambda row: float(row["level"]))
        names = Heads.of_summary(summary["heads"]).names_by_key
        each = ", ".join(
            f"{names.get(key, key)} {number(of_key['threshold'], 3)}" for key, of_key in row["structures"].items()
        )
        yield (
            f"for masks that hold {100 * row['level']:g} % of a structure, `nnunet_calib predict --masks "
            f"{THRESHOLDS_FILE}` takes the voxels from a probability on, before calibration ({each})"
        )
    elif len(folds) > 1:
        yield f"for masks that hold 95 % of a structure: `{of.command('thresholds', *folds)} --recall .95`"

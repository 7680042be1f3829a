"""Thresholds of probabilities that promise a recall or precision in a new case, and a check of the promise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

import nnunet_calib
from nnunet_calib.decisions.risk_control import (
    THRESHOLDS,
    controlled_index,
    fewest_cases,
    missed_shares,
    relative_sizes,
    wrong_shares,
)
from nnunet_calib.measuring.histograms import Histograms
from nnunet_calib.metrics.significance import mean_interval
from nnunet_calib.results.error_tree import mean_of_known
from nnunet_calib.results.fold_summary import FORMAT_VERSION
from nnunet_calib.results.heads import Heads
from nnunet_calib.results.judged_cases import MeasuredCase, read_each

_LOSSES: dict[str, Callable[[Histograms], NDArray[np.float64]]] = {"recall": missed_shares, "precision": wrong_shares}

DEFINITIONS = {
    "mask": "the voxels with p >= threshold of a structure, p as the network predicts it, before any calibrator",
    "recall": "share of the structure's voxels that the mask holds; of the cases that have the structure",
    "precision": "share of the mask's voxels that are of the structure, at this threshold or at the worst one above "
    "it; an empty mask has 1, and a case without the structure 0 where it has a mask",
    "threshold": "the boldest that keeps (n mean loss + 1) / (n + 1) <= 1 - level, where the loss is 1 - recall or "
    "1 - precision and n the number of cases (conformal risk control); null if no threshold does",
    "found": "mean over the cases, with the 95 % bootstrap interval over cases",
    "relative_size": "voxels of the mask / voxels of the structure, mean over the cases that have the structure",
    "per_fold": "each fold's cases with the threshold of the cases of the other folds, which its promise is judged by",
}
HOLD_OUT_PROMISE = (
    "In a new case that is exchangeable with these cases, and predicted by the same predictor, the expected recall or "
    "precision is at least the level. It is an average over cases, not a promise for each; another scanner or another "
    "population breaks it."
)
FOLDS_PROMISE = (
    "The cases were predicted by networks that were trained on the other folds. For such a network the expected recall "
    "or precision in a new, exchangeable case is about the level, as the folds show; for an ensemble of the folds, or "
    "a network of all cases, it is no guarantee. For one, name a labelled hold-out with -i and -gt."
)


@dataclass(frozen=True)
class Goal:
    """A promise about a mask.

    Attributes:
        of: "recall" or "precision".
        level: promised expected value in a new case, between 0 and 1.
    """

    of: Literal["recall", "precision"]
    level: float

    def __post_init__(self) -> None:
        """Raise ValueError for values that are no promise."""
        if self.of not in _LOSSES:
            raise ValueError(f"expected recall or precision as what a threshold promises, got {self.of!r}")
        if not 0 < self.level < 1:
            raise ValueError(f"expected a {self.of} between 0 and 1, got {self.level}: write .95 for 95 %")

    @property
    def alpha(self) -> float:
        """Expected loss that the level allows."""
        return 1 - self.level

    def losses(self, histograms: Histograms) -> NDArray[np.float64]:
        """Return the losses of a case, (heads, thresholds); NaN for a structure that the case says nothing about."""
        return _LOSSES[self.of](histograms)

    def position(self, totals: NDArray[np.float64], cases: int) -> int | None:
        """Return the index into THRESHOLDS that keeps the promise, given the summed losses (thresholds,) of cases."""
        return controlled_index(totals, cases, self.alpha, rising=self.of == "recall")


def goals_of(recall: Sequence[float], precision: Sequence[float]) -> list[Goal]:
    """Return a goal for each level, each once.

    Raises:
        ValueError: for a level that is none, and if there is no goal.
    """
    goals = [*(Goal("recall", level) for level in recall), *(Goal("precision", level) for level in precision)]
    if not goals:
        raise ValueError("expected a recall or a precision to promise, got none: name one as in --recall .95")
    return list(dict.fromkeys(goals))


@dataclass(frozen=True)
class _Choice:
    """A threshold for a goal and structure, chosen from the cases of some folds.

    Attributes:
        position: index into THRESHOLDS; None if no threshold keeps the promise.
        cases: number of cases it was chosen from.
    """

    position: int | None
    cases: int

    @property
    def threshold(self) -> float:
        """The threshold itself; NaN if there is none."""
        return float("nan") if self.position is None else float(THRESHOLDS[self.position])


class _Found(NamedTuple):
    """Recall or precision of one case's mask, and its size relative to the structure."""

    kept: float
    relative_size: float


_ALL = "all folds"
_Key = tuple[Goal, int, Any]  # goal, head, and the judged cases: _ALL, or a fold with the threshold of the others


def thresholds(cases: Sequence[MeasuredCase], heads: Heads, goals: Sequence[Goal]) -> list[dict[str, Any]]:
    """Choose a threshold for each goal and structure, and measure how well it keeps its promise.

    The files of the cases are read twice. Only sums, and a few numbers per case, stay in memory.

    Args:
        cases: cases of one model, or of its folds.
        heads: heads of the network; the background gets no threshold.
        goals: the promises to keep.

    Returns:
        A row for each goal, as in thresholds.json: for each structure its threshold and the recall or precision found
        with it; for several folds, also those of each fold with the threshold of the others. NaN for unknown values.
    """
    structures = {key: head for head, key in enumerate(heads.keys) if head != heads.background}
    folds = list(dict.fromkeys(case.fold for case in cases))
    choices = _choices(cases, goals, structures.values(), folds)
    found = _found(cases, choices)

    def judged(goal: Goal, head: int, whose: Any) -> dict[str, Any]:
        choice, values = choices[goal, head, whose], found[goal, head, whose]
        return {
            "threshold": choice.threshold,
            "cases": choice.cases,
            "found": _mean([value.kept for value in values]),
            "relative_size": _mean([value.relative_size for value in values]),
        }

    rows = []
    for goal in goals:
        row: dict[str, Any] = {"of": goal.of, "level": goal.level}
        row["structures"] = {key: judged(goal, head, _ALL) for key, head in structures.items()}
        if len(folds) > 1:
            row["per_fold"] = [
                {"fold": fold, "structures": {key: judged(goal, head, fold) for key, head in structures.items()}}
                for fold in folds
            ]
            row["by_other_folds"] = {
                key: _mean([value.kept for fold in folds for value in found[goal, head, fold]])
                for key, head in structures.items()
            }
        rows.append(row)
    return rows


def _choices(
    cases: Sequence[MeasuredCase], goals: Sequence[Goal], heads: Iterable[int], folds: Sequence[Any]
) -> dict[_Key, _Choice]:
    """Choose thresholds from all cases and, given several folds, for each fold from the other ones."""
    totals: dict[tuple[Goal, Any], NDArray[np.float64]] = {}
    numbers: dict[tuple[Goal, Any], NDArray[np.int64]] = {}
    for case, statistics in read_each(cases, "choosing thresholds"):
        histograms = statistics.histograms.scope("image")
        for goal in goals:
            losses, key = goal.losses(histograms), (goal, case.fold)
            totals[key] = totals.get(key, 0) + np.nan_to_num(losses)
            numbers[key] = numbers.get(key, 0) + ~np.isnan(losses[:, 0])
    chosen_from = {_ALL: folds}
    if len(folds) > 1:
        chosen_from |= {fold: [other for other in folds if other != fold] for fold in folds}
    choices = {}
    for goal in goals:
        for whose, others in chosen_from.items():
            total = np.sum([totals[goal, fold] for fold in others], axis=0)
            number = np.sum([numbers[goal, fold] for fold in others], axis=0)
            for head in heads:
                count = int(number[head])
                choices[goal, head, whose] = _Choice(goal.position(total[head], count), count)
    return choices


def _found(cases: Sequence[MeasuredCase], choices: Mapping[_Key, _Choice]) -> dict[_Key, list[_Found]]:
    """Measure each case with the threshold of all cases, and with that of the other folds."""
    found: dict[_Key, list[_Found]] = {key: [] for key in choices}
    goals = {goal for goal, *_ in choices}
    for case, statistics in read_each(cases, "judging thresholds"):
        histograms = statistics.histograms.scope("image")
        sizes, losses = relative_sizes(histograms), {goal: goal.losses(histograms) for goal in goals}
        for (goal, head, whose), choice in choices.items():
            if whose in (_ALL, case.fold) and choice.position is not None:
                at = head, choice.position
                found[goal, head, whose].append(_Found(1 - float(losses[goal][at]), float(sizes[at])))
    return found


def _mean(values: Sequence[float]) -> dict[str, Any]:
    return {"mean": mean_of_known(values), "interval": [*mean_interval(values)]}


def too_few_note(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each goal for which a structure has too few cases."""
    notes = []
    for row in rows:
        fewest = fewest_cases(1 - row["level"])
        few = [key for key, values in row["structures"].items() if values["cases"] < fewest]
        if few:
            notes.append(
                f"A {row['of']} of {row['level']:g} can be promised from {fewest} cases on; structure "
                f"{', '.join(few)} has fewer."
            )
    return notes


def threshold_content(
    cases: Sequence[MeasuredCase],
    heads: Heads,
    goals: Sequence[Goal],
    model: Mapping[str, Any],
    folds: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Return the content of thresholds.json, with NaN where the file has null.

    Args:
        cases: cases that the thresholds are chosen from.
        heads: heads of the network.
        goals: the promises to keep, from `goals_of`.
        model: identity of the model.
        folds: folds of a cross-validation; None for a hold-out set that the deployed predictor predicted.
    """
    rows = thresholds(cases, heads, goals)
    return {
        "format_version": FORMAT_VERSION,
        "nnunet_calib": nnunet_calib.__version__,
        "model": dict(model),
        "heads": asdict(heads),
        "folds": None if folds is None else list(folds),
        "cases": [case.name for case in cases],
        "promise": HOLD_OUT_PROMISE if folds is None else FOLDS_PROMISE,
        "definitions": DEFINITIONS,
        "levels": rows,
        "notes": too_few_note(rows),
    }

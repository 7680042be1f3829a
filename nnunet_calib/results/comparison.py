"""Comparison of models, paired over the cases they share.

Each metric has the means, the differences from the first model, and their uncertainty.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import nnunet_calib
from nnunet_calib.measuring.scopes import SCOPES
from nnunet_calib.metrics.catalogue import BY_CHANCE, BY_NAME, CASE_ERRORS, DEFINITIONS, HEAD_ERRORS, RANKINGS, SCORES
from nnunet_calib.metrics.errors import NUM_BINS
from nnunet_calib.metrics.log_odds import EDGES
from nnunet_calib.metrics.pooled_errors import RESAMPLES as POOLED_RESAMPLES
from nnunet_calib.metrics.pooled_errors import PooledCases
from nnunet_calib.metrics.significance import (
    LEAST_FOLDS,
    LEVEL,
    RESAMPLES,
    holm,
    paired_difference,
    percentile_interval,
    pooled_interval,
    resampled_means,
    resampling_counts,
    training_difference,
)
from nnunet_calib.posthoc import KINDS
from nnunet_calib.posthoc.calibrator import Calibrator
from nnunet_calib.posthoc.temperature import Temperature
from nnunet_calib.results.compared_models import ComparedModel, JudgedCase, calibrator_values, read_models
from nnunet_calib.results.error_tree import case_error, mean_of_known, scope_definitions
from nnunet_calib.results.fold_summary import dice_note
from nnunet_calib.results.judged_cases import as_json
from nnunet_calib.results.layout import FINAL, ModelFolder
from nnunet_calib.results.measured_folds import versions_note
from nnunet_calib.results.schemas import CALIBRATED, STAGES, UNCALIBRATED, Tree, untrained_note
from nnunet_calib.results.uncertainty import pooled_tree

FORMAT_VERSION = 1
_EVERY_STAGE = "both"


class Quantity(NamedTuple):
    """A compared metric, of the foreground classes, of the top label or of all classes, in a scope."""

    metric: str
    of: str | None
    scope: str

    def value(self, case: JudgedCase, stage: str) -> float:
        """Return the value of one case; NaN where the case has none."""
        if self.metric == "dice":
            return case.dice
        return self._of_case(case, stage, self.metric)

    def by_chance(self, cases: Sequence[JudgedCase], stage: str) -> float | None:
        """Return the mean over cases of the error by chance; None for a metric without one."""
        name = BY_CHANCE.get(self.metric)
        return None if name is None else mean_of_known(self._of_case(case, stage, name) for case in cases)

    def _of_case(self, case: JudgedCase, stage: str, metric: str) -> float:
        return case_error(case.errors[stage][self.scope], metric, self.of)

    @property
    def is_higher_better(self) -> bool:
        """Whether a larger value is better."""
        return self.metric == "dice" or BY_NAME[self.metric].higher_is_better

    def pooled(self, tree: Tree) -> Any:
        """Return the quantity's values from a tree of pooled errors."""
        return (tree[self.scope][self.of] if self.of else tree[self.scope])[self.metric]


# In the scope of the foreground, the errors of a class say little: the background's frequency there is 0.
QUANTITIES = (
    Quantity("dice", "foreground_mean", "image"),
    *(Quantity(metric, "foreground_mean", "image") for metric in HEAD_ERRORS),
    *(Quantity(metric, "top_label", scope) for scope in ("image", "foreground") for metric in HEAD_ERRORS),
    *(Quantity(metric, None, scope) for scope in ("image", "foreground") for metric in SCORES),
    *(Quantity(metric, None, scope) for scope in ("image", "boundary") for metric in RANKINGS),
)

_DEFINITIONS = {name: DEFINITIONS[name] for name in (*CASE_ERRORS, *SCORES, *RANKINGS, "per_class", "top_label")} | {
    "dice": "nnU-Net's own, from fold_X/validation/summary.json; no temperature changes it",
    "bins": NUM_BINS,
    "min_count": 1,
    "foreground_mean": "of each case the mean over the foreground classes that have a value in it",
    "mean": "over the shared cases in which the model has a value",
    "interval": f"[low, high], {LEVEL:.0%} bootstrap interval over cases ({RESAMPLES} resamples, widened for few "
    "cases; null for fewer than two) at the given networks and temperatures",
    "pooled": "over the voxels of all shared cases together, with a bootstrap interval over cases "
    f"({POOLED_RESAMPLES} resamples, shifted by their bias); pooled_difference: model - first model; null for Dice, "
    "AURC and AUROC",
    "difference": "model - first model, mean over the pairs: the shared cases in which both have a value",
    "by_chance": "of ece and ace the mean over the cases of what chance alone leaves a perfectly calibrated model",
    "p": "two-sided Wilcoxon signed-rank test of the differences of the pairs",
    "p_holm": "p corrected by Holm for the comparisons of all other models with the first one, for each metric, scope "
    "and stage by itself",
    "difference_training_interval": f"[low, high], {LEVEL:.0%} interval of the difference over trainings, around the "
    "mean of the folds' differences: corrected resampled t-test over the folds (Nadeau and Bengio, 2003); null for "
    f"fewer than {LEAST_FOLDS} folds",
    "p_training": "two-sided p of the same test",
    "p_training_holm": "p_training corrected by Holm, as p_holm",
    "test_to_train": "validated cases of a fold divided by its training cases, mean over the folds; for a fold "
    "without a recorded split, the training cases are those of the other folds",
    UNCALIBRATED: "T = 1",
    "log_odds": "log(p / (1 - p)) of each class at T = 1, on the kept voxels of the shared cases: for each model the "
    "share, by bin, of the voxels outside and of those inside the class; values beyond the edges lie in the outermost "
    "bins; null without a voxel",
}
_CALIBRATED = "each case with the {} of {} of its own model, on the kept voxels of the case"
_DICE_AFTER = "nnU-Net's own, before calibration; estimated_dice: before and after it, from the kept voxels"


def trainings_note(folds: int) -> str:
    """Return the note on what intervals and p say about new cases and new trainings, given the number of folds."""
    models = "p is corrected for the number of models, not for the number of metrics."
    if folds < LEAST_FOLDS:
        named = "this fold" if folds == 1 else f"these {folds} folds"
        return (
            f"Chance between trainings cannot be told from {named}: intervals and p tell of other cases at the given "
            f"networks, and another seed moves the numbers too. {models}"
        )
    return (
        f"Intervals and p tell of other cases at the given networks. Those over trainings come from the {folds} folds "
        f"(corrected resampled t-test): a difference is one of the methods only if both agree. {models}"
    )


def compare_models(
    model_folders: Sequence[ModelFolder],
    folds: Sequence[int | str],
    *,
    allow_missing: bool = False,
    kind: str = Temperature.kind,
) -> dict[str, Any]:
    """Compare models of one dataset with the first of them.

    Args:
        model_folders: at least two of nnU-Net's folders of models, with the folders `fold_X`.
        folds: numbers of the folds. With two or more, each case is judged with the calibrator of the other folds of
            its model; with one, with a calibrator fitted on other cases of the fold.
        allow_missing: compare the cases that all models have and name the others, instead of refusing.
        kind: kind of the calibrators, from `posthoc.KINDS`.

    Returns:
        The content of comparison.json, with NaN where the file has null.

    Raises:
        ValueError: in one sentence, as for `read_models`, and if the models share no case.
    """
    models = read_models(model_folders, folds, allow_missing=allow_missing, kind=kind)
    cases = sorted(set.intersection(*({*model.cases} for model in models)))
    if not cases:
        raise ValueError(
            f"expected cases that all models have, found none for {' and '.join(m.name for m in models)}: name folds "
            f"with the same cases"
        )
    left_out = [
        {"case": case, "missing_in": lacking}
        for case in sorted(frozenset().union(*(m.expected for m in models)))
        if (lacking := [model.name for model in models if case not in model.cases])
    ]
    numbers = sorted(map(int, folds))
    counts = resampling_counts(len(cases))
    pooled: dict[str, list[_Pooled]] = {stage: _pooled(models, cases, stage) for stage in STAGES}
    ratio = _test_to_train(models, numbers)
    results = [
        _compared(quantity, stage, models, cases, counts, pooled.get(stage), ratio)
        for quantity in QUANTITIES
        for stage in ((_EVERY_STAGE,) if quantity.metric == "dice" else STAGES)
    ]
    calibrator = KINDS[kind].calibrator
    others = "the other folds" if len(numbers) > 1 else "other cases of the same fold (cross-fitting in five groups)"
    return {
        "format_version": FORMAT_VERSION,
        "nnunet_calib": nnunet_calib.__version__,
        **({} if kind == Temperature.kind else {"kind": kind}),
        "dataset": models[0].model["dataset"],
        "folds": numbers,
        "test_to_train": ratio,
        "first_model": models[0].name,
        "models": [{"name": model.name, **model.model, **calibrator_values(model, cases)} for model in models],
        "cases": cases,
        "left_out": left_out,
        "definitions": _DEFINITIONS
        | {"scopes": scope_definitions(models[0].boundary_mm), CALIBRATED: _CALIBRATED.format(calibrator.noun, others)}
        | ({} if calibrator.keeps_segmentation else {"dice": _DICE_AFTER}),
        "notes": _notes(models, cases, numbers, results, calibrator),
        "results": results,
        "log_odds": _log_odds(models, cases),
        "metric_per_case": [
            {
                "case": case,
                "model": model.name,
                "fold": (of := model.cases[case]).fold,
                "voxels": of.voxels,
                **as_json(of.calibrator),
                "dice": of.dice,
                **({} if of.estimated_dice is None else {"estimated_dice": of.estimated_dice}),
                **of.errors,
            }
            for case in cases
            for model in models
        ],
    }


def _log_odds(models: Sequence[ComparedModel], cases: Sequence[str]) -> dict[str, Any]:
    """Return histograms of the log-odds by class and model, over the kept voxels of all cases."""
    heads = models[0].heads
    pooled = {model.name: np.sum([model.cases[case].log_odds for case in cases], axis=0) for model in models}
    return {
        "edges": EDGES.tolist(),
        "names": heads.names_by_key,
        "per_class": {
            key: {
                name: {side: _shares(counts[row, of]) for of, side in enumerate(("outside", "inside"))}
                for name, counts in pooled.items()
            }
            for row, key in enumerate(heads.keys)
        },
    }


def _shares(counts: NDArray[np.float64]) -> list[float] | None:
    """Return counts as shares of their sum, to five digits; None if that is 0."""
    total = counts.sum()
    return [float(f"{count / total:.5g}") for count in counts] if total else None


class _Pooled(NamedTuple):
    """Trees of a model's pooled errors, of its cases and of resamples of them."""

    values: Tree
    resampled: Tree
    cases: Mapping[str, int]


def _pooled(models: Sequence[ComparedModel], cases: Sequence[str], stage: str) -> list[_Pooled]:
    found = []
    for model in models:
        pool = PooledCases([model.cases[case].sums[stage] for case in cases])
        values, resampled = (pooled_tree(errors, model.heads) for errors in (pool.errors(), pool.resampled()))
        found.append(_Pooled(values, resampled, {scope: pool.cases(scope) for scope in SCOPES}))
    return found


def _pooled_row(quantity: Quantity, pooled: Sequence[_Pooled] | None, number: int) -> dict[str, Any]:
    """Return the pooled error of a model and its difference from the first model's, with their intervals."""
    names = ("pooled", "pooled_interval", "pooled_difference", "pooled_difference_interval")
    if pooled is None or quantity.metric in RANKINGS:
        return dict.fromkeys(names)
    both = (pooled[number], pooled[0])
    values, resampled = ([quantity.pooled(getattr(p, name)) for p in both] for name in ("values", "resampled"))
    cases = min(p.cases[quantity.scope] for p in both)
    value, difference = float(values[0][0]), float(values[0][0] - values[1][0])
    interval = [*pooled_interval(resampled[0], value, cases)]
    if not number:
        return dict(zip(names, (value, interval, None, None), strict=True))
    limits = [*pooled_interval(resampled[0] - resampled[1], difference, cases, lowest=-math.inf)]
    return dict(zip(names, (value, interval, difference, limits), strict=True))


def _compared(
    quantity: Quantity,
    stage: str,
    models: Sequence[ComparedModel],
    cases: Sequence[str],
    counts: NDArray[np.float64],
    pooled: Sequence[_Pooled] | None,
    test_to_train: float,
) -> dict[str, Any]:
    """Return one metric of all models, whose p-values are corrected together."""
    values = [np.array([quantity.value(m.cases[case], stage) for case in cases]) for m in models]
    differences = [paired_difference(v, values[0], counts) for v in values[1:]]
    corrected = [None, *map(float, holm([d.p for d in differences]))]
    folds = np.array([models[0].cases[case].fold for case in cases])
    trainings = _training_rows([_means_of_folds(v - values[0], folds) for v in values[1:]], test_to_train)
    rows = []
    for number, (model, v, d, p_holm) in enumerate(zip(models, values, [None, *differences], corrected, strict=True)):
        known = v[~np.isnan(v)]
        rows.append(
            {
                "model": model.name,
                "cases": known.size,
                "mean": float(known.mean()) if known.size else float("nan"),
                "interval": [*percentile_interval(resampled_means(v, counts), known.size)],
                "pairs": d and d.pairs,
                "difference": d and d.mean,
                "difference_interval": d and [d.low, d.high],
                "p": d and d.p,
                "p_holm": p_holm,
                **trainings[number],
                "by_chance": quantity.by_chance([model.cases[case] for case in cases], stage),
                **_pooled_row(quantity, pooled, number),
            }
        )
    return {
        **quantity._asdict(),
        "stage": stage,
        "better": "higher" if quantity.is_higher_better else "lower",
        "models": rows,
    }


def _training_rows(differences: Sequence[Sequence[float]], test_to_train: float) -> list[dict[str, Any]]:
    """Return each model's entries over trainings, given the differences of each fold for all models but the first."""
    found = [training_difference(of_folds, test_to_train) for of_folds in differences]
    corrected = holm([t.p for t in found])
    names = ("folds", "difference_training_interval", "p_training", "p_training_holm")
    rows = ((t.folds, [t.low, t.high], t.p, float(p)) for t, p in zip(found, corrected, strict=True))
    return [dict.fromkeys(names), *(dict(zip(names, row, strict=True)) for row in rows)]


def _means_of_folds(differences: NDArray[np.float64], folds: NDArray[np.int64]) -> list[float]:
    """Return the mean difference in each fold; NaN for a fold without a pair."""
    return [mean_of_known(differences[folds == fold]) for fold in np.unique(folds)]


def _test_to_train(models: Sequence[ComparedModel], folds: Sequence[int]) -> float:
    """Return the ratio of validation to training cases of a fold; NaN for a single fold without a recorded split."""
    ratios = []
    for fold in folds:
        for model in models:
            tested = sum(case.fold == fold for case in model.cases.values())
            if trained := model.trained_on.get(fold, len(model.cases) - tested):
                ratios.append(tested / trained)
    return mean_of_known(ratios)


def _differences(models: Sequence[ComparedModel]) -> Iterator[str]:
    """Yield a note for each difference in training, checkpoint or version between the models."""
    first = models[0]
    for model in models:
        if note := untrained_note(model.model, model.name):
            yield note
        if (file := model.model["checkpoint"]) != FINAL:
            yield (
                f"The calibration of {model.name} is that of {file or 'an unknown checkpoint'}; its Dice is that of "
                f"nnU-Net's last validation, whichever checkpoint that was of."
            )
        ours, theirs = (m.model["split_sha256"] for m in (model, first))
        if folds := [fold for fold in ours if None not in (ours[fold], theirs[fold]) and ours[fold] != theirs[fold]]:
            yield (
                f"{model.name} was not trained on the same cases as {first.name} in fold{'s' * (len(folds) > 1)} "
                f"{', '.join(folds)}."
            )
    versions = {
        f"fold {fold} of {model.name}": version
        for model in models
        for fold, version in model.model["measured_with"].items()
    }
    if note := versions_note(versions):
        yield note


def _notes(
    models: Sequence[ComparedModel],
    cases: Sequence[str],
    folds: Sequence[int],
    results: Sequence[dict[str, Any]],
    calibrator: type[Calibrator],
) -> list[str]:
    """Return the caveats for a reader of the numbers."""
    notes = []
    if len(folds) == 1:
        notes.append(
            f"One fold: each case is judged by {calibrator.indefinite} fitted on other cases of the same fold "
            "(cross-fitting), since there are no other folds."
        )
    tests, smallest = len(models) - 1, 2.0 ** (1 - len(cases))
    if tests * smallest >= 1 - LEVEL:
        notes.append(
            f"With {len(cases)} cases and {tests} other model{'s' * (tests > 1)}, no corrected p can be below "
            f"{min(tests * smallest, 1):.3g}, however large the difference."
        )
    for model in models:
        if model.without_dice:
            named = ", ".join(f"fold_{fold}/validation/summary.json" for fold in model.without_dice)
            notes.append(f"No Dice of {model.name} from {named}, which nnU-Net writes at the end of its validation.")
        if any((c := model.cases[case].calibrator) and c.at_bound for case in cases):
            notes.append(f"A temperature of {model.name} lies on the bound of the search: do not use it.")
        if dice := calibrator_values(model, cases).get("estimated_dice"):
            notes.append(f"{model.name}: {dice_note(dice)}")
    notes += _differences(models)
    fewer = {group["metric"]: None for group in results for row in group["models"] if row["cases"] < len(cases)}
    if fewer:
        notes.append(f"Not every case has a value of {', '.join(fewer)}: `cases` and `pairs` say how many have.")
    notes.append(trainings_note(len(folds)))
    return notes

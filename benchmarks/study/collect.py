"""Collect the results of a study folder in a few small files: `results/STUDY` beside this module.

Results may come from several folders, one after the other: a folder adds its runs, and replaces a comparison only by
one of at least the same methods and folds.

`runs/*.json` are copies of the runs' facts. `methods.json` compares the methods on the folds in which all of them have
learned foreground, and `sweep.json` everything on the fold of the sweep, both with `nnunet_calib compare`; `cases.csv`
has the numbers of the cases behind the first one, and `reliability.json` its reliability curves and where its NLL lies.
`calibrators.csv` has the cases of that fold before and after each kind of calibrator, each case with one that was
fitted to other cases of the fold. Two figures of single cases, which need the measured cases themselves, are those of
`nnunet_calib crossval`.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.study import settings
from benchmarks.study.run import Study, run_name
from benchmarks.study.tables import FEW
from nnunet_calib.figures.fold_figures import draw_fold
from nnunet_calib.io.atomic_files import replaced_when_complete
from nnunet_calib.measuring.case_statistics import CaseStatistics
from nnunet_calib.measuring.scopes import scope_members
from nnunet_calib.metrics.catalogue import HEAD_ERRORS, RANKINGS, SCORES
from nnunet_calib.metrics.errors import reliability_curve
from nnunet_calib.nnunet.raw_images import raw_images
from nnunet_calib.posthoc import KINDS
from nnunet_calib.posthoc.temperature import Temperature
from nnunet_calib.results.comparison import compare_models
from nnunet_calib.results.crossval import merge_folds
from nnunet_calib.results.error_tree import case_error
from nnunet_calib.results.layout import case_file
from nnunet_calib.results.schemas import STAGES

BASELINE = "Calib"
PICTURED = (BASELINE, "ML1ACE")  # the methods whose cases are shown
DIGITS = 6


def finished(runs: Path) -> dict[str, set[int]]:
    """Return the folds of which each method has the facts of a finished run."""
    study = settings.chosen()
    found = {name: {k for k in study.folds if (runs / f"{run_name(name, k)}.json").is_file()} for name in study.runs}
    return {name: folds for name, folds in found.items() if folds}


def learned(runs: Path, done: dict[str, set[int]]) -> dict[str, set[int]]:
    """Return the finished runs whose network finds foreground; without it, calibration means little."""

    def dice(name: str, fold: int) -> float:
        facts = json.loads((runs / f"{run_name(name, fold)}.json").read_text(encoding="utf-8"))
        return facts["dice"]["foreground_mean"]

    return {name: {k for k in folds if dice(name, k) >= settings.LEARNED} for name, folds in done.items()}


def comparable(done: dict[str, set[int]]) -> tuple[list[str], list[int]]:
    """Return the methods with at least two folds and their common folds; nothing without the baseline."""
    methods = [name for name in settings.chosen().methods if len(done.get(name, ())) > 1]
    if BASELINE not in methods or len(methods) < 2:
        return [], []
    folds = sorted(set.intersection(*(done[name] for name in methods)))
    return (methods, folds) if len(folds) > 1 else ([], [])


def swept(done: dict[str, set[int]]) -> list[str]:
    """Return the runs of the sweep's fold, the baseline first; nothing without it."""
    study = settings.chosen()
    names = [name for name in study.runs if study.sweep_fold in done.get(name, ())]
    return names if BASELINE in names and len(names) > 1 else []


def covers(methods: Sequence[str], folds: Sequence[int], path: Path) -> bool:
    """Return whether a comparison of these methods and folds has all that the one in a file has."""
    if not path.is_file():
        return True
    known = json.loads(path.read_text(encoding="utf-8"))
    return {*methods} >= {model["name"] for model in known["models"]} and {*folds} >= {*known["folds"]}


def compare(study: Study, methods: Sequence[str], folds: Sequence[int], kind: str = Temperature.kind) -> dict[str, Any]:
    """Return the comparison of `nnunet_calib compare`, with the study's names of the methods."""
    models = [study.model_folder(method) for method in methods]
    found = json.dumps(compare_models(models, folds, kind=kind)).replace(settings.PREFIX, "")
    return json.loads(found)


def calibrator_rows(comparisons: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a flat row for each model and case: errors of the image before and after each kind of calibrator.

    Args:
        comparisons: kind -> comparison of the same models and cases after calibrators of this kind.
    """
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for kind, comparison in comparisons.items():
        for case in comparison["metric_per_case"]:
            row = rows.setdefault(
                (case["model"], case["case"]), {name: case[name] for name in ("model", "case", "dice")}
            )
            if "estimated_dice" in case:
                row[f"dice_{kind}"] = case["estimated_dice"]["after"]
            for stage, name in zip(STAGES, ("before", kind), strict=True):
                row |= {f"{m}_{name}": case_error(case[stage]["image"], m) for m in (*HEAD_ERRORS, "nll")}
    return [*map(rounded, rows.values())]


def case_rows(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a flat row for each model and case: errors of the image, means over the foreground classes."""
    rows = []
    for case in comparison["metric_per_case"]:
        row = {name: case[name] for name in ("model", "case", "fold", "temperature", "dice")}
        for stage in STAGES:
            errors = case[stage]["image"]
            row |= {f"{metric}_{stage}": case_error(errors, metric) for metric in (*HEAD_ERRORS, *SCORES, *RANKINGS)}
        rows.append(rounded(row))
    return rows


def rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with numbers of as many digits as the files keep."""
    return {name: round(value, DIGITS) if isinstance(value, float) else value for name, value in row.items()}


def foreground_bins(statistics: CaseStatistics) -> tuple[NDArray[Any], ...]:
    """Return counts, mean probability and frequency (C, M) of the bins of the foreground classes or regions."""
    curve = reliability_curve(statistics)
    # before them the background, which regions have not; after them the top label
    heads = slice(0 if statistics.regions else 1, -1)
    return tuple(x[heads] for x in (curve.counts, curve.confidence, curve.frequency))


def curves(study: Study, comparison: dict[str, Any]) -> dict[str, Any]:
    """Return method -> stage -> reliability curve of all foreground classes, over the voxels of all cases.

    "nll" and "voxels" hold the sums of NLL and the voxels near label borders (the boundary scope) and away from them.
    "of_bins" tells how many voxels a single case has in a bin between the first and the last: the median over the bins
    that have one, and the share of these with at most `FEW`.
    """
    found: dict[str, dict[str, Any]] = {}
    near = [*scope_members("boundary")]
    away = [bits for bits in scope_members("image") if bits not in near]
    for model in comparison["models"]:
        cases = [row for row in comparison["metric_per_case"] if row["model"] == model["name"]]
        bins = dict.fromkeys(STAGES, np.zeros((3, 0)))
        parts = dict.fromkeys(STAGES, np.zeros((2, 2)))
        filled: dict[str, list[Any]] = {stage: [] for stage in STAGES}
        for row in cases:
            folder = study.model_folder(row["model"]).calibration(row["fold"])
            case = CaseStatistics.load(case_file(folder, row["case"]))
            for stage, statistics in zip(STAGES, (case, case.with_temperature(row["temperature"])), strict=True):
                counts, *means = foreground_bins(statistics)
                sums = np.array([counts.sum(0), *(np.nansum(counts * mean, 0) for mean in means)])
                filled[stage] += counts[:, 1:-1][counts[:, 1:-1] > 0].tolist()
                bins[stage] = sums + bins[stage] if bins[stage].size else sums
                of_scopes = statistics.histograms
                parts[stage] = parts[stage] + [
                    [values[bits].sum() for bits in (near, away)] for values in (of_scopes.nll, of_scopes.voxels)
                ]
        found[model["name"]] = {
            stage: {"counts": n.tolist(), "probability": [*map(float, p)], "positives": [*map(float, y)]}
            | dict(zip(("nll", "voxels"), parts[stage].tolist(), strict=True))
            | {"of_bins": [float(np.median(filled[stage])), float(np.mean(np.array(filled[stage]) <= FEW))]}
            for stage, (n, p, y) in bins.items()
        }
    return found


def pictures(study: Study, folds: Sequence[int], images: Path, prefix: str) -> None:
    """Write the dataset reliability histograms and the worst cases of some methods as PNG."""
    for method in PICTURED:
        model = study.model_folder(method)
        folder = merge_folds(model, folds)
        draw_fold(folder, raw_images(model.path))
        for name in ("dataset_reliability_histogram", "worst_cases"):
            shutil.copyfile(folder / f"{name}.png", images / f"{prefix}_{method}_{name}.png")


def write_compact(content: Any, path: Path) -> None:
    """Write JSON with a line for each entry of a list of objects, and six significant digits."""

    def shortened(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shortened(v) for key, v in value.items()}
        if isinstance(value, list | tuple):
            return [shortened(v) for v in value]
        if isinstance(value, float):
            return float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None
        return value

    with replaced_when_complete(path) as temporary:
        text = json.dumps(shortened(content), allow_nan=False).replace("}, {", "},\n{")
        temporary.write_text(text + "\n", encoding="utf-8")


def write_rows(rows: Iterable[dict[str, Any]], path: Path) -> None:
    """Write a CSV file."""
    rows = list(rows)
    with replaced_when_complete(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def collect(folder: Path, results: Path, images: Path) -> None:
    """Write the results of a study's finished runs to `results`, and pictures of their cases to `images`."""
    study = Study(folder)
    (results / "runs").mkdir(parents=True, exist_ok=True)
    done = finished(study.runs)
    for name in (f"{run_name(method, fold)}.json" for method, folds in done.items() for fold in folds):
        shutil.copyfile(study.runs / name, results / "runs" / name)
    known = {f"{run_name(method, fold)}.json" for method, fold in settings.chosen().queue()}
    for path in (results / "runs").glob("*.json"):
        if path.name not in known:  # its method has got another name
            path.unlink()
    methods, folds = comparable(learned(study.runs, done))
    if methods and covers(methods, folds, results / "methods.json"):
        comparison = compare(study, methods, folds)
        write_rows(case_rows(comparison), results / "cases.csv")
        write_compact(curves(study, comparison), results / "reliability.json")
        write_compact({k: v for k, v in comparison.items() if k != "metric_per_case"}, results / "methods.json")
        if settings.chosen().images_shown and set(PICTURED) <= set(methods):
            pictures(study, folds, images, f"study_{settings.chosen().name}")
    names = swept(done)
    if names and covers(names, [settings.chosen().sweep_fold], results / "sweep.json"):
        comparison = compare(study, names, [settings.chosen().sweep_fold])
        write_compact({k: v for k, v in comparison.items() if k != "metric_per_case"}, results / "sweep.json")
        if settings.chosen().calibrators:
            names = [name for name in names if name in settings.chosen().methods]
            others = [kind for kind in KINDS if kind != Temperature.kind]
            after = {kind: compare(study, names, comparison["folds"], kind) for kind in others}
            rows = calibrator_rows({Temperature.kind: comparison, **after})
            write_rows((row for row in rows if row["model"] in names), results / "calibrators.csv")

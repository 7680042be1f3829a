"""Make the tables and figures of docs/results-STUDY.md.

    python -m benchmarks.study.report lidc            # from results/lidc beside this file
    python -m benchmarks.study.report lidc FOLDER     # brings the study in FOLDER into results/lidc first

Tables replace what stands between the markers of the document, `<!-- study: NAME -->` and `<!-- end -->`; the rest of
it is written by hand. Figures go to docs/images/.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
from pathlib import Path
from typing import Any

from benchmarks.study import raters, settings
from benchmarks.study.facts import REPOSITORY
from benchmarks.study.tables import (
    bins_table,
    calibrator_differences_table,
    calibrators_table,
    differences_table,
    folds_table,
    means_table,
    nll_table,
    sweep_differences_table,
    sweep_table,
    trainings_table,
)
from benchmarks.study.truth import agreement_table, truth_table
from nnunet_calib.io.atomic_files import replaced_when_complete
from nnunet_calib.metrics.significance import LEAST_FOLDS
from nnunet_calib.results.comparison import trainings_note
from nnunet_calib.results.schemas import STAGES

RESULTS = Path(__file__).with_name("results")
DOCUMENTS = REPOSITORY / "docs"
NNUNET_FOLDS = 5  # of its own splits, for results that do not hold how many cases were trained on


def tables(results: Path) -> dict[str, str]:
    """Return every table for which there are results, by the name of its marker."""
    found = {}
    if (methods := read(results / "methods.json")) is not None:
        folds = ", ".join(map(str, methods["folds"]))
        found["cases"] = f"{len(methods['cases'])} cases, folds {folds}."
        for stage in STAGES:
            found[f"means {stage}"] = means_table(methods, stage)
            found[f"differences {stage}"] = differences_table(methods, stage)
            found[f"trainings {stage}"] = trainings(methods, results / "cases.csv", stage)
    if (curves := read(results / "reliability.json")) is not None:
        found["nll"] = nll_table(curves)
        if all("of_bins" in of_stage for stages in curves.values() for of_stage in stages.values()):
            found["bins"] = bins_table(curves)
    if (sweep := read(results / "sweep.json")) is not None:
        found["sweep"], found["sweep differences"] = sweep_table(sweep), sweep_differences_table(sweep)
        found["sweep cases"] = f"{len(sweep['cases'])} cases of fold {sweep['folds'][0]}."
    if (file := results / "calibrators.csv").is_file():
        rows = read_rows(file)
        found["calibrators"] = calibrators_table(rows)
        found["calibrator differences"] = calibrator_differences_table(rows)
    if (told := read(results / "truth.json")) is not None:
        found["truth"], found["truth agreement"] = truth_table(told), agreement_table(told)
    runs = [read(path) for path in sorted((results / "runs").glob("*.json"))]
    found["not learned"] = not_learned(runs)
    if methods is not None:
        names = [model["name"] for model in methods["models"]]
        shown = sorted(
            (run for run in runs if run["run"]["method"] in names), key=lambda run: names.index(run["run"]["method"])
        )
        found["folds"] = folds_table(shown, methods["first_model"])
        if (file := results / "raters.csv").is_file():
            found |= raters.tables(read_rows(file), read(results / "raters.json"), test_to_train(methods))
    return found


def trainings(methods: dict[str, Any], cases: Path, stage: str) -> str:
    """Return the table of differences over trainings, or why there is none."""
    if len(methods["folds"]) < LEAST_FOLDS:
        return trainings_note(len(methods["folds"]))
    return trainings_table(methods, read_rows(cases), stage, test_to_train(methods))


def test_to_train(methods: dict[str, Any]) -> float:
    """Return the validated cases of a fold for each case that it trains on."""
    return methods.get("test_to_train") or 1 / (NNUNET_FOLDS - 1)


def not_learned(runs: list[dict[str, Any]]) -> str:
    """Return a sentence on the runs whose network finds no foreground."""
    lost = [
        f"{run['run']['method']} in fold {run['run']['fold']} (Dice {run['dice']['foreground_mean']:.3f})"
        for run in runs
        if run["dice"]["foreground_mean"] < settings.LEARNED
    ]
    return f"Learned no foreground, and is in no comparison of methods: {', '.join(lost) or 'none'}."


def read(path: Path) -> Any:
    """Return the content of a JSON file, or None if there is no file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def filled(document: str, found: dict[str, str]) -> str:
    """Return the document with its tables; a marker without a new table keeps its content.

    Raises:
        ValueError: for a table without a marker.
    """
    for name, table in found.items():
        pattern = rf"(<!-- study: {re.escape(name)} -->\n).*?(<!-- end -->)"
        document, times = re.subn(pattern, lambda m, t=table: f"{m[1]}\n{t}\n\n{m[2]}", document, flags=re.DOTALL)
        if not times:
            raise ValueError(f"expected a marker <!-- study: {name} --> in the document, found none: add one")
    return document


def fill(document: Path, found: dict[str, str]) -> None:
    """Put the tables into the document."""
    text = filled(document.read_text(encoding="utf-8"), found)
    with replaced_when_complete(document) as temporary:
        temporary.write_text(text, encoding="utf-8")


def with_foreground(comparison: dict[str, Any]) -> dict[str, Any]:
    """Return a comparison without the models that learned no foreground, whose Dice would set the scale."""
    (dice,) = (group for group in comparison["results"] if group["metric"] == "dice")
    kept = {row["model"] for row in dice["models"] if row["mean"] >= settings.LEARNED}
    results = [
        group | {"models": [row for row in group["models"] if row["model"] in kept]} for group in comparison["results"]
    ]
    models = [model for model in comparison["models"] if model["name"] in kept]
    return comparison | {"models": models, "results": results}


def draw(results: Path, images: Path) -> None:
    """Draw every figure for which there are results."""
    from matplotlib import style

    from benchmarks.study.figures import families, reliability_figure, save, sweep_figure
    from nnunet_calib.figures.dice_against_ace import dice_against_ace_figure

    prefix = f"study_{settings.chosen().name}"
    methods, curves = read(results / "methods.json"), read(results / "reliability.json")
    with style.context("default"):
        if curves is not None:
            save(reliability_figure(curves, methods["folds"]), images / f"{prefix}_reliability.png")
        if methods is not None:
            save(dice_against_ace_figure(with_foreground(methods)), images / f"{prefix}_methods.png")
        if (sweep := read(results / "sweep.json")) is not None:
            compared = with_foreground(sweep)
            swept = settings.chosen().sweep and families([model["name"] for model in compared["models"]])
            draw_sweep = sweep_figure if swept else dice_against_ace_figure
            save(draw_sweep(compared), images / f"{prefix}_sweep.png")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study.report", description=__doc__.split("\n")[0])
    parser.add_argument("study", choices=settings.STUDIES, help="whose results, see settings.py")
    parser.add_argument("folder", type=Path, nargs="?", help="of the study, finished or not")
    parser.add_argument("--document", type=Path, help="Markdown with markers (default: docs/results-STUDY.md)")
    args = parser.parse_args()
    os.environ[settings.CHOSEN] = args.study
    document = args.document or DOCUMENTS / f"results-{args.study}.md"
    results, images = RESULTS / args.study, document.parent / "images"
    if args.folder:
        from benchmarks.study.collect import collect

        collect(args.folder, results, images)
    fill(document, tables(results))
    draw(results, images)


if __name__ == "__main__":
    main()

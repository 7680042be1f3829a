"""A comparison of models as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nnunet_calib.report.comparison_tables import comparison_about, comparison_notes, comparison_sections
from nnunet_calib.report.comparison_words import comparison_sentences
from nnunet_calib.figures.dice_against_ace import dice_against_ace_figure, points_of
from nnunet_calib.report.fold_words import facts
from nnunet_calib.report.page import cell, column, definitions, inline_figure, text_cell, write_page
from nnunet_calib.figures.drawn_results import case_error
from nnunet_calib.report.tables import missing

_STAGES = (("uncalibrated", "T = 1"), ("calibrated", "T"))


def write_comparison_page(comparison: dict[str, Any], output: Path, *, commands: Sequence[str] = ()) -> None:
    """Write the page of a comparison.

    Args:
        comparison: the content of comparison.json, with null or NaN where there is no value.
        output: the HTML file; it appears when it is complete.
        commands: which make the same results again.
    """
    figures = []
    if not all(missing(point.dice.mean) for point in points_of(comparison)):
        figures.append(inline_figure(
            lambda: dice_against_ace_figure(comparison), "Dice against ACE and MCE",
            "Right is a better segmentation, below are better probabilities. A temperature changes only the latter.",
        ))  # fmt: skip
    columns = [column("case", "name", is_number=False), column("fold", "whose network predicted the case")]
    for model in comparison["models"]:
        columns.append(column(f"Dice, {model['name']}", "mean over the foreground classes"))
        columns += [column(f"ACE, {model['name']}, {at}", f"ACE at {at}") for _, at in _STAGES]
    write_page("comparison.html.j2", output, {
        "title": f"Calibration on {comparison['dataset']}",
        "subtitle": comparison_about(comparison),
        "first_model": comparison["first_model"],
        "sentences": [*comparison_sentences(comparison)],
        "sections": [*comparison_sections(comparison)],
        "notes": comparison_notes(comparison),
        "figures": figures,
        "cases_note": "Dice and ACE are means over the foreground classes of the whole image. A click on a column "
        "sorts.",
        "columns": columns,
        "rows": [*_rows(comparison)],
        "definitions": [*definitions(comparison["definitions"])],
        "commands": commands,
        "facts": [*facts(comparison["nnunet_calib"], comparison["models"])],
    })  # fmt: skip


def _rows(comparison: dict[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """A row for each case, with the numbers of all models."""
    by_case: dict[str, dict[str, dict[str, Any]]] = {}
    for row in comparison["metric_per_case"]:
        by_case.setdefault(row["case"], {})[row["model"]] = row
    for case, of_models in by_case.items():
        cells = [text_cell(case), cell(next(iter(of_models.values()))["fold"], 0)]
        for model in comparison["models"]:
            row = of_models[model["name"]]
            cells.append(cell(float("nan") if row["dice"] is None else row["dice"], 3))
            cells += [cell(case_error(row, stage, "ace")) for stage, _ in _STAGES]
        yield cells

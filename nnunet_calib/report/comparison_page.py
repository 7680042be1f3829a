"""The comparison of models as a self-contained HTML file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from nnunet_calib.figures.dice_against_ace import dice_against_ace_figure, points_of
from nnunet_calib.figures.logit_distributions import CAPTION, TITLE, logit_distributions_figure
from nnunet_calib.io.wording import missing, number
from nnunet_calib.metrics.catalogue import LABELS
from nnunet_calib.posthoc import kind_of
from nnunet_calib.posthoc.temperature import Temperature
from nnunet_calib.report.comparison_tables import (
    comparison_about,
    comparison_csv,
    comparison_notes,
    comparison_sections,
)
from nnunet_calib.report.fold_words import facts
from nnunet_calib.report.page import (
    cell,
    column,
    csv_file,
    definitions,
    inline_figure,
    sortable_table,
    table_csv,
    text_cell,
    write_page,
)
from nnunet_calib.results.error_tree import case_error
from nnunet_calib.results.schemas import CALIBRATED, STAGES, UNCALIBRATED

SURE = 0.05  # corrected p below which a difference is reported as one
_AT = {"both": "", UNCALIBRATED: ", as trained", CALIBRATED: ", each model with its {}"}
_ASPECTS = {
    "dice": ("Segmentation", "Dice"),
    "ace": ("How far the probability of a class is off, over all bins alike", LABELS["ace"]),
    "nll": ("The probability given to the true class", LABELS["nll"]),
}


def write_comparison_page(comparison: dict[str, Any], output: Path, *, commands: Sequence[str] = ()) -> None:
    """Write the page of a comparison.

    Args:
        comparison: the content of comparison.json, with null or NaN for missing values.
        output: the HTML file, which is written atomically.
        commands: commands that reproduce the results.
    """
    calibrator = kind_of(comparison)
    effect = "A temperature changes only the latter." if calibrator is Temperature else calibrator.effect
    figures = []
    if not all(missing(point.dice.mean) for point in points_of(comparison)):
        figures.append(
            inline_figure(
                lambda: dice_against_ace_figure(comparison),
                "Dice against ACE and MCE",
                f"Right is a better segmentation, below are better probabilities. {effect}",
            )
        )
    figures.append(inline_figure(lambda: logit_distributions_figure(comparison), TITLE, CAPTION))
    columns = [column("case", "name", is_number=False), column("fold", "whose network predicted the case")]
    for model in comparison["models"]:
        columns.append(column(f"Dice, {model['name']}", "mean over the foreground classes"))
        columns += [column(f"ACE, {model['name']}, {at}", f"ACE at {at}") for at in ("T = 1", calibrator.short)]
    write_page(
        "comparison.html.j2",
        output,
        {
            "title": f"Calibration on {comparison['dataset']}",
            "subtitle": comparison_about(comparison),
            "first_model": comparison["first_model"],
            "sentences": [*comparison_sentences(comparison)],
            "sections": [*_sections(comparison)],
            "numbers_csv": csv_file("comparison.csv", comparison_csv(comparison)),
            "notes": comparison_notes(comparison),
            "figures": figures,
            "cases_note": "Dice and ACE are means over the foreground classes of the whole image. A click on a column "
            "sorts.",
            "cases": sortable_table("cases", columns, [*_rows(comparison)]),
            "definitions": [*definitions(comparison["definitions"])],
            "commands": commands,
            **facts(comparison["nnunet_calib"], comparison["models"]),
        },
    )


def _sections(comparison: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the tables of each section, each with its CSV file."""
    for section in comparison_sections(comparison):
        stem = section.title.lower().replace(",", "").replace(" ", "_")
        yield {
            "title": section.title,
            "tables": [
                {**table._asdict(), "csv": table_csv(f"{stem}_{number}.csv", table.header, table.rows)}
                for number, table in enumerate(section.tables, 1)
            ],
        }


def _rows(comparison: dict[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """Yield a row for each case, with the numbers of all models."""
    by_case: dict[str, dict[str, dict[str, Any]]] = {}
    for row in comparison["metric_per_case"]:
        by_case.setdefault(row["case"], {})[row["model"]] = row
    for case, of_models in by_case.items():
        cells = [text_cell(case), cell(next(iter(of_models.values()))["fold"], 0)]
        for model in comparison["models"]:
            row = of_models[model["name"]]
            cells.append(cell(float("nan") if row["dice"] is None else row["dice"], 3))
            cells += [cell(case_error(row[stage]["image"], "ace")) for stage in STAGES]
        yield cells


def comparison_sentences(comparison: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Yield the name of each model but the first, with sentences on Dice, ACE and NLL of the whole image.

    Args:
        comparison: the content of comparison.json, with null or NaN for missing values.
    """
    for model in comparison["models"]:
        if model["name"] != comparison["first_model"]:
            yield (
                model["name"],
                [
                    _sentence(group, row, kind_of(comparison).noun)
                    for metric in _ASPECTS
                    for group in comparison["results"]
                    if (group["metric"], group["scope"]) == (metric, "image")
                    and group["of"] in ("foreground_mean", None)
                    for row in group["models"]
                    if row["model"] == model["name"]
                ],
            )


def _sentence(group: dict[str, Any], row: dict[str, Any], noun: str) -> str:
    subject, name = _ASPECTS[group["metric"]]
    subject += _AT[group["stage"]].format(noun)
    difference, p = row["difference"], row["p_holm"]
    low, high = row["difference_interval"]
    if missing(difference) or missing(low) or missing(p):
        return f"{subject}: too few cases to compare the {name}."
    said = _said(p)
    if p >= SURE:
        limits = f"{number(low, 4, '+')} to {number(high, 4, '+')}"
        return f"{subject}: no difference in {name} can be told ({limits}, {said})."
    verdict = "better" if (difference > 0) == (group["better"] == "higher") else "worse"
    low, high = (low, high) if difference > 0 else (-high, -low)
    size = f"{number(abs(difference))} {'larger' if difference > 0 else 'smaller'}"
    found = f"{size} ({number(low)} to {number(high)}, {said})"
    p = row["p_training_holm"]
    if missing(p):
        return (
            f"{subject}: on these networks {verdict}, the {name} is {found}; chance between trainings cannot be told "
            f"from these folds."
        )
    low, high = row["difference_training_interval"]
    trainings = f"{number(low, 4, '+')} to {number(high, 4, '+')} over trainings, {_said(p)}"
    if p >= SURE or (low + high > 0) != (difference > 0):
        return (
            f"{subject}: on these networks {verdict}, the {name} is {found}; other trainings may turn out otherwise "
            f"({trainings})."
        )
    return f"{subject}: {verdict}; the {name} is {found[:-1]}; {trainings})."


def _said(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"

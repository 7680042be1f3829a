"""Tables of a comparison for the terminal, for a paper (Markdown), and for other programs (CSV)."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from nnunet_calib.io.atomic_files import replaced_when_complete, write_json
from nnunet_calib.io.wording import aligned, missing, number
from nnunet_calib.metrics.catalogue import HEAD_ERRORS, HEAD_LABELS, LABELS, RANKINGS, SCORES
from nnunet_calib.metrics.significance import LEAST_FOLDS
from nnunet_calib.posthoc import kind_of
from nnunet_calib.posthoc.temperature import Temperature
from nnunet_calib.report.tables import checkpoint_line
from nnunet_calib.results.schemas import CALIBRATED, STAGES, UNCALIBRATED

COLUMNS = (
    "model",
    "metric",
    "of",
    "scope",
    "stage",
    "cases",
    "mean",
    "mean_low",
    "mean_high",
    "pairs",
    "difference",
    "difference_low",
    "difference_high",
    "p",
    "p_holm",
    "by_chance",
    "pooled",
    "pooled_low",
    "pooled_high",
    "pooled_difference",
    "pooled_difference_low",
    "pooled_difference_high",
    "folds",
    "difference_training_low",
    "difference_training_high",
    "p_training",
    "p_training_holm",
)

_MEAN = "Mean (95 % interval; by chance: what chance alone would leave a perfectly calibrated model)."
# Prefix of the columns with the limits of a value -> entry that has both limits.
_LIMITS = {
    "mean": "interval",
    "difference": "difference_interval",
    "difference_training": "difference_training_interval",
    "pooled": "pooled_interval",
    "pooled_difference": "pooled_difference_interval",
}
_NAMES = LABELS | {"dice": "Dice"}


_Column: TypeAlias = "tuple[str, str | None, str]"  # metric, of, scope


class _Section(NamedTuple):
    title: str
    about: str
    columns: tuple[_Column, ...]


_SECTIONS = (
    _Section(
        "Whole image",
        f"Dice, {HEAD_LABELS}: mean over foreground classes.",
        (
            *((metric, "foreground_mean", "image") for metric in ("dice", *HEAD_ERRORS)),
            *((metric, None, "image") for metric in SCORES),
        ),
    ),
    _Section(
        "Whole image, top label",
        "The largest probability against whether its class is the true one.",
        tuple((metric, "top_label", "image") for metric in HEAD_ERRORS),
    ),
    _Section(
        "Foreground",
        f"Voxels whose true label is not background; {HEAD_LABELS} of the top label.",
        (
            *((metric, "top_label", "foreground") for metric in HEAD_ERRORS),
            *((metric, None, "foreground") for metric in SCORES),
        ),
    ),
    *(
        _Section(
            f"Uncertainty against error, {name}",
            f"{what} AURC: risk-coverage curve; AUROC: whether wrong voxels are the uncertain ones.",
            tuple((metric, None, scope) for metric in RANKINGS),
        )
        for name, scope, what in (
            ("whole image", "image", "All voxels."),
            ("boundary", "boundary", "Voxels near a true label border."),
        )
    ),
)


def comparison_table(comparison: dict[str, Any]) -> str:
    """Return the errors of the whole image, and their differences from the first model, for the terminal.

    Args:
        comparison: the content of comparison.json, with null or NaN for missing values.

    Returns:
        Lines of text, with "-" for missing values: a row for each model and stage, followed, for all models but the
        first, by the difference, its interval and the corrected p-value. Then the cases left out, and the notes.
    """
    section = _SECTIONS[0]
    rows: list[Sequence[str]] = [
        ("whole image", kind_of(comparison).short, *(_NAMES[metric] for metric, *_ in section.columns))
    ]
    decimals = [_decimals(comparison, column) for column in section.columns]
    for model, stage in _rows_of(comparison):
        found = [_find(comparison, column, stage, model["name"]) for column in section.columns]
        means = (row["mean"] for row in found)
        rows.append((model["name"], _used(comparison, model, stage), *map(number, means, decimals)))
        if model["name"] != comparison["first_model"]:
            limits = [row["difference_interval"] for row in found]
            for name, values in (
                ("difference", [row["difference"] for row in found]),
                ("95 % from", [low for low, _ in limits]),
                ("to", [high for _, high in limits]),
            ):
                rows.append((f"  {name}", "", *map(_signed, values, decimals)))
            rows.append(("  p", "", *(_p(row["p_holm"]) for row in found)))
            if not all(missing(row["p_training_holm"]) for row in found):
                limits = [row["difference_training_interval"] for row in found]
                for name, values in (("from", [low for low, _ in limits]), ("to", [high for _, high in limits])):
                    rows.append((f"  trainings, {name}", "", *map(_signed, values, decimals)))
                rows.append(("  p, trainings", "", *(_p(row["p_training_holm"]) for row in found)))
        rows.append(("  by chance", "", *map(number, (row["by_chance"] for row in found), decimals)))
        rows.append(("  pooled", "", *map(number, (row["pooled"] for row in found), decimals)))
    return "\n".join([comparison_about(comparison), "", *aligned(rows), "", *comparison_notes(comparison)])


def comparison_markdown(comparison: dict[str, Any]) -> str:
    """Return tables of means and differences with their intervals, to paste into a paper; see `comparison_table`."""
    lines = [f"# Calibration on {comparison['dataset']}", "", comparison_about(comparison), ""]
    for section in comparison_sections(comparison):
        lines += [f"## {section.title}", ""]
        for table in section.tables:
            lines += [table.caption, "", *_markdown(table), ""]
    return "\n".join([*lines, *(f"- {note}" for note in comparison_notes(comparison)), ""])


def comparison_csv(comparison: dict[str, Any]) -> str:
    """Return all numbers in long form, a line for each model, metric and stage; missing values are empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for group in comparison["results"]:
        for row in group["models"]:
            flat = {**group, **row}
            for name, limits in _LIMITS.items():
                flat[f"{name}_low"], flat[f"{name}_high"] = row[limits] or (None, None)
            cells = {name: flat[name] for name in COLUMNS}
            writer.writerow({k: None if isinstance(v, float) and missing(v) else v for k, v in cells.items()})
    return text.getvalue()


def write_comparison(comparison: dict[str, Any], folder: Path) -> None:
    """Write comparison.json, .md and .csv, and make the folder if needed."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(comparison, folder / "comparison.json")
    for name, make in (("comparison.md", comparison_markdown), ("comparison.csv", comparison_csv)):
        with replaced_when_complete(folder / name) as temporary:
            temporary.write_text(make(comparison), encoding="utf-8", errors="backslashreplace", newline="\n")


class Table(NamedTuple):
    """Table of metrics, whose rows begin with the model and its calibrator."""

    caption: str
    header: tuple[str, ...]
    rows: list[list[str]]


class Section(NamedTuple):
    """Tables of means, of differences from the first model, and, for errors that can be pooled, of pooled voxels."""

    title: str
    tables: tuple[Table, ...]


def comparison_sections(comparison: dict[str, Any]) -> Iterator[Section]:
    """Yield the tables of a comparison, as text."""
    for section in _SECTIONS:
        first = f"Difference from {comparison['first_model']} (95 % interval), p{_over_trainings(comparison)}."
        means = _table(comparison, section, f"{section.about} {_MEAN}", _mean_cell)
        differences = _table(comparison, section, first, _difference_cell, with_first=False)
        tables: tuple[Table, ...] = (means, differences)
        if not all(metric in RANKINGS for metric, *_ in section.columns):
            caption = "The voxels of all cases together (95 % interval over cases)."
            tables += (_table(comparison, section, caption, _pooled_cell),)
        yield Section(section.title, tables)


def comparison_notes(comparison: dict[str, Any]) -> list[str]:
    """Return the cases left out and the caveats for a reader."""
    return [*_left_out(comparison), *comparison["notes"]]


def _markdown(table: Table) -> Iterator[str]:
    yield f"| {' | '.join(table.header)} |"
    yield "|---" * len(table.header) + "|"
    for row in table.rows:
        yield f"| {' | '.join(row)} |"


def _mean_cell(row: dict[str, Any], decimals: int) -> str:
    low, high = (number(limit, decimals) for limit in row["interval"])
    chance = "" if missing(row["by_chance"]) else f"; by chance {number(row['by_chance'], decimals)}"
    return f"{number(row['mean'], decimals)} ({low} to {high}{chance})"


def _difference_cell(row: dict[str, Any], decimals: int) -> str:
    low, high = (_signed(limit, decimals) for limit in row["difference_interval"])
    of_cases = f"{_signed(row['difference'], decimals)} ({low} to {high}), {_named_p(row['p_holm'])}"
    if missing(row["p_training_holm"]):
        return of_cases
    low, high = (_signed(limit, decimals) for limit in row["difference_training_interval"])
    return f"{of_cases}; trainings {low} to {high}, {_named_p(row['p_training_holm'])}"


def _pooled_cell(row: dict[str, Any], decimals: int) -> str:
    if row["pooled_interval"] is None:
        return "-"
    low, high = (number(limit, decimals) for limit in row["pooled_interval"])
    return f"{number(row['pooled'], decimals)} ({low} to {high})"


def _table(
    comparison: dict[str, Any],
    section: _Section,
    caption: str,
    cell: Callable[[dict[str, Any], int], str],
    *,
    with_first: bool = True,
) -> Table:
    arrows = {"higher": "↑", "lower": "↓"}
    better = {group["metric"]: arrows[group["better"]] for group in comparison["results"]}
    calibrator = kind_of(comparison)
    header = ("model", calibrator.noun, *(f"{_NAMES[metric]} {better[metric]}" for metric, *_ in section.columns))
    rows = []
    for model, stage in _rows_of(comparison):
        if not with_first and model["name"] == comparison["first_model"]:
            continue
        used = _used(comparison, model, stage)
        sign = "≈" if stage == CALIBRATED else "="
        cells = [model["name"], f"T {sign} {used}" if calibrator is Temperature else used]
        for column in section.columns:
            cells.append(cell(_find(comparison, column, stage, model["name"]), _decimals(comparison, column)))
        rows.append(cells)
    return Table(caption, header, rows)


def _rows_of(comparison: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    return ((model, stage) for model in comparison["models"] for stage in STAGES)


def _find(comparison: dict[str, Any], column: _Column, stage: str, model: str) -> dict[str, Any]:
    """Return the numbers of one model; both stages share those of a metric that no temperature changes."""
    (group,) = (
        group
        for group in comparison["results"]
        if (group["metric"], group["of"], group["scope"]) == column and group["stage"] in (stage, "both")
    )
    row: dict[str, Any]
    (row,) = (row for row in group["models"] if row["model"] == model)
    return row


def comparison_about(comparison: dict[str, Any]) -> str:
    """Return a sentence on the cases, the differences and p."""
    folds, others = comparison["folds"], len(comparison["models"]) - 1
    used = {line for model in comparison["models"] for line in checkpoint_line(model)}
    checkpoint = f", {', '.join(sorted(used))}" if used else ""
    return (
        f"{len(comparison['cases'])} cases of fold{'s' * (len(folds) > 1)} {', '.join(map(str, folds))}{checkpoint}. "
        f"Difference: "
        f"model - {comparison['first_model']}, paired over cases. p: Wilcoxon signed-rank test"
        + (f", corrected (Holm) for {others} other models." if others > 1 else ".")
    )


def _left_out(comparison: dict[str, Any]) -> list[str]:
    rows = comparison["left_out"]
    named = ", ".join(f"{row['case']} ({' and '.join(row['missing_in'])})" for row in rows)
    return [f"Left out, not measured with the model named: {named}."] if rows else []


def _used(comparison: dict[str, Any], model: dict[str, Any], stage: str) -> str:
    """Return the mean temperature of a model; with other calibrators, whether they were used."""
    if kind_of(comparison) is not Temperature:
        return "before" if stage == UNCALIBRATED else "after"
    return "1" if stage == UNCALIBRATED else "-" if missing(t := model["temperature"]["mean"]) else f"{t:.2f}"


def _signed(value: float | None, decimals: int) -> str:
    return number(value, decimals, "+")


def _decimals(comparison: dict[str, Any], column: _Column) -> int:
    """Return 4, or enough decimals for three digits of the largest mean: a whole image's ECE may be 0.000123."""
    rows = [_find(comparison, column, stage, model["name"]) for model, stage in _rows_of(comparison)]
    largest = max((row["mean"] for row in rows if not missing(row["mean"])), default=0.0)
    return max(4, 2 - math.floor(math.log10(largest))) if largest > 0 else 4


def _over_trainings(comparison: dict[str, Any]) -> str:
    return "" if len(comparison["folds"]) < LEAST_FOLDS else "; its 95 % interval over trainings, p"


def _named_p(value: float | None) -> str:
    return f"p {'' if (p := _p(value))[0] == '<' else '= '}{p}"


def _p(value: float | None) -> str:
    if value is None or missing(value):
        return "-"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"

"""Words and tables of a report, from summary.json alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from math import isnan
from typing import Any

from nnunet_calib.figures.drawn_results import ReportedCase
from nnunet_calib.io.wording import number
from nnunet_calib.metrics.catalogue import BY_CHANCE, BY_NAME, CASE_ERRORS, HEAD_ERRORS, RANKINGS, SCORES, TITLES
from nnunet_calib.posthoc import from_json, kind_of
from nnunet_calib.posthoc.calibrator import Calibrator
from nnunet_calib.posthoc.temperature import Temperature
from nnunet_calib.report.page import cell, column, sortable_table, table_csv, text_cell
from nnunet_calib.results.error_tree import case_error
from nnunet_calib.results.schemas import CALIBRATED, STAGES, UNCALIBRATED, Summary, in_sample_note

LOOKED_AT = 50  # rows on the page; the CSV file has all


def headline(summary: Summary) -> Iterator[dict[str, Any]]:
    """Yield the errors of the whole image before and after calibration, with a sentence on the meaning of each."""
    images = [summary[kind][stage]["image"] for kind in ("metrics", "intervals") if kind in summary for stage in STAGES]
    rankings = [m for m in RANKINGS if all(m in image for image in images)]  # files of older versions lack them
    for group, metric in [("foreground_mean", m) for m in HEAD_ERRORS] + [("", m) for m in (*SCORES, *rankings)]:
        cells = {}
        for stage, name in ((UNCALIBRATED, "before"), (CALIBRATED, "after")):
            trees = [summary["metrics"][stage]["image"]]
            if "intervals" in summary:
                trees.append(summary["intervals"][stage]["image"])
            value, *limits = ((tree[group] if group else tree)[metric] for tree in trees)
            low_high = limits[0] if limits else (None, None)
            interval = None if low_high[0] is None else f"{number(low_high[0])} to {number(low_high[1])}"
            cells[name] = {"number": value, "limits": low_high, "value": number(value), "interval": interval}
        yield {
            "name": TITLES[metric],
            **cells,
            "meaning": " ".join([_meaning(metric, cells), *_beside(summary, group, metric)]),
        }


def headline_csv(lines: Sequence[Mapping[str, Any]], noun: str) -> dict[str, str]:
    """Return the CSV file of the lines from `headline`."""
    header = ["whole image", *(f"{at}{of}" for at in ("T = 1", f"with {noun}") for of in ("", ", low", ", high"))]
    values = (
        [line["name"], *(value for at in ("before", "after") for value in (line[at]["number"], *line[at]["limits"]))]
        for line in lines
    )
    return table_csv("errors.csv", header, [*values])


def _beside(summary: Summary, group: str, metric: str) -> Iterator[str]:
    """Yield the error by chance of a mean over cases, and the error of the pooled voxels; files may lack both.

    For a ranking, yield its values at the boundary instead.
    """
    noun = kind_of(summary["temperature"]).noun
    if metric in RANKINGS:
        before, after = (summary["metrics"][stage].get("boundary", {}).get(metric) for stage in STAGES)
        yield f"At the boundary: {number(before)}, with {noun} {number(after)}."
        return
    if (name := BY_CHANCE.get(metric)) and name in (tree := summary["metrics"][UNCALIBRATED]["image"][group]):
        yield f"Chance alone would leave a calibrated model {number(tree[name])}."
    if "pooled" in summary:
        values, limits = (
            [summary[kind][stage]["image"] for stage in STAGES] for kind in ("pooled", "pooled_intervals")
        )
        before, after = ((tree[group] if group else tree)[metric] for tree in values)
        low, high = (limits[1][group] if group else limits[1])[metric]
        interval = f"{number(low)} to {number(high)}"
        yield f"Voxels of all cases pooled: {number(before)}, with {noun} {number(after)} ({interval})."


def _meaning(metric: str, cells: dict[str, Any]) -> str:
    value = cells["before"]["number"]
    if value is None:
        return "No case has a value."
    after = cells["after"]["number"]
    change = 100 * (after / value - 1) if after is not None and value else 0.0
    return BY_NAME[metric].meaning.format(points=f"{100 * value:.1f}", change=f"{change:+.1f}")


def notes(summary: Summary) -> Iterator[str]:
    """Yield the caveats for a reader of the numbers."""
    fit = summary["temperature"]
    calibrator, error = from_json(fit), fit.get("standard_error")
    known = "" if error is None or isnan(error) or "kind" in fit else f" (standard error {error:.3f})"
    yield f"{calibrator.words('.3f')}{known}: {calibrator.meaning()}."
    if fit.get("at_bound"):
        yield "T lies on the bound of the search: do not use it."
    if note := in_sample_note(fit):
        yield note
    if "intervals" in summary:
        yield "Intervals: 95 %, by bootstrap over cases."
    if summary["missing_cases"]:
        yield f"Not measured: {', '.join(summary['missing_cases'])}."
    yield from summary.get("notes", ())
    if "note" in fit:
        yield fit["note"]


def case_table(
    cases: Sequence[ReportedCase],
    dice: Mapping[str, float],
    links: Mapping[str, str],
    calibrator: type[Calibrator] = Temperature,
) -> dict[str, Any]:
    """Return the table of cases.

    Args:
        cases: cases of a fold or of merged folds.
        dice: case -> Dice; empty for a table without Dice.
        links: case -> anchor of its slice on the page.
        calibrator: kind of the calibrators that the cases are judged by.
    """
    merged = any("fold" in case.row for case in cases)
    columns = [column("case", "name", is_number=False)]
    columns += [column("fold", "whose network predicted the case")] if merged else []
    columns += [column("Dice", "mean over the foreground classes")] if dice else []
    for metric in (*CASE_ERRORS, "nll"):
        columns += [
            column(f"{TITLES[metric]}, {at}", f"{TITLES[metric]} at {at}") for at in ("T = 1", calibrator.short)
        ]
    one_number = calibrator is Temperature
    columns += [column(calibrator.short, f"{calibrator.noun} that the case is judged by", is_number=one_number)]
    columns += [column("voxels", "that count")]
    rows = []
    for case in cases:
        cells = [text_cell(case.name, links.get(case.name, ""))]
        cells += [cell(case.row["fold"], 0)] if merged else []
        cells += [cell(dice.get(case.name, float("nan")), 3)] if dice else []
        for metric in (*CASE_ERRORS, "nll"):
            cells += [cell(case_error(case.row[stage]["image"], metric)) for stage in STAGES]
        used = case.calibrator
        cells += [cell(used.to_json()["temperature"], 3) if one_number else text_cell(used.words(".3f"))]
        rows.append([*cells, cell(case.row["voxels"], 0)])
    return sortable_table("cases", columns, rows)


def look_table(
    expected: Mapping[str, Any], names: Mapping[str, str], links: Mapping[str, str], short: str
) -> dict[str, Any]:
    """Return the table of cases and structures by rising expected Dice; those without one come last.

    Args:
        expected: from `decisions.expected_of_folds.read_expected`.
        names: key -> name of each structure.
        links: case -> anchor of its slice on the page.
        short: name of the calibrator in column heads.
    """
    columns = [
        column("case", "name", is_number=False),
        column("structure", "class or region", is_number=False),
        column(f"expected Dice, {short}", "by the calibrated probabilities alone"),
        column("true Dice", "nnU-Net's, by the ground truth"),
        column("expected - true", "too optimistic where it is above 0"),
        column("expected Dice, T = 1", "by the probabilities as predicted"),
        column("segmented voxels", "size of the segmentation"),
        column(f"expected voxels, {short}", "sum of the calibrated probabilities"),
        column("true voxels", "size of the structure in the ground truth"),
    ]
    found = []
    for row in expected["metric_per_case"]:
        for key, of in row["structures"].items():
            before, after = (_known(of[stage]["expected_dice"]) for stage in STAGES)
            true, volume = _known(of["dice"]), _known(of[CALIBRATED]["expected_voxels"])
            cells = [text_cell(row["case"], links.get(row["case"], "")), text_cell(names.get(key, key))]
            cells += [cell(value, 3) for value in (after, true, after - true, before)]
            cells += [cell(_known(value), 0) for value in (of["segmented_voxels"], volume, of["true_voxels"])]
            found.append((isnan(after), after, cells))
    rows = [cells for *_, cells in sorted(found, key=lambda entry: (entry[0], 0.0 if entry[0] else entry[1]))]
    return sortable_table("cases_to_look_at", columns, rows, LOOKED_AT)


def _known(value: float | None) -> float:
    return float("nan") if value is None else value


def facts(measured_by: str, models: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the versions of the packages, and the entries that identify the models, with their CSV file."""
    rows = [*_facts(measured_by, models)]
    return {"facts": rows, "facts_csv": table_csv("models.csv", ("name", "value"), rows)}


def _facts(measured_by: str, models: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield the versions of the packages, and the entries that identify the models."""
    yield "nnunet_calib, which measured", measured_by
    for package in ("nnunet-calib", "nnunetv2", "torch"):
        yield f"{package}, which drew this page", metadata.version(package)
    for model in models:
        for name, value in model.items():
            yield name, ", ".join(f"{k} = {v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)

"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nnunet_calib.io.wording import aligned, missing, number
from nnunet_calib.metrics.catalogue import BY_CHANCE, HEAD_ERRORS, LABELS, RANKINGS, SCORES, TITLES
from nnunet_calib.posthoc import from_json, kind_of
from nnunet_calib.results.fold_summary import dice_note
from nnunet_calib.results.schemas import STAGES, in_sample_note

_FINAL = "checkpoint_final.pth"


def summary_table(summary: dict[str, Any]) -> str:
    """Return ECE, ACE and MCE of the whole image for each class, before and after calibration, for the terminal.

    Args:
        summary: the content of a fold's summary.json.

    Returns:
        Lines of text, with "-" if no case has a value: a row for each class, for the foreground mean and for the top
        label, the last two followed by the errors by chance and those of the pooled voxels. Then scores, the origin of
        the calibrator, and notes.
    """
    before, after = (summary["metrics"][name]["image"] for name in STAGES)
    short = kind_of(summary["temperature"]).short
    rows = [("class", "cases", *(f"{LABELS[m]} {at}" for m in HEAD_ERRORS for at in ("T=1", short)))]
    heads = summary["heads"]
    for key, name in zip(heads["keys"], heads["names"], strict=True):
        pair = [tree["per_class"][key] for tree in (before, after)]
        rows.append((f"{key} {name}", str(pair[0]["cases"]), *_values(pair)))
    for name, label in (("foreground_mean", "foreground mean"), ("top_label", "top label")):
        cases = str(len(summary["metric_per_case"]))
        pair, pooled = [tree[name] for tree in (before, after)], [summary["pooled"][at]["image"][name] for at in STAGES]
        rows.append((label, cases, *_values(pair)))
        rows.append(("  by chance", cases, *(number(tree.get(BY_CHANCE.get(m))) for m in HEAD_ERRORS for tree in pair)))
        rows.append(("  pooled", cases, *_values(pooled)))
    scores = [
        ", ".join(f"{titles[name]} {number(before[name])} -> {number(after[name])}" for name in titles)
        for titles in ({name: TITLES[name] for name in SCORES}, {name: LABELS[name] for name in RANKINGS})
    ]
    ends = [_origin(summary), *summary["notes"], *checkpoint_line(summary["model"])]
    return "\n".join([*aligned(rows), "", *scores, *ends])


def checkpoint_line(model: dict[str, Any]) -> list[str]:
    """Return a line with the name of the measured checkpoint, or none for nnU-Net's final one."""
    name = model.get("checkpoint", _FINAL)
    return [] if name == _FINAL else [f"checkpoint: {name or 'unknown'}"]


def _origin(summary: dict[str, Any]) -> str:
    """Return the calibrator with the data it was fitted on, and a caveat if its errors are too small for new cases."""
    of_all, rows = summary["temperature"], summary["metric_per_case"]
    calibrator = from_json(of_all)
    text, own = "as given", False
    if of_all["cross_fitted"]:
        text, own = "for all cases", any(missing(row["temperature"]) for row in rows)
        text += "" if own else "; each case is judged by one that was fitted without it"
    own_text = ", which was fitted on cases that it is judged by: expect larger errors on others" if own else ""
    if note := in_sample_note(of_all):
        own_text = f"{own_text}. {note}" if of_all["cross_fitted"] else f", which{note.removeprefix(calibrator.short)}"
    return f"{calibrator.words()} {text}{own_text}"


def _values(pair: Sequence[dict[str, float]]) -> list[str]:
    return [number(tree[metric]) for metric in HEAD_ERRORS for tree in pair]


def crossval_table(summary: dict[str, Any]) -> str:
    """Return temperatures of the folds, and errors of the whole image with their intervals, for the terminal.

    Args:
        summary: the content of a merged summary.json.

    Returns:
        Lines of text, with "-" for missing values: a row for each fold and one for all, a row for each error, the cases
        left out, and notes with the limits of the temperature.
    """
    rows: list[Sequence[str]] = [("fold", "cases", "T", "+-", "T of the other folds")]
    for fold in summary["temperature_per_fold"]:
        other = number(fold["without_fold"]["temperature"])
        rows.append((str(fold["fold"]), str(fold["cases"]), *_temperature(fold), other))
    rows.append(("all", str(len(summary["metric_per_case"])), *_temperature(summary["temperature"]), ""))
    lines = [*aligned(rows), ""]

    rows = [("whole image", "T = 1", "95 % interval", "T of the other folds", "95 % interval")]
    kinds = (("metrics", "intervals"), ("pooled", "pooled_intervals"))
    for group, label, metrics in (
        ("foreground_mean", "foreground mean", HEAD_ERRORS),
        ("top_label", "top label", HEAD_ERRORS),
        (None, "", SCORES),
        (None, "", RANKINGS),
    ):
        for metric in metrics:
            shown = [(f"{LABELS[metric]} {label}".strip(), metric, kinds[0])]
            if metric in BY_CHANCE:
                shown.append(("  by chance", BY_CHANCE[metric], kinds[0]))
            if metric not in RANKINGS:
                shown.append(("  pooled", metric, kinds[1]))
            for title, name, kind in shown:
                row = [title]
                for stage in STAGES:
                    trees = (summary[k][stage]["image"] for k in kind)
                    value, limit = (tree[group][name] if group else tree[name] for tree in trees)
                    row += [number(value), f"{number(limit[0])} to {number(limit[1])}"]
                rows.append(row)
    lines += [*aligned(rows), ""]
    if summary["missing_cases"]:
        lines.append(f"left out, not measured: {', '.join(summary['missing_cases'])}")
    bounds = [("all", summary["temperature"]), *((f["fold"], f) for f in summary["temperature_per_fold"])]
    if at_bound := [str(name) for name, fit in bounds if fit["at_bound"]]:
        lines.append(f"T lies on the bound of the search, do not use it: {', '.join(at_bound)}")
    ends = [*summary["notes"], *checkpoint_line(summary["model"]), summary["temperature"]["note"]]
    return "\n".join([*lines, *ends])


def fit_table(fitted: dict[str, Any], calibrators: dict[str, Any] | None) -> str:
    """Return the parameters of a fit with its NLL, and what is to be said of a calibrator other than the temperature.

    Args:
        fitted: the content of temperature.json, or the same entries of another calibrator.
        calibrators: the content of calibrators.json; None for a temperature.
    """
    calibrator = from_json(fitted)
    error = f", standard error {fitted['standard_error']:.4f}" if calibrators is None else ""
    lines = [
        f"{calibrator.words()}{error}, from {len(fitted['cases'])} cases; NLL {fitted['nll_before']:.4f} -> "
        f"{fitted['nll_after']:.4f}"
    ]
    for kind, entry in ({} if calibrators is None else calibrators["calibrators"]).items():
        if "dice" in entry:
            lines.append(dice_note(entry["dice"]))
        lines += _few_voxels(kind, entry)
    return "\n".join(lines)


def _few_voxels(kind: str, entry: dict[str, Any]) -> list[str]:
    """Return a note on the classes that take T, or none; given an entry of calibrators.json."""
    few = len(entry["fit"].get("take_temperature", ()))
    return [f"{kind}: {few} of the classes or regions have too few voxels, and take T"] if few else []


def calibrators_table(compared: dict[str, Any]) -> str:
    """Return a table of calibrators, each judged out of fold, and the recommended one.

    Args:
        compared: the content of calibrators.json.
    """
    errors = [LABELS[metric] for metric in HEAD_ERRORS]
    rows: list[Sequence[str]] = [("calibrator", "NLL", "95 % interval", "difference", "p", *errors, "Dice", "after")]
    notes = [f"recommended: {compared['recommended']}, the simplest whose NLL is not worse than the smallest"]
    for kind, entry in compared["calibrators"].items():
        values, (low, high) = entry["metrics"]["image"], entry["intervals"]["image"]["nll"]
        difference = next(row for row in entry["differences"] if (row["metric"], row["of"]) == ("nll", None))
        rows.append(
            (
                kind,
                number(values["nll"]),
                f"{number(low)} to {number(high)}",
                number(difference["difference"], 4, "+"),
                number(difference["p"], 3),
                *(number(values["foreground_mean"][metric]) for metric in HEAD_ERRORS),
                *(number(entry["dice"][stage]) for stage in ("before", "after")),
            )
        )
        notes += _few_voxels(kind, entry)
    return "\n".join([*aligned(rows), "", *notes])


def _temperature(fit: dict[str, Any]) -> tuple[str, str]:
    return number(fit["temperature"]), number(fit["standard_error"])

"""The outcome of a cross-validation as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nnunet_calib.report.tables import aligned, checkpoint_line, number

_OF_CLASSES = ("ece", "ace", "mce")
_SCORES = ("nll", "brier")


def crossval_table(summary: dict[str, Any]) -> str:
    """Temperatures of the folds, and errors of the whole image with their intervals.

    Args:
        summary: the content of a merged summary.json.

    Returns:
        Lines of text: a row for each fold and one for all, a row for each error, "-" where there is no value, cases
        that were left out, notes, and what the temperature is not.
    """
    rows: list[Sequence[str]] = [("fold", "cases", "T", "+-", "T of the other folds")]
    for fold in summary["temperature_per_fold"]:
        other = number(fold["without_fold"]["temperature"])
        rows.append((str(fold["fold"]), str(fold["cases"]), *_temperature(fold), other))
    rows.append(("all", str(len(summary["metric_per_case"])), *_temperature(summary["temperature"]), ""))
    lines = [*aligned(rows), ""]

    rows = [("whole image", "T = 1", "95 % interval", "T of the other folds", "95 % interval")]
    for group, label, metrics in (
        ("foreground_mean", "foreground mean", _OF_CLASSES),
        ("top_label", "top label", _OF_CLASSES),
        (None, "", _SCORES),
    ):
        for metric in metrics:
            row = [f"{metric.upper()} {label}".strip()]
            for name in ("uncalibrated", "calibrated"):
                values, limits = (summary[kind][name]["image"] for kind in ("metrics", "intervals"))
                value, limit = (tree[group][metric] if group else tree[metric] for tree in (values, limits))
                row += [number(value), f"{number(limit[0])} to {number(limit[1])}"]
            rows.append(row)
    lines += [*aligned(rows), ""]
    if summary["missing_cases"]:
        lines.append(f"left out, for want of statistics: {', '.join(summary['missing_cases'])}")
    bounds = [("all", summary["temperature"]), *((f["fold"], f) for f in summary["temperature_per_fold"])]
    if at_bound := [str(name) for name, fit in bounds if fit["at_bound"]]:
        lines.append(f"T lies on the bound of the search, do not use it: {', '.join(at_bound)}")
    ends = [*summary["notes"], *checkpoint_line(summary["model"]), summary["temperature"]["note"]]
    return "\n".join([*lines, *ends])


def _temperature(fit: dict[str, Any]) -> tuple[str, str]:
    return number(fit["temperature"]), number(fit["standard_error"])

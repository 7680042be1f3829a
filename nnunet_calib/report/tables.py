"""Tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from nnunet_calib.results.schemas import in_sample_note

_METRICS = ("ece", "ace", "mce")
_FINAL = "checkpoint_final.pth"


def summary_table(summary: dict[str, Any]) -> str:
    """ECE, ACE and MCE of the whole image for each class, at T = 1 and with temperature, from a fold's summary.

    Args:
        summary: the content of summary.json.

    Returns:
        Lines of text: a row for each class, their foreground mean and the top label, "-" where no case has a value;
        then scores, where the temperature comes from, and notes.
    """
    before, after = (summary["metrics"][name]["image"] for name in ("uncalibrated", "calibrated"))
    rows = [("class", "cases", *(f"{m.upper()}{at}" for m in _METRICS for at in (" T=1", " T")))]
    heads = summary["heads"]
    for key, name in zip(heads["keys"], heads["names"], strict=True):
        pair = [tree["per_class"][key] for tree in (before, after)]
        rows.append((f"{key} {name}", str(pair[0]["cases"]), *_values(pair)))
    for name, label in (("foreground_mean", "foreground mean"), ("top_label", "top label")):
        rows.append((label, str(len(summary["metric_per_case"])), *_values([tree[name] for tree in (before, after)])))
    scores = ", ".join(
        f"{label} {number(before[name])} -> {number(after[name])}"
        for name, label in (("nll", "NLL"), ("brier", "Brier score"))
    )
    ends = [_origin(summary), *summary["notes"], *checkpoint_line(summary["model"])]
    return "\n".join([*aligned(rows), "", scores, *ends])


def checkpoint_line(model: dict[str, Any]) -> list[str]:
    """The name of the checkpoint that was measured, unless it is nnU-Net's final one."""
    name = model.get("checkpoint", _FINAL)
    return [] if name == _FINAL else [f"checkpoint: {name or 'unknown'}"]


def _origin(summary: dict[str, Any]) -> str:
    """What the temperature was fitted on, and so how far the errors with it can be trusted."""
    of_all, rows = summary["temperature"], summary["metric_per_case"]
    text, own = "as given", False
    if of_all["cross_fitted"]:
        text, own = "for all cases", any(missing(row["temperature"]) for row in rows)
        text += "" if own else "; each case is judged by one that was fitted without it"
    own_text = ", which was fitted on cases that it is judged by: expect larger errors on others" if own else ""
    if note := in_sample_note(of_all):
        own_text = f"{own_text}. {note}" if of_all["cross_fitted"] else f", which{note.removeprefix('T')}"
    return f"T = {of_all['temperature']:.4f} {text}{own_text}"


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines with columns under each other."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def _values(pair: Sequence[dict[str, float]]) -> list[str]:
    return [number(tree[metric]) for metric in _METRICS for tree in pair]


def number(value: float | None, decimals: int = 4, sign: str = "") -> str:
    """A value with its decimals, with `sign` "+" also where it is positive; "-" where it is not there."""
    return "-" if missing(value) else f"{value:{sign}.{decimals}f}"


def missing(value: float | None) -> bool:
    """Whether there is no value: null in a file, NaN in memory."""
    return value is None or math.isnan(value)

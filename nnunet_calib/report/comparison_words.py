"""What a comparison says, in sentences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nnunet_calib.report.tables import missing, number

SURE = 0.05  # corrected p below which a difference is called one
_AT = {"both": "", "uncalibrated": ", as trained", "calibrated": ", each model with its temperature"}
_ASPECTS = {
    "dice": ("Segmentation", "Dice"),
    "ace": ("How far the probability of a class is off, over all bins alike", "ACE"),
    "nll": ("The probability given to the true class", "NLL"),
}


def comparison_sentences(comparison: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Of each model but the first its name, and a sentence for each of Dice, ACE and NLL of the whole image.

    Args:
        comparison: the content of comparison.json, with null or NaN where there is no value.
    """
    for model in comparison["models"]:
        if model["name"] != comparison["first_model"]:
            yield model["name"], [
                _sentence(group, row)
                for metric in _ASPECTS
                for group in comparison["results"]
                if (group["metric"], group["scope"]) == (metric, "image") and group["of"] in ("foreground_mean", None)
                for row in group["models"]
                if row["model"] == model["name"]
            ]


def _sentence(group: dict[str, Any], row: dict[str, Any]) -> str:
    subject, name = _ASPECTS[group["metric"]]
    subject += _AT[group["stage"]]
    difference, p = row["difference"], row["p_holm"]
    low, high = row["difference_interval"]
    if missing(difference) or missing(low) or missing(p):
        return f"{subject}: too few cases to compare the {name}."
    said = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    if p >= SURE:
        limits = f"{number(low, 4, '+')} to {number(high, 4, '+')}"
        return f"{subject}: no difference in {name} can be told ({limits}, {said})."
    verdict = "better" if (difference > 0) == (group["better"] == "higher") else "worse"
    low, high = (low, high) if difference > 0 else (-high, -low)
    size = f"{number(abs(difference))} {'larger' if difference > 0 else 'smaller'}"
    return f"{subject}: {verdict}; the {name} is {size} ({number(low)} to {number(high)}, {said})."

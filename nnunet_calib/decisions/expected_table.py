"""The table of expected volumes and Dice for the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from nnunet_calib.io.wording import aligned, missing, number
from nnunet_calib.results.schemas import CALIBRATED, STAGES, UNCALIBRATED


def expected_table(content: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Return the table of a file of expected volumes and Dice.

    Args:
        content: the content of the file.
        names: key -> name of each structure.

    Returns:
        Lines of text: of each structure how expected and true Dice agree at T = 1 and with temperature, and the
        interval of the volume. "-" stands for missing values.
    """
    rows = [["expected Dice", "cases", "Dice", "p", "error", "Spearman", "worst tenth", "by entropy", "worst tenth"]]
    for key, dice in content["dice"].items():
        for stage in STAGES:
            of, when = dice[stage], "calibrated" if stage == CALIBRATED else "T = 1"
            row = [f"{key} {names[key]}", str(dice["cases"]), number(dice["dice"]), when, number(of["error"])]
            row += [number(value, 3) for value in (of["spearman"], of["worst"])]
            rows.append([*row, *(number(of["mean_entropy"][name], 3) for name in ("spearman", "worst"))])
    lines = [*aligned(rows), ""]
    rows = [["true volume", "divided by", "cases", "mean", f"{content['level']:.0%} interval", "found"]]
    for key, volumes in content["volumes"].items():
        for by, what in (("segmented", "segmented"), (UNCALIBRATED, "expected, T = 1"), (CALIBRATED, "calibrated")):
            of = volumes[by]
            factors = [None if missing(of[name]) else math.exp(of[name]) for name in ("mean", "low", "high")]
            mean, low, high = (number(factor, 3) for factor in factors)
            row = [f"{key} {names[key]}", what, str(of["cases"]), mean, f"{low} to {high}", number(of["covered"], 3)]
            rows.append(row)
    return "\n".join([*lines, *aligned(rows), "", *content["notes"], content["promise"]])

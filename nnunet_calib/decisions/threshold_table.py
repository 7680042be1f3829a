"""The table of thresholds for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnunet_calib.io.wording import aligned, number
from nnunet_calib.results.heads import Heads


def threshold_table(content: Mapping[str, Any]) -> str:
    """Return the table: for each structure and level the threshold, and the recall or precision found with it.

    Args:
        content: the content of thresholds.json.

    Returns:
        Lines of text, with "-" where there is no threshold. For several folds, each fold is judged with the threshold
        of the others, in a column of its own.
    """
    names = Heads.of_summary(content["heads"]).names_by_key
    folds = [row["fold"] for row in content["levels"][0].get("per_fold", ())]
    header = ["structure", "promised", "cases", "threshold", "found", "95 % interval", "mask / structure"]
    rows: list[list[str]] = [[*header, *(f"fold {fold}" for fold in folds)]]
    for level in content["levels"]:
        for key, chosen in level["structures"].items():
            found = level["by_other_folds"][key] if folds else chosen["found"]
            low, high = found["interval"]
            row = [f"{key} {names[key]}", f"{level['of']} {level['level']:g}", str(chosen["cases"])]
            row += [number(chosen["threshold"]), number(found["mean"]), f"{number(low)} to {number(high)}"]
            row.append(number(chosen["relative_size"]["mean"], 2))
            row += [number(fold["structures"][key]["found"]["mean"]) for fold in level.get("per_fold", ())]
            rows.append(row)
    ends = ["found: each fold's cases with the threshold of the other folds"] if folds else []
    return "\n".join([*aligned(rows), "", *ends, *content["notes"], content["promise"]])

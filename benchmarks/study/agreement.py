"""Tell how far the studies agree on the order of the methods, in the table of docs/results.md.

    python -m benchmarks.study.agreement

For each pair of datasets it gives Kendall's tau-b of the methods' means over cases: 1 if both put the methods that they
share into the same order, 0 if the orders have nothing in common, -1 if they are reversed. Of a study it takes the
comparison over folds (`methods.json`), unless that of one fold (`sweep.json`) has more methods.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

from scipy.stats import kendalltau

from benchmarks.study import settings
from benchmarks.study.report import DOCUMENTS, RESULTS, fill, read
from benchmarks.study.tables import find, markdown
from nnunet_calib.results.schemas import CALIBRATED, UNCALIBRATED

STUDIES = ("hippocampus", "lidc", "acdc")
# name of the column, metric, of, stage
MEASURES = (
    ("Dice", "dice", "foreground_mean", UNCALIBRATED),
    ("ACE", "ace", "foreground_mean", UNCALIBRATED),
    ("ACE, T", "ace", "foreground_mean", CALIBRATED),
    ("NLL", "nll", None, UNCALIBRATED),
    ("NLL, T", "nll", None, CALIBRATED),
)


def comparisons() -> dict[str, dict[str, Any]]:
    """Return each study's comparison of most methods, of equal ones that over folds."""
    found = {}
    for study in STUDIES:
        files = (read(RESULTS / study / f"{name}.json") for name in ("methods", "sweep"))
        found[study] = max(filter(None, files), key=lambda comparison: len(compared_methods(comparison)))
    return found


def compared_methods(comparison: Mapping[str, Any]) -> list[str]:
    """Return the names of the compared methods, without swept values."""
    return [model["name"] for model in comparison["models"] if model["name"] in settings.METHODS]


def shared_methods(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the methods that both have compared."""
    return [name for name in compared_methods(one) if name in compared_methods(other)]


def orders_table(compared: Mapping[str, dict[str, Any]]) -> str:
    """Return a row for each pair of studies that share at least three methods: how many, and tau of each measure."""
    rows = [["datasets", "methods", *(name for name, *_ in MEASURES)]]
    for one, other in combinations(compared, 2):
        methods = shared_methods(compared[one], compared[other])
        if len(methods) < 3:
            continue
        taus = []
        for _, metric, of, stage in MEASURES:
            means = [
                [find(compared[study], metric, of, stage, method)["mean"] for method in methods]
                for study in (one, other)
            ]
            taus.append(f"{kendalltau(*means).statistic:.2f}")
        rows.append([f"{one}, {other}", str(len(methods)), *taus])
    return markdown(rows)


def main() -> None:
    """Write the table."""
    fill(DOCUMENTS / "results.md", {"agreement": orders_table(comparisons())})


if __name__ == "__main__":
    main()

"""The figures of docs/results.md, from the files of `collect` alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.study.tables import STAGES
from nnunet_calib.files import replaced_when_complete
from nnunet_calib.metrics import ReliabilityCurve
from nnunet_calib.report.diagrams import draw_reliability


def reliability_figure(curves: dict[str, Any], folds: list[int]) -> Any:
    """A column for each method: at T = 1 above, with temperature below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.2 * len(curves), 6.4), layout="constrained")
    axes = figure.subplots(2, len(curves), squeeze=False)
    for column, (method, stages) in enumerate(curves.items()):
        for line, stage, when in zip(axes, STAGES, ("T = 1", "with temperature"), strict=True):
            counts, probability, positives = (
                np.array(stages[stage][name], float)[None] for name in ("counts", "probability", "positives")
            )
            with np.errstate(invalid="ignore"):
                curve = ReliabilityCurve(counts, probability / counts, positives / counts)
            draw_reliability(line[column], curve, 0, f"{method}, {when}")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    named = ", ".join(map(str, folds))
    figure.suptitle(f"Reliability of the foreground classes, voxels of folds {named} pooled, 20 bins", fontsize=10)
    return figure


def save(figure: Any, path: Path) -> None:
    """Write a figure as PNG."""
    with replaced_when_complete(path) as temporary:
        figure.savefig(temporary, dpi=130, bbox_inches="tight")

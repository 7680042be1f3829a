"""The figures of docs/results-STUDY.md, from the files of `collect` alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.study.tables import set_here
from nnunet_calib.figures.diagrams import draw_reliability
from nnunet_calib.figures.dice_against_ace import Estimate, Point, draw_dice_against_ace, points_of
from nnunet_calib.figures.style import in_style
from nnunet_calib.io.atomic_files import replaced_when_complete
from nnunet_calib.metrics.errors import NUM_BINS, ReliabilityCurve
from nnunet_calib.results.schemas import STAGES

CHANCE = "_seed"  # of a name: the same again with other first weights and patches


def reliability_figure(curves: dict[str, Any], folds: list[int]) -> Any:
    """Draw a column for each method: at T = 1 above, with temperature below."""
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
            draw_reliability(line[column], curve, 0, f"{method},\n{when}")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    named = ", ".join(map(str, folds))
    figure.suptitle(f"Reliability of the foreground classes, voxels of folds {named} pooled, 20 bins", fontsize=10)
    return figure


def families(names: Sequence[str]) -> dict[str, list[str]]:
    """Return the runs of each panel: a method with its other values and its baseline, or runs that differ by chance.

    Args:
        names: of the runs; what follows a method's name and "_" tells its value.
    """
    swept = [name for name in names if "_" in name and not name.endswith(CHANCE)]
    found = {}
    for method in dict.fromkeys(name.partition("_")[0] for name in swept):
        base = "Dice" if method.startswith("Dice") else "Calib"
        found[method] = [base, method, *(name for name in swept if name.partition("_")[0] == method)]
    if again := [name for name in names if name.endswith(CHANCE)]:
        found["other seeds"] = [one for name in again for one in (name.removesuffix(CHANCE), name)]
    return {title: [name for name in drawn if name in names] for title, drawn in found.items()}


@in_style
def sweep_figure(comparison: dict[str, Any]) -> Any:
    """Draw Dice against ACE, a panel for each of `families`, without the wide intervals of single runs."""
    from matplotlib.figure import Figure

    points = {point.name: point for point in points_of(comparison)}
    values = {model["name"]: set_here(model["hyperparameters"] or {}) for model in comparison["models"]}
    panels = families(list(points))
    columns = 3
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(3.2 * columns, 4.6 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for ax, (title, names) in zip(axes, panels.items(), strict=False):
        means = [[Estimate(estimate.mean, math.nan, math.nan) for estimate in points[name][1:]] for name in names]
        labels = [values[name] if name.startswith(title) else name for name in names]
        draw_dice_against_ace(ax, [Point(label, *three) for label, three in zip(labels, means, strict=True)])
        ax.set_title(title)
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize=7)
    for ax in axes[len(panels) :]:
        ax.remove()
    cases = len(comparison["cases"])
    figure.suptitle(f"Mean over foreground classes and {cases} cases, {NUM_BINS} bins")
    return figure


def save(figure: Any, path: Path) -> None:
    """Write a figure as PNG."""
    with replaced_when_complete(path) as temporary:
        figure.savefig(temporary, dpi=130, bbox_inches="tight")

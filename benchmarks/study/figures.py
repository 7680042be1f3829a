"""The figures of docs/results-STUDY.md, from the files of `collect` alone, one column wide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.study.tables import swept_value, variant
from nnunet_calib.figures.dice_against_ace import points_of
from nnunet_calib.figures.style import GAP, LINE, figure_bytes, in_style, new_figure, outer_labels
from nnunet_calib.io.atomic_files import replaced_when_complete
from nnunet_calib.metrics.errors import NUM_BINS
from nnunet_calib.results.schemas import STAGES

CHANCE = "_seed"  # of a name: the same again with other first weights and patches
ANOTHER_SEED = "another seed"
STAGE_NAMES = ("T = 1", "with temperature")
_MARKERS = ("s", "^", "D", "v", "p", "<", ">", "P", "X", "h", "d", "*")
# of the line between both stages, by what a run changes besides the value
_LINES: dict[str, Any] = {
    "": {"linewidth": 4, "alpha": 0.3, "solid_capstyle": "butt"},
    "whole from the start": {"linestyle": "solid"},
    "on probabilities": {"linestyle": (0, (4, 1.5))},
    "full resolution only": {"linestyle": (0, (1, 1))},
    "bins pooled over the batch": {"linestyle": (0, (5, 1, 1, 1))},
    ANOTHER_SEED: {"linestyle": (0, (2, 2))},
}


class Look(NamedTuple):
    """The colour and marker of a value."""

    colour: str
    marker: str


@in_style
def reliability_figure(curves: dict[str, Any], folds: list[int]) -> Any:
    """Draw a panel for each method, with its observed frequencies at T = 1 and with temperature."""
    columns = min(3, len(curves))
    lines = -(-len(curves) // columns)
    figure, axes = new_figure(0.9 + 3.5 * lines / columns, lines, columns)
    for ax, (method, stages) in zip(axes.flat, curves.items(), strict=False):
        ax.plot([0, 1], [0, 1], color="black", linewidth=0.6, linestyle="--")
        for stage, name, colour, marker in zip(STAGES, STAGE_NAMES, (GAP, LINE), "o^", strict=True):
            counts, probability, positives = (
                np.array(stages[stage][sums], float) for sums in ("counts", "probability", "positives")
            )
            filled = counts > 0
            x, y = (sums[filled] / counts[filled] for sums in (probability, positives))
            ax.plot(x, y, color=colour, marker=marker, markersize=2.5, linewidth=0.9, label=name)
        ax.set(xlim=(0, 1), ylim=(0, 1), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1], aspect="equal")
        ax.set(xlabel="predicted", ylabel="observed")
        ax.set_title(method)
    outer_labels(axes)
    _remove_unused(axes, len(curves))
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    named = ", ".join(map(str, folds))
    figure.suptitle(f"Observed frequency against predicted probability,\nforeground voxels of folds {named}, 20 bins")
    return figure


def families(names: Sequence[str]) -> dict[str, list[str]]:
    """Return the runs of each panel: a method with its other values and its baseline, or runs that differ by chance.

    Args:
        names: of the runs; what follows a method's name and "_" tells its value.
    """
    others = [name for name in names if "_" in name and not name.endswith(CHANCE)]
    found = {}
    for method in dict.fromkeys(name.partition("_")[0] for name in others):
        base = "Dice" if method.startswith("Dice") else "Calib"
        found[method] = [base, method, *(name for name in others if name.partition("_")[0] == method)]
    if again := [name for name in names if name.endswith(CHANCE)]:
        found["other seeds"] = [one for name in again for one in (name.removesuffix(CHANCE), name)]
    return {title: [name for name in drawn if name in names] for title, drawn in found.items()}


def looks_of(hyperparameters: Mapping[str, Mapping[str, Any]]) -> dict[float | None, Look]:
    """Return the look of each value of all runs, in rising order: dark to light; None is a run without a value.

    Args:
        hyperparameters: of each run, by name.
    """
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    values = sorted({value for _, value in map(swept_value, hyperparameters.values()) if value is not None})
    colours = colormaps["plasma"](np.linspace(0, 0.85, len(values)))
    looks: dict[float | None, Look] = {None: Look("black", "o")}
    for i, value in enumerate(values):
        looks[value] = Look(to_hex(colours[i]), _MARKERS[i % len(_MARKERS)])
    return looks


@in_style
def sweep_figure(comparison: dict[str, Any]) -> Any:
    """Draw Dice against ACE, a panel for each of `families`, without the wide intervals of single runs.

    A value has one colour and marker in all panels, and the line between its two stages tells what else was changed.
    """
    points = {point.name: point for point in points_of(comparison)}
    hyperparameters = {model["name"]: model["hyperparameters"] or {} for model in comparison["models"]}
    panels = families(list(points))
    drawn = {name for names in panels.values() for name in names}
    looks = looks_of({name: hyperparameters[name] for name in drawn})
    changes = {name: ANOTHER_SEED if name.endswith(CHANCE) else variant(hyperparameters[name]) for name in drawn}
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = new_figure(1.5 + 1.55 * lines * 2 / max(columns, 1.5), lines, columns)
    for ax, (title, names) in zip(axes.flat, panels.items(), strict=False):
        for name in names:
            stages = [points[name].uncalibrated.mean, points[name].calibrated.mean]
            look = looks[swept_value(hyperparameters[name])[1]]
            _draw_run(ax, points[name].dice.mean, stages, look, _LINES[changes[name]])
        kind, _ = swept_value(hyperparameters.get(title, {}))
        ax.set(xlabel="Dice, higher is better", ylabel="ACE, lower is better")
        ax.set_title(f"{title}: {kind}" if kind else title)
        ax.margins(0.1)
        ax.locator_params(axis="x", nbins=3)
        ax.locator_params(axis="y", nbins=5)
    outer_labels(axes)
    _remove_unused(axes, len(panels))
    bases = sorted(
        {name for name in drawn if swept_value(hyperparameters[name])[1] is None and not name.endswith(CHANCE)}
    )
    _legend(figure, looks, "/".join(bases), [line for line in _LINES if line in changes.values()])
    cases = len(comparison["cases"])
    figure.suptitle(f"Mean over foreground classes and {cases} cases, {NUM_BINS} bins")
    return figure


def _draw_run(ax: Any, dice: float, stages: Sequence[float], look: Look, line: Mapping[str, Any]) -> None:
    """Draw a run as an open marker at T = 1 and a filled one with temperature, joined by a line."""
    ax.plot([dice, dice], stages, color=look.colour, zorder=1, **{"linewidth": 1, **line})
    for value, face in zip(stages, ("white", look.colour), strict=True):
        ax.plot(dice, value, look.marker, color=look.colour, markerfacecolor=face, markersize=4, markeredgewidth=0.9)


def _legend(figure: Any, looks: Mapping[float | None, Look], bases: str, changes: Sequence[str]) -> None:
    """Draw the legend of all panels below them: values in rising order, then stages, then other changes."""
    from matplotlib.lines import Line2D

    common: dict[str, Any] = {"linestyle": "none", "markersize": 4}
    entries = [
        Line2D([], [], color=colour, marker=marker, label=bases if value is None else f"{value:g}", **common)
        for value, (colour, marker) in looks.items()
    ]
    for name, face in zip(STAGE_NAMES, ("white", "0.4"), strict=True):
        entries.append(Line2D([], [], color="0.4", marker="o", markerfacecolor=face, label=name, **common))
    entries += [Line2D([], [], color="0.4", label=name, linewidth=1, **_LINES[name]) for name in changes if name]
    close: dict[str, Any] = {"handlelength": 1.8, "handletextpad": 0.5, "columnspacing": 1.2}
    figure.legend(handles=entries, loc="outside lower center", ncols=3, **close)


def _remove_unused(axes: np.ndarray, used: int) -> None:
    """Remove the panels after the last used one; those above them get its label."""
    for above, ax in zip(axes.flat[used - axes.shape[1] :], axes.flat[used:], strict=False):
        above.set_xlabel(ax.get_xlabel() or axes[-1, 0].get_xlabel())
        ax.remove()


def save(figure: Any, path: Path) -> None:
    """Write a figure as PNG."""
    with replaced_when_complete(path) as temporary:
        temporary.write_bytes(figure_bytes(lambda: figure, "png")["png"])

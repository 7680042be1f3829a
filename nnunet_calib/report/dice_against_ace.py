"""Dice against ACE of several models, before and after temperature; matplotlib is imported only when it is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from nnunet_calib.files import replaced_when_complete
from nnunet_calib.report.tables import missing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = "dice_against_ace"

# Okabe and Ito's hues stay apart for colour-blind readers; shapes tell models apart in grey print.
_COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "p", "<", ">")


class Estimate(NamedTuple):
    """A mean with its interval; NaN or None where there is none."""

    mean: float
    low: float
    high: float


class Point(NamedTuple):
    """What is drawn of a model."""

    name: str
    dice: Estimate
    uncalibrated: Estimate
    calibrated: Estimate


def draw_dice_against_ace(ax: Axes, points: Sequence[Point]) -> None:
    """Each model a pair of points, open at T = 1 and filled with temperature, joined by a pale line.

    Bars are the intervals: of the ACE with wide caps at T = 1 and narrow ones with temperature, since they lie on one
    line; of the Dice, which is the same for both, once. `ax.legend()` names models and stages.

    Args:
        ax: where to draw.
        points: of the models; those without Dice or ACE are left out.
    """
    for i, point in enumerate(points):
        colour, marker = _COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)]
        stages = [(point.uncalibrated, "white", 5), (point.calibrated, colour, 2.5)]
        stages = [stage for stage in stages if not missing(stage[0].mean)]
        if missing(point.dice.mean) or not stages:
            continue
        x, heights = point.dice.mean, [ace.mean for ace, *_ in stages]
        ax.plot([x] * len(stages), heights, color=colour, linewidth=6, alpha=0.3, solid_capstyle="butt", zorder=1)
        common: dict[str, Any] = {"color": colour, "linestyle": "none", "elinewidth": 0.9, "zorder": 2}
        ax.errorbar(x, heights[0], xerr=_reach(point.dice), capsize=2.5, **common)
        for ace, face, cap in stages:
            ax.errorbar(x, ace.mean, yerr=_reach(ace), capsize=cap, **common)
            ax.plot(x, ace.mean, marker, color=colour, markersize=7, markerfacecolor=face, zorder=3)
        ax.plot([], [], color=colour, marker=marker, linestyle="none", label=point.name)
    for label, face in (("T = 1", "white"), ("with temperature", "0.4")):
        ax.plot([], [], color="0.4", marker="o", markerfacecolor=face, linestyle="none", label=label)
    ax.margins(0.08)
    ax.set(xlabel="Dice, higher is better", ylabel="ACE, lower is better")


def dice_against_ace_figure(comparison: dict[str, Any]) -> Figure:
    """The figure of a comparison.

    Args:
        comparison: the content of comparison.json, with null or NaN where there is no value.
    """
    from matplotlib.figure import Figure

    points = points_of(comparison)
    # a line of the legend for two models, so that many of them do not squeeze the axes
    figure = Figure(figsize=(5.5, 3.8 + 0.09 * len(points)), layout="constrained")
    ax = figure.subplots()
    draw_dice_against_ace(ax, points)
    figure.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    cases = len(comparison["cases"])
    ax.set_title(f"Mean over foreground classes and {cases} cases, 95 % intervals", fontsize=9)
    return figure


def points_of(comparison: dict[str, Any]) -> list[Point]:
    """Dice and ACE of the foreground classes in the whole image, from the content of comparison.json."""
    found: dict[str, dict[str, Estimate]] = {model["name"]: {} for model in comparison["models"]}
    for group in comparison["results"]:
        if group["metric"] in ("dice", "ace") and (group["of"], group["scope"]) == ("foreground_mean", "image"):
            for row in group["models"]:
                key = "dice" if group["metric"] == "dice" else group["stage"]
                found[row["model"]][key] = Estimate(row["mean"], *row["interval"])
    return [Point(name, **estimates) for name, estimates in found.items()]


def draw_comparison(comparison: dict[str, Any], folder: Path) -> None:
    """Write dice_against_ace.png and .pdf, or remove those of before where no model has a Dice."""
    from matplotlib import rc_context, style

    files = [folder / f"{NAME}{ending}" for ending in (".png", ".pdf")]
    if all(missing(point.dice.mean) for point in points_of(comparison)):
        for file in files:
            file.unlink(missing_ok=True)
        return
    # fonts as TrueType, since publishers refuse Type 3; without the date, so that the same numbers give the same bytes
    with style.context("default"), rc_context({"pdf.fonttype": 42}):
        figure = dice_against_ace_figure(comparison)
        for file, metadata in zip(files, ({}, {"CreationDate": None}), strict=True):
            with replaced_when_complete(file) as temporary:
                figure.savefig(temporary, dpi=200, metadata=metadata)


def _reach(estimate: Estimate) -> list[list[float]] | None:
    """How far the interval reaches to either side; the mean may lie outside that of very few cases."""
    if missing(estimate.low) or missing(estimate.high):
        return None
    return [[max(estimate.mean - estimate.low, 0)], [max(estimate.high - estimate.mean, 0)]]

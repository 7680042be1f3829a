"""Dice against ACE and MCE of several models, before and after calibration.

matplotlib is imported only when a figure is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from nnunet_calib.figures.style import COLOURS, in_style, new_figure, outer_labels, save_figure
from nnunet_calib.io.atomic_files import forget
from nnunet_calib.io.names import in_figure
from nnunet_calib.io.wording import missing
from nnunet_calib.metrics.errors import NUM_BINS
from nnunet_calib.posthoc import kind_of
from nnunet_calib.posthoc.calibrator import Calibrator
from nnunet_calib.posthoc.temperature import Temperature
from nnunet_calib.results.layout import ENDINGS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = "dice_against_ace"

_COLOURS = (*COLOURS, "#882255")
# Markers tell models apart in grey print, and models that share a colour: one more, so that pairs repeat late.
_MARKERS = ("o", "s", "^", "D", "v", "p", "<", ">", "P")


class Estimate(NamedTuple):
    """A mean with its interval; NaN or None for missing values."""

    mean: float
    low: float
    high: float


class Point(NamedTuple):
    """Dice of a model, and its ACE or MCE before and after calibration."""

    name: str
    dice: Estimate
    uncalibrated: Estimate
    calibrated: Estimate


def draw_dice_against_ace(
    ax: Axes, points: Sequence[Point], error: str = "ACE", calibrator: type[Calibrator] = Temperature
) -> None:
    """Draw each model as a pair of points, open at T = 1 and filled after calibration, joined by a pale line.

    Bars show the intervals. Those of the error lie on one line, so they have wide caps at T = 1 and narrow caps after
    calibration. That of the Dice, which is nnU-Net's, is drawn once. `ax.legend()` names models and stages.

    Args:
        ax: axes to draw on.
        points: points of the models; models without Dice or error are left out.
        error: name of the error for the axis label.
        calibrator: kind of the calibrators, which the legend names.
    """
    for i, point in enumerate(points):
        colour, marker = _COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)]
        stages = [(point.uncalibrated, "white", 5), (point.calibrated, colour, 2.5)]
        stages = [stage for stage in stages if not missing(stage[0].mean)]
        if missing(point.dice.mean) or not stages:
            continue
        x, heights = point.dice.mean, [ace.mean for ace, *_ in stages]
        ax.plot([x] * len(stages), heights, color=colour, linewidth=5, alpha=0.3, solid_capstyle="butt", zorder=1)
        common: dict[str, Any] = {"color": colour, "linestyle": "none", "elinewidth": 0.9, "zorder": 2}
        ax.errorbar(x, heights[0], xerr=_reach(point.dice), capsize=2.5, **common)
        for ace, face, cap in stages:
            ax.errorbar(x, ace.mean, yerr=_reach(ace), capsize=cap, **common)
            ax.plot(x, ace.mean, marker, color=colour, markersize=5.5, markerfacecolor=face, zorder=3)
        ax.plot([], [], color=colour, marker=marker, linestyle="none", label=in_figure(point.name))
    for label, face in (("T = 1", "white"), (f"with {calibrator.noun}", "0.4")):
        ax.plot([], [], color="0.4", marker="o", markerfacecolor=face, linestyle="none", label=label)
    ax.margins(0.08)
    ax.locator_params(axis="x", nbins=6)  # more labels would touch at a column's width
    ax.set(xlabel="Dice, higher is better", ylabel=f"{error}, lower is better")


@in_style
def dice_against_ace_figure(comparison: dict[str, Any]) -> Figure:
    """Draw the figure of a comparison: Dice against ACE above Dice against MCE.

    Args:
        comparison: the content of comparison.json, with null or NaN for missing values.
    """
    # the legend has a line for each model: make room, so that many models do not squeeze the axes
    figure, axes = new_figure(4.3 + 0.15 * len(comparison["models"]), 2)
    for ax, error in zip(axes[:, 0], ("ace", "mce"), strict=True):
        draw_dice_against_ace(ax, points_of(comparison, error), error.upper(), kind_of(comparison))
    outer_labels(axes)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center")
    cases = len(comparison["cases"])
    figure.suptitle(f"Mean over foreground classes and {cases} cases,\n{NUM_BINS} bins, with 95 % intervals")
    return figure


def points_of(comparison: dict[str, Any], error: str = "ace") -> list[Point]:
    """Return Dice and error ("ace" or "mce") of the foreground in the whole image for each model of a comparison."""
    found: dict[str, dict[str, Estimate]] = {model["name"]: {} for model in comparison["models"]}
    for group in comparison["results"]:
        if group["metric"] in ("dice", error) and (group["of"], group["scope"]) == ("foreground_mean", "image"):
            for row in group["models"]:
                key = "dice" if group["metric"] == "dice" else group["stage"]
                found[row["model"]][key] = Estimate(row["mean"], *row["interval"])
    return [Point(name, **estimates) for name, estimates in found.items()]


def draw_comparison(comparison: dict[str, Any], folder: Path) -> None:
    """Write dice_against_ace as PNG, SVG and PDF, or remove existing ones if no model has a Dice."""
    if all(missing(point.dice.mean) for point in points_of(comparison)):
        for ending in ENDINGS:
            forget(folder / f"{NAME}.{ending}")
        return
    save_figure(lambda: dice_against_ace_figure(comparison), folder, NAME)


def _reach(estimate: Estimate) -> list[list[float]] | None:
    """Return the lengths of the error bar; with very few cases, the mean may lie outside its interval."""
    if missing(estimate.low) or missing(estimate.high):
        return None
    return [[max(estimate.mean - estimate.low, 0)], [max(estimate.high - estimate.mean, 0)]]

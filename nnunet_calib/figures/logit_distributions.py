"""Distributions of the logits of several models, class by class; matplotlib is imported only when they are drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_calib.figures.style import COLOURS, in_lines, in_style, new_figure, outer_labels, save_figure
from nnunet_calib.io.names import in_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = "logit_distributions"
TITLE = "Distributions of the logits"
CAPTION = (
    "Log-odds of each class, log(p / (1 - p)), at T = 1: solid for the voxels of the class, dashed for all others; "
    "each curve adds up to 1. A loss that holds logits down moves both towards 0. Where solid and dashed overlap, the "
    "class is confused with others."
)
MOST_PANELS = 8  # more classes would not fit on a page
_SIDES = (("outside", "dashed", 1.0), ("inside", "solid", 1.4))


def draw_log_odds(
    ax: Axes, edges: Sequence[float], models: Mapping[str, Mapping[str, Sequence[float] | None]], title: str
) -> None:
    """Draw the histograms of one class.

    Args:
        ax: axes to draw on.
        edges: edges of the bins.
        models: model -> "outside" and "inside" -> share of the voxels in each bin, or None without a voxel.
        title: title above the panel.
    """
    for i, (name, shares) in enumerate(models.items()):
        for side, line, width in _SIDES:
            if (values := shares[side]) is not None:
                label = in_figure(name) if side == "inside" else None
                colour = COLOURS[i % len(COLOURS)]
                ax.stairs(values, edges, baseline=None, color=colour, linestyle=line, linewidth=width, label=label)
    ax.axvline(0, color="0.6", linewidth=0.5, zorder=0)
    ax.set(xlim=(edges[0], edges[-1]), yscale="log", ylim=(1e-4, 1), xlabel="log-odds", ylabel="share of the voxels")
    ax.set_title(title, fontsize="medium")


@in_style
def logit_distributions_figure(comparison: dict[str, Any]) -> Figure:
    """Draw a panel for each of the first eight classes or regions.

    Args:
        comparison: the content of comparison.json.
    """
    found = comparison["log_odds"]
    shown = [*found["per_class"].items()][:MOST_PANELS]
    rows = -(-len(shown) // 2)
    figure, axes = new_figure(1.5 * rows + 0.7 + 0.15 * len(comparison["models"]), rows, 2)
    panels = [*axes.flat]
    for ax, (key, models) in zip(panels, shown, strict=False):
        draw_log_odds(ax, found["edges"], models, in_lines(found["names"][key]))
    outer_labels(axes)
    for ax in panels[len(shown) :]:
        ax.remove()
    if len(shown) % 2 and rows > 1:
        panels[len(shown) - 2].set_xlabel("log-odds")
    handles = {
        label: handle
        for ax in panels[: len(shown)]
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center")
    some = "" if len(shown) == len(found["per_class"]) else f",\n{len(shown)} of {len(found['per_class'])} classes"
    cases = len(comparison["cases"])
    figure.suptitle(f"Log-odds of the voxels of {cases} cases at T = 1:\nof the class (solid), others (dashed){some}")
    return figure


def draw_logit_distributions(comparison: dict[str, Any], folder: Path) -> None:
    """Write logit_distributions as PNG, SVG and PDF."""
    save_figure(lambda: logit_distributions_figure(comparison), folder, NAME)

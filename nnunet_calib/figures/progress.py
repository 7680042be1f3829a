"""The figure of a running training, drawn from logged values; matplotlib is imported only when it is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunet_calib.figures.style import COLOURS, in_lines, in_style, new_figure, save_figure
from nnunet_calib.metrics.errors import NUM_BINS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = "progress_calibration"
_LINES = ("solid", "dashed", "dotted")


def draw_pseudo_ace(
    ax: Axes, mean: Sequence[float], per_class: Sequence[Sequence[float]], names: Sequence[str]
) -> None:
    """Draw the pseudo ACE of every epoch: a thin line for each class, and a thick one for their mean.

    Classes differ in colour, and more than six of them also in line style. More than eighteen could not be told apart
    and are grey.

    Args:
        ax: axes to draw on.
        mean: mean over the foreground classes of every epoch from 0; NaN for epochs that were not measured.
        per_class: for every epoch, one value per class.
        names: names of the classes.
    """
    from matplotlib.ticker import MaxNLocator

    hues, apart = COLOURS[1:], len(names) <= len(_LINES) * (len(COLOURS) - 1)
    for i, (name, values) in enumerate(zip(names, zip(*per_class, strict=True), strict=True)):
        colour, line = (hues[i % len(hues)], _LINES[i // len(hues)]) if apart else ("0.7", "solid")
        label = name if apart else f"each of {len(names)} classes" if not i else None
        _line(ax, values, 0.8, color=colour, linestyle=line, label=label)
    _line(ax, mean, 1.6, color=COLOURS[0], label="mean")
    ax.set(xlabel="epoch", ylabel="pseudo ACE", ylim=(0, None))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def _line(ax: Axes, values: Sequence[float], width: float, **look: Any) -> None:
    """Draw a line, with dots at epochs whose neighbours have no value, which it would not show."""
    known = np.pad(np.isfinite(np.asarray(values, float)), 1)
    alone = np.flatnonzero(known[1:-1] & ~known[:-2] & ~known[2:])
    ax.plot(values, linewidth=width, marker=".", markersize=3 * width + 1, markevery=[*map(int, alone)], **look)


@in_style
def progress_figure(mean: Sequence[float], per_class: Sequence[Sequence[float]], names: Sequence[str]) -> Figure:
    """Draw the pseudo ACE of a training; see `draw_pseudo_ace`."""
    columns = 3 if max(map(len, names), default=0) <= 10 else 2
    figure, axes = new_figure(2.4 + 0.13 * min(len(names), 18) / columns)
    draw_pseudo_ace(axes[0, 0], mean, per_class, names)
    axes[0, 0].set_title(
        f"Average calibration error over {NUM_BINS} bins\nof the validation patches, all voxels pooled"
    )
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, [*map(in_lines, labels)], loc="outside lower center", ncols=columns)
    return figure


def draw_progress(
    output_folder: Path, mean: Sequence[float], per_class: Sequence[Sequence[float]], names: Sequence[str]
) -> None:
    """Write progress_calibration.png and .svg, beside nnU-Net's progress.png; see `draw_pseudo_ace`."""
    save_figure(lambda: progress_figure(mean, per_class, names), output_folder, NAME, ("png", "svg"))

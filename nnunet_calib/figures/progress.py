"""The figures of a running training, drawn from logged values; matplotlib is imported only when one is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from nnunet_calib.figures.style import COLOURS, LINE, in_lines, in_style, new_figure, outer_labels, save_figure
from nnunet_calib.metrics.errors import NUM_BINS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME, LOGITS_NAME = "progress_calibration", "progress_logits"
MOST_PANELS = 7  # of classes; more would not fit on a page
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


def draw_logit_bands(ax: Axes, quantiles: ArrayLike, title: str, labels: tuple[str, str]) -> None:
    """Draw the logits of every epoch: the median as a line, and bands of the middle 50 and 90 % of the voxels.

    The axis is linear between -1 and 1 and logarithmic beyond.

    Args:
        ax: axes to draw on.
        quantiles: (epochs, 2, 5), at 5, 25, 50, 75 and 95 %, of the voxels outside and inside the class; NaN for epochs
            that were not measured.
        title: title above the panel.
        labels: legend entries of the two.
    """
    from matplotlib.ticker import MaxNLocator

    values = np.asarray(quantiles, float)
    epochs = np.arange(len(values))
    for of, (colour, line) in enumerate((("0.5", "dashed"), (LINE, "solid"))):
        low, lower, median, upper, high = values[:, of].T
        ax.fill_between(epochs, low, high, color=colour, alpha=0.2, linewidth=0)
        ax.fill_between(epochs, lower, upper, color=colour, alpha=0.4, linewidth=0)
        _line(ax, median, 1.2, color=colour, linestyle=line, label=labels[of])
    ax.set_yscale("symlog", linthresh=1)
    ax.axhline(0, color="black", linewidth=0.5, zorder=0)
    largest = np.abs(values[np.isfinite(values)]).max(initial=1)
    steps = [step for step in (1, 10, 100) if step <= largest * 1.5]
    ticks = [*(-step for step in reversed(steps)), 0, *steps]
    ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="epoch", ylabel="logit")
    ax.set_title(title, fontsize="medium")


@in_style
def logits_figure(quantiles: Sequence[Any], names: Sequence[str]) -> Figure:
    """Draw the logits of a training: a panel for each of the first seven classes or regions, and one for the margin.

    Args:
        quantiles: for every epoch, (classes + 1, 2, 5), see `draw_logit_bands`; the last row is the margin.
        names: names of the classes.
    """
    values = np.asarray(quantiles, float)
    shown = [*names[:MOST_PANELS]]
    rows = -(-(len(shown) + 1) // 2)
    figure, axes = new_figure(1.5 * rows + 0.9, rows, 2)
    panels = [*axes.flat]
    for i, name in enumerate(shown):
        draw_logit_bands(panels[i], values[:, i], in_lines(name), ("voxels outside the class", "voxels inside"))
    margin = panels[len(shown)]
    draw_logit_bands(margin, values[:, -1], "margin of the true class", ("", ""))
    outer_labels(axes)
    for ax in panels[len(shown) + 1 :]:
        ax.remove()
    for ax in axes[-2, len(shown) % 2 + 1 :] if rows > 1 else ():
        ax.set_xlabel("epoch")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    some = "" if len(shown) == len(names) else f",\n{len(shown)} of {len(names)} classes"
    figure.suptitle(f"Logits of the validation patches: median,\nmiddle 50 and 90 % of the voxels{some}")
    return figure


def draw_logits(output_folder: Path, quantiles: Sequence[Any], names: Sequence[str]) -> None:
    """Write progress_logits.png and .svg, beside nnU-Net's progress.png; see `logits_figure`."""
    save_figure(lambda: logits_figure(quantiles, names), output_folder, LOGITS_NAME, ("png", "svg"))

"""FROC curves: found lesions against false ones per case, over thresholds of the confidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nnunet_calib.decisions.froc import CONFIDENCES, RATES, Froc, froc_of_cases
from nnunet_calib.figures.style import COLOURS, in_lines, in_style, new_figure
from nnunet_calib.results.schemas import CALIBRATED, UNCALIBRATED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "Found and false lesions"
CAPTION = (
    "Of the true lesions the share that a predicted one meets, against the predicted ones per case that meet none, if "
    "only lesions of at least some confidence count: the mean (left) or the largest probability of their voxels "
    "(right), calibrated (solid) and as predicted (dotted). The ends of the curves count all lesions."
)


@in_style
def froc_figure(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> Figure:
    """Draw the FROC curves of each structure, by either confidence, before and after calibration.

    Args:
        rows: from `decisions.froc.read_lesions`.
        names: key -> name of each structure.
    """
    figure, axes = new_figure(2.5, 1, 2)
    for ax, confidence, title in zip(axes[0], CONFIDENCES, ("by mean p", "by largest p"), strict=True):
        for i, key in enumerate(names):
            for stage, line in ((UNCALIBRATED, ":"), (CALIBRATED, "-")):
                label = in_lines(names[key]) if stage == CALIBRATED else None
                curve = froc_of_cases(rows, key, stage, confidence)
                draw_froc(ax, curve, linestyle=line, color=COLOURS[i % len(COLOURS)], label=label)
        ax.set_title(title)
    axes[0, 1].set_ylabel("")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def draw_froc(ax: Axes, curve: Froc, **style: Any) -> None:
    """Draw a FROC curve up to the largest of `RATES`; nothing without a true lesion."""
    ax.plot(curve.false_per_case, curve.sensitivity, drawstyle="steps-post", linewidth=0.9, **style)
    seen = [0.1, *(float(np.max(line.get_xdata())) for line in ax.lines)]
    ax.set(xlim=(0, min(RATES[-1], max(seen) * 1.02)), ylim=(0, 1.02))
    ax.set(xlabel="false lesions per case", ylabel="sensitivity")

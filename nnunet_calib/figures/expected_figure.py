"""Expected against true Dice of cross-validated cases, and volumes against the truth (Bland-Altman)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnunet_calib.figures.style import COLOURS, in_lines, in_style, new_figure
from nnunet_calib.io.names import in_figure
from nnunet_calib.results.schemas import CALIBRATED, UNCALIBRATED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "Expected Dice and volume"
CAPTION = (
    "Top: the Dice that the probabilities expect, without a ground truth, against the true one; below the dashed line "
    "the model is worse than it expects. Middle and bottom (Bland-Altman): the expected volume before and after "
    "calibration, and that of the segmentation, as multiples of the true volume, against the mean of both. Solid: the "
    "mean ratio, which is 1 without a bias; dotted: 1.96 standard deviations of its logarithm to either side. Points "
    "that fall or rise from left to right: the error depends on the size of the structure."
)
_MARKERS = ("o", "s", "^", "D", "v")


@in_style
def expected_figure(content: Mapping[str, Any], names: Mapping[str, str]) -> Figure:
    """Draw expected against true Dice before and after calibration, and volumes against the truth.

    Args:
        content: from `decisions.expected_of_folds.read_expected`.
        names: key -> name of each structure.
    """
    figure, axes = new_figure(6.0, 3, 2)
    keys = [*content["dice"]]
    volumes = []
    for (above, below), stage, when in zip(
        axes[:2].T, (UNCALIBRATED, CALIBRATED), ("T = 1", "with temperature"), strict=True
    ):
        draw_expected_dice(above, [_values(content, key, "dice", stage, "expected_dice") for key in keys])
        above.set_title(when)
        volumes.append([_values(content, key, "true_voxels", stage, "expected_voxels") for key in keys])
        below.set_title(f"expected volume,\n{when}")
    volumes.append([_values(content, key, "true_voxels", None, "segmented_voxels") for key in keys])
    agreement = [*axes[1], axes[2, 0]]
    for ax, of_structures in zip(agreement, volumes, strict=True):
        draw_volume_agreement(ax, of_structures)
        ax.sharex(agreement[0])
        ax.sharey(agreement[0])
    axes[2, 0].set_title("segmented volume")
    for ax in axes[1:, 0]:
        ax.set_ylabel("volume / true volume")
    for ax in axes[:2, 1]:
        ax.set_ylabel("")
    axes[2, 1].set_axis_off()
    handles = [
        axes[0, 0].plot([], [], _MARKERS[i % len(_MARKERS)], color=COLOURS[i % len(COLOURS)], markersize=3)[0]
        for i in range(len(keys))
    ]
    labels = [in_lines(in_figure(names[key])) for key in keys]
    axes[2, 1].legend(handles, labels, loc="center", frameon=False)
    return figure


def draw_expected_dice(ax: Axes, structures: Sequence[NDArray[np.float64]]) -> None:
    """Draw expected against true Dice, (2, n) true and expected values for each structure."""
    ax.plot([0, 1], [0, 1], "--", color="0.5", linewidth=0.8)
    _draw_points(ax, structures)
    ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xlabel="true Dice", ylabel="expected Dice", aspect="equal")


def draw_volume_agreement(ax: Axes, structures: Sequence[NDArray[np.float64]]) -> None:
    """Draw the ratio of a volume to the true one against the geometric mean of both, with the limits of agreement.

    Args:
        ax: axes to draw on.
        structures: (2, n) true and other volumes of each structure; those with a zero are left out.
    """
    points = []
    for true, other in structures:
        both = (true > 0) & (other > 0)
        points.append(np.stack([np.sqrt(true[both] * other[both]), other[both] / true[both]]))
    _draw_points(ax, points)
    ax.set(xscale="log", yscale="log", xlabel="mean of both, in voxels")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_minor_formatter("")
    ratios = np.log(np.concatenate([ratio for _, ratio in points])) if points else np.zeros(0)
    if ratios.size:
        mean, reach = ratios.mean(), 1.96 * ratios.std(ddof=ratios.size > 1)
        ax.axhline(np.exp(mean), color="0.3", linewidth=0.8)
        for limit in (mean - reach, mean + reach):
            ax.axhline(np.exp(limit), color="0.3", linewidth=0.8, linestyle=":")


def _draw_points(ax: Axes, structures: Sequence[NDArray[np.float64]]) -> None:
    for i, (x, y) in enumerate(structures):
        colour, marker = COLOURS[i % len(COLOURS)], _MARKERS[i % len(_MARKERS)]
        ax.plot(x, y, marker, color=colour, markersize=2.5, markerfacecolor="none", markeredgewidth=0.6)


def _values(content: Mapping[str, Any], key: str, true: str, stage: str | None, name: str) -> NDArray[np.float64]:
    """Return (2, n): true values of a structure in the cases that have both, and what is to be compared."""
    structures = [row["structures"][key] for row in content["metric_per_case"]]
    values = [(s[true], (s if stage is None else s[stage])[name]) for s in structures]
    known = [pair for pair in values if None not in pair]
    return np.array(known, np.float64).reshape(-1, 2).T

"""Diagrams of one head on given axes, drawn from bins alone; matplotlib is imported only when one is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nnunet_calib.figures.style import BARS, FILLED, GAP, LINE
from nnunet_calib.metrics.errors import NUM_BINS, ReliabilityCurve
from nnunet_calib.metrics.ranking import RiskCoverage

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage


def _square(ax: Axes, ylabel: str) -> None:
    ax.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle="--", zorder=3)
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="predicted probability", ylabel=ylabel)
    ax.set(xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])


def draw_reliability(
    ax: Axes,
    curve: ReliabilityCurve,
    row: int,
    title: str,
    interval: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
) -> None:
    """Draw the reliability diagram of one head, with a strip above it for the number of voxels in each bin.

    Bars end at the observed frequency; the hatched part reaches to the mean probability of the bin. The curve can be
    that of one case or of pooled cases.

    Args:
        ax: axes to draw on.
        curve: bins, from `reliability_curve`.
        row: index of the head; -1 is the top label.
        title: title above the diagram.
        interval: lower and upper limits (heads + 1, M) of the observed frequency, from `ratio_intervals` over cases;
            drawn as whiskers unless NaN.
    """
    counts, confidence, frequency = (x[row] for x in (curve.counts, curve.confidence, curve.frequency))
    edges = np.linspace(0, 1, len(counts) + 1)
    filled = counts > 0
    width = edges[1]
    left, observed, expected = edges[:-1][filled], frequency[filled], confidence[filled]
    ax.bar(left, observed, width, align="edge", color=BARS, edgecolor="white", linewidth=0.3, label="observed")
    ax.bar(
        left,
        expected - observed,
        width,
        bottom=observed,
        align="edge",
        color="none",
        edgecolor=GAP,
        linewidth=0.6,
        hatch="//////",
        label="gap to the mean probability",
    )
    if interval is not None:
        low, high = (limit[row][filled] for limit in interval)
        ax.vlines(left + width / 2, low, high, color="black", linewidth=1, zorder=4, label="95 % interval over cases")
    _square(ax, "observed frequency")
    strip = ax.inset_axes((0, 1.08, 1, 0.2))
    strip.bar(left, counts[filled], width, align="edge", color=FILLED, edgecolor="white", linewidth=0.3)
    power = int(np.ceil(np.log10(max(counts.sum(), 10))))
    strip.set(xlim=(0, 1), yscale="log", ylim=(0.5, 10.0**power), xticks=[])
    strip.set_yticks([1, 10.0**power], ["1", f"$10^{{{power}}}$"])
    strip.minorticks_off()
    strip.tick_params(labelsize="small", width=0.5, length=2, pad=1)
    strip.set_ylabel("voxels", fontsize="small", labelpad=2)
    ax.set_title(title, fontsize="medium")


def draw_dataset_reliability(ax: Axes, curves: Sequence[ReliabilityCurve], row: int, title: str) -> AxesImage:
    """Draw the dataset reliability histogram of one head: cases by predicted and observed frequency.

    Each case adds one count per non-empty bin, at the frequency observed there. The counts of a calibrated model gather
    on the diagonal, and their spread shows what pooling all voxels hides (Barfoot et al. 2024).

    Args:
        ax: axes to draw on.
        curves: one curve per case, from `reliability_curve`; leave out cases without the class.
        row: index of the head; -1 is the top label.
        title: title above the diagram.

    Returns:
        The drawn shares of the cases, for a colour bar.
    """
    from matplotlib.colors import PowerNorm

    bins = curves[0].counts.shape[1] if curves else NUM_BINS
    joint = np.zeros((bins, bins))
    for curve in curves:
        filled = np.flatnonzero(curve.counts[row] > 0)
        observed = np.minimum((curve.frequency[row][filled] * bins).astype(int), bins - 1)
        joint[observed, filled] += 1
    share = np.ma.masked_equal(joint / max(len(curves), 1), 0)
    # most shares are small: a square root separates them; light to dark, so that empty cells stay white
    image = ax.imshow(share, origin="lower", extent=(0, 1, 0, 1), cmap="YlGnBu", norm=PowerNorm(0.5, 0, 1))
    _square(ax, "observed frequency")
    ax.set_title(title, fontsize="medium")
    return image


def draw_reliability_boxes(ax: Axes, curves: Sequence[ReliabilityCurve], row: int, title: str) -> None:
    """Draw the box-plot reliability of one head: the spread over cases of the observed frequency in each bin.

    Boxes reach from the first to the third quartile, with the median as a line. Whiskers reach to the furthest case
    within 1.5 times the box's height, and dots are the cases beyond. Each case counts once, however many voxels it has
    in a bin.

    Args:
        ax: axes to draw on.
        curves: one curve per case, from `reliability_curve`; leave out cases without the class.
        row: index of the head; -1 is the top label.
        title: title above the diagram.
    """
    bins = curves[0].counts.shape[1] if curves else NUM_BINS
    spread, middles = [], []
    for m in range(bins):
        values = [curve.frequency[row][m] for curve in curves if curve.counts[row][m] > 0]
        if values:
            spread.append(values)
            middles.append((m + 0.5) / bins)
    if spread:
        ax.boxplot(
            spread,
            positions=middles,
            widths=0.7 / bins,
            manage_ticks=False,
            patch_artist=True,
            boxprops={"facecolor": BARS, "linewidth": 0.6},
            whiskerprops={"linewidth": 0.6},
            capprops={"linewidth": 0.6},
            medianprops={"color": "black", "linewidth": 1.4},
            flierprops={"marker": ".", "markersize": 2.5, "markeredgecolor": GAP, "markerfacecolor": GAP},
        )
    _square(ax, "observed frequency")
    ax.set_title(title, fontsize="medium")


def draw_confidence(
    ax: Axes, before: ReliabilityCurve, after: ReliabilityCurve, row: int, title: str, label: str = "with T"
) -> None:
    """Draw the confidence histogram of one head: the share of voxels in each bin, before and after calibration.

    Args:
        ax: axes to draw on.
        before: bins before calibration, from `reliability_curve`.
        after: bins of the same voxels after calibration.
        row: index of the head; -1 is the top label.
        title: title above the diagram.
        label: legend entry for the voxels after calibration.
    """
    for curve, colour, name in ((before, FILLED, "T = 1"), (after, LINE, label)):
        counts = curve.counts[row]
        share = counts / max(counts.sum(), 1)
        edges = np.linspace(0, 1, len(counts) + 1)
        ax.stairs(share, edges, baseline=1e-9, fill=curve is before, color=colour, linewidth=1.6, label=name)
    ax.set(xlim=(0, 1), yscale="log", ylim=(1e-6, 1), xlabel="predicted probability", ylabel="share of the voxels")
    ax.set_title(title, fontsize="medium")


def draw_risk_coverage(ax: Axes, before: RiskCoverage, after: RiskCoverage, title: str, label: str = "with T") -> None:
    """Draw risk-coverage curves: the share of wrong voxels among those kept, before and after calibration.

    The voxels of the highest fine bin are tied: up to their share the curve is flat, and the axis begins there.

    Args:
        ax: axes to draw on.
        before: curve before calibration, from `risk_coverage`; may be empty.
        after: curve of the same voxels after calibration.
        title: title above the diagram.
        label: legend entry for the voxels after calibration.
    """
    for curve, colour, width, name in ((before, FILLED, 2.4, "T = 1"), (after, LINE, 1.2, label)):
        coverage, risk = (np.concatenate([x[:1], x]) for x in curve)
        coverage[:1] = 0
        ax.plot(coverage, risk, color=colour, linewidth=width, label=name)
    tied = min((float(curve.coverage[0]) for curve in (before, after) if len(curve.coverage) > 1), default=0.0)
    ax.set(xlim=(tied, 1), xlabel="share of the voxels kept, the most confident first", ylabel="share of them wrong")
    ax.set_ylim(0, None)
    ax.locator_params(axis="x", nbins=6)
    ax.set_title(title, fontsize="medium")


def draw_nll(ax: Axes, temperatures: ArrayLike, nll: ArrayLike, optimum: float | None, standard_error: float) -> None:
    """Draw the NLL against temperature, with the optimum and the interval of two standard errors around it.

    Args:
        ax: axes to draw on.
        temperatures: rising temperatures above 0.
        nll: mean negative log-likelihood per voxel at each temperature, in nats, from `nll_at`.
        optimum: the fitted temperature; None if none was fitted.
        standard_error: standard error of the fitted temperature; infinity draws no interval.
    """
    temperatures = np.asarray(temperatures)
    ax.plot(temperatures, nll, color=LINE, linewidth=1.6)
    ax.axvline(1, color="0.4", linewidth=0.8, linestyle="--", label="T = 1")
    if optimum is not None:
        label = f"T = {optimum:.3f}"
        if np.isfinite(standard_error):
            ax.axvspan(optimum - 2 * standard_error, optimum + 2 * standard_error, color=BARS, alpha=0.4, linewidth=0)
            label += f" ± {2 * standard_error:.3f}"
        ax.axvline(optimum, color=GAP, linewidth=1.4, label=label)
    ax.set(xscale="log", xlim=(temperatures[0], temperatures[-1]), xlabel="temperature T, by which logits are divided")
    ax.set_ylabel("NLL in nats per voxel")
    ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10) if temperatures[0] <= t <= temperatures[-1]]
    ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
    ax.minorticks_off()
    ax.legend()

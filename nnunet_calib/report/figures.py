"""Figures from statistics alone; matplotlib is imported only when one is drawn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nnunet_calib.files import replaced_when_complete
from nnunet_calib.metrics import NUM_BINS, ReliabilityCurve, calibration_errors, reliability_curve
from nnunet_calib.statistics import CaseStatistics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

# Two hues that stay apart for colour-blind readers and in grey print (Okabe and Ito).
BARS, GAP = "#56B4E9", "#D55E00"


def _square(ax: Axes, ylabel: str) -> None:
    ax.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle="--", zorder=3)
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="predicted probability", ylabel=ylabel)
    ax.set(xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])


def draw_reliability(ax: Axes, curve: ReliabilityCurve, row: int, title: str) -> None:
    """Reliability diagram of one head, with the share of the voxels in each bin in a strip above it.

    Bars stand at the observed frequency; the hatched part reaches to the mean probability of the bin.

    Args:
        ax: where to draw.
        curve: bins, from `reliability_curve`.
        row: which head; -1 is the top label.
        title: above the diagram.
    """
    counts, confidence, frequency = (x[row] for x in (curve.counts, curve.confidence, curve.frequency))
    edges = np.linspace(0, 1, len(counts) + 1)
    filled = counts > 0
    width = edges[1]
    left, observed, expected = edges[:-1][filled], frequency[filled], confidence[filled]
    ax.bar(left, observed, width, align="edge", color=BARS, edgecolor="white", linewidth=0.4, label="observed")
    ax.bar(
        left, expected - observed, width, bottom=observed, align="edge", color="none", edgecolor=GAP, linewidth=0.7,
        hatch="////", label="gap to mean probability",
    )
    _square(ax, "observed frequency")
    strip = ax.inset_axes((0, 1.06, 1, 0.16))
    strip.bar(left, counts[filled] / max(counts.sum(), 1), width, align="edge", color="0.6", edgecolor="white")
    strip.set(xlim=(0, 1), yscale="log", ylim=(1e-6, 1), xticks=[], yticks=[1e-4, 1])
    strip.minorticks_off()
    strip.tick_params(labelsize=6)
    strip.set_ylabel("voxels", fontsize=7)
    ax.set_title(title, fontsize=9, pad=36)


def draw_dataset_reliability(ax: Axes, curves: Sequence[ReliabilityCurve], row: int, title: str) -> AxesImage:
    """Dataset reliability histogram of one head: over cases, the joint histogram of predicted and observed frequency.

    Each case adds one count per bin that holds a voxel, at the frequency it observed there: a calibrated model gathers
    on the diagonal, and the spread shows what pooling all voxels hides (Barfoot et al. 2024).

    Args:
        ax: where to draw.
        curves: one per case, from `reliability_curve`; cases without the class must be left out.
        row: which head; -1 is the top label.
        title: above the diagram.

    Returns:
        The image, for a colour bar; its values are shares of the cases.
    """
    from matplotlib.colors import PowerNorm

    bins = curves[0].counts.shape[1] if curves else NUM_BINS
    joint = np.zeros((bins, bins))
    for curve in curves:
        filled = np.flatnonzero(curve.counts[row] > 0)
        observed = np.minimum((curve.frequency[row][filled] * bins).astype(int), bins - 1)
        joint[observed, filled] += 1
    share = np.ma.masked_equal(joint / max(len(curves), 1), 0)
    # most shares are small: a square root keeps them apart; from light to dark, empty cells stay white
    image = ax.imshow(share, origin="lower", extent=(0, 1, 0, 1), cmap="YlGnBu", norm=PowerNorm(0.5, 0, 1))
    _square(ax, "observed frequency")
    ax.set_title(title, fontsize=8)
    return image


def _panels(columns: int, size: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    """Two rows of panels on a figure of their own, which no window system and no global state of pyplot knows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size[0] * columns, 2 * size[1]), layout="constrained")
    return figure, figure.subplots(2, columns, squeeze=False)


def reliability_figure(
    before: Sequence[CaseStatistics], after: Sequence[CaseStatistics], temperature: float, names: Sequence[str]
) -> Figure:
    """Pooled reliability diagrams of every head and the top label, before (above) and after temperature (below).

    Args:
        before: the cases of a fold.
        after: the same cases, each with a temperature fitted without it.
        temperature: the fold's, for the titles.
        names: of the heads, and of the top label.
    """
    figure, axes = _panels(len(names), (2.4, 3.3))
    for line, cases, when in zip(axes, (before, after), ("T = 1", f"T ≈ {temperature:.2f}"), strict=True):
        pooled = CaseStatistics.merge(cases)
        curve, errors = reliability_curve(pooled), calibration_errors(pooled)
        for row, (ax, name) in enumerate(zip(line, names, strict=True)):
            top = row == len(names) - 1
            ece, ace = (float(errors[f"top_label_{m}"] if top else errors[m][row]) for m in ("ece", "ace"))
            said = "in no case" if np.isnan(ace) else f"ACE {ace:.3f}, ECE {ece:.4f}"
            draw_reliability(ax, curve, row, f"{name}, {when}\n{said}")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    figure.suptitle(f"Reliability, voxels of {len(before)} cases pooled, {NUM_BINS} bins", fontsize=10)
    return figure


def dataset_reliability_figure(
    before: Sequence[CaseStatistics], after: Sequence[CaseStatistics], temperature: float, names: Sequence[str]
) -> Figure:
    """Dataset reliability histograms of every head and the top label; arguments as `reliability_figure`."""
    figure, axes = _panels(len(names), (2.4, 2.6))
    present = [s.histograms.positives.sum((0, 2)) > 0 for s in before]
    for line, cases, when in zip(axes, (before, after), ("T = 1", f"T ≈ {temperature:.2f}"), strict=True):
        curves = [reliability_curve(case) for case in cases]
        for row, (ax, name) in enumerate(zip(line, names, strict=True)):
            kept = [curve for curve, has in zip(curves, present, strict=True) if has[row]]
            image = draw_dataset_reliability(ax, kept, row, f"{name}, {when}, {len(kept)} cases")
    figure.colorbar(image, ax=axes, shrink=0.6, label="share of cases")
    figure.suptitle(f"Dataset reliability histogram: one count per case and bin, {NUM_BINS} bins", fontsize=10)
    return figure


def draw_fold(calibration_folder: Path) -> None:
    """Write reliability.png and dataset_reliability_histogram.png from the files of a fold or of merged folds."""
    summary = json.loads((calibration_folder / "summary.json").read_text(encoding="utf-8"))
    temperature = summary["temperature"]["temperature"]
    names = [*summary["heads"]["names"], "top label"]
    rows = summary["metric_per_case"]
    before, after = [], []
    for row in rows:
        folder = calibration_folder
        if "fold" in row:  # merged folds: the cases stay where they are
            folder = folder.parents[1] / f"fold_{row['fold']}" / "validation" / "calibration"
        case = CaseStatistics.load(folder / "cases" / f"{row['case']}.npz")
        # a fold of one case has no temperature fitted without it
        scaled = case.with_temperature(row["temperature"] or temperature)
        before.append(case.without_voxels())
        after.append(scaled.without_voxels())
    from matplotlib import style

    for draw, name in (
        (reliability_figure, "reliability.png"),
        (dataset_reliability_figure, "dataset_reliability_histogram.png"),
    ):
        # nnU-Net's logger leaves seaborn's settings with fonts 2.5 times as large in the training process
        with style.context("default"), replaced_when_complete(calibration_folder / name) as temporary:
            draw(before, after, temperature, names).savefig(temporary, dpi=150, bbox_inches="tight")

"""Whole figures of a fold or of merged folds; matplotlib is imported only when one is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nnunet_calib.files import replaced_when_complete
from nnunet_calib.metrics import NUM_BINS, ReliabilityCurve, calibration_errors, reliability_curve
from nnunet_calib.report.diagrams import (
    draw_confidence,
    draw_dataset_reliability,
    draw_nll,
    draw_reliability,
    draw_reliability_boxes,
)
from nnunet_calib.report.results import Results
from nnunet_calib.significance import ratio_intervals
from nnunet_calib.statistics import CaseStatistics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Cases = Sequence[CaseStatistics]


def _figure(width: float, height: float) -> Figure:
    """A figure of its own, which no window system and no global state of pyplot knows."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _panels(columns: int, size: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    """Two rows of panels."""
    figure = _figure(size[0] * columns, 2 * size[1])
    return figure, figure.subplots(2, columns, squeeze=False)


def _when(temperature: float) -> tuple[str, str]:
    """What the upper and the lower row of panels show."""
    return "T = 1", f"T ≈ {temperature:.2f}"


def reliability_figure(before: Cases, after: Cases, temperature: float, names: Sequence[str]) -> Figure:
    """Pooled reliability diagrams of every head and the top label, before (above) and after temperature (below).

    Args:
        before: the cases of a fold.
        after: the same cases, each with a temperature fitted without it.
        temperature: the fold's, for the titles.
        names: of the heads, and of the top label.
    """
    figure, axes = _panels(len(names), (2.4, 3.3))
    for line, cases, when in zip(axes, (before, after), _when(temperature), strict=True):
        pooled = CaseStatistics.merge(cases)
        curve, errors = reliability_curve(pooled), calibration_errors(pooled)
        interval = _frequency_interval([reliability_curve(case) for case in cases])
        for row, (ax, name) in enumerate(zip(line, names, strict=True)):
            top = row == len(names) - 1
            ece, ace = (float(errors[f"top_label_{m}"] if top else errors[m][row]) for m in ("ece", "ace"))
            said = "in no case" if np.isnan(ace) else f"ACE {ace:.3f}, ECE {ece:.4f}"
            draw_reliability(ax, curve, row, f"{name}, {when}\n{said}", interval)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    figure.suptitle(f"Reliability, voxels of {len(before)} cases pooled, {NUM_BINS} bins", fontsize=10)
    return figure


def _frequency_interval(curves: Sequence[ReliabilityCurve]) -> tuple[np.ndarray, np.ndarray]:
    """Bootstrap limits of the pooled observed frequency in each bin."""
    counts = np.stack([curve.counts for curve in curves]).astype(np.float64)
    positives = np.stack([np.nan_to_num(curve.frequency) for curve in curves]) * counts
    return ratio_intervals(positives, counts)


def _present(before: Cases, cases: Cases) -> list[list[ReliabilityCurve]]:
    """For each head and the top label, curves of the cases that have the class."""
    has = np.array([case.histograms.positives.sum((0, 2)) > 0 for case in before])
    curves = [reliability_curve(case) for case in cases]
    return [list(compress(curves, there)) for there in has.T]


def dataset_reliability_figure(before: Cases, after: Cases, temperature: float, names: Sequence[str]) -> Figure:
    """Dataset reliability histograms of every head and the top label; arguments as `reliability_figure`."""
    figure, axes = _panels(len(names), (2.4, 2.6))
    for line, cases, when in zip(axes, (before, after), _when(temperature), strict=True):
        for row, (ax, name, curves) in enumerate(zip(line, names, _present(before, cases), strict=True)):
            image = draw_dataset_reliability(ax, curves, row, f"{name}, {when}, {len(curves)} cases")
    figure.colorbar(image, ax=axes, shrink=0.6, label="share of cases")
    figure.suptitle(f"Dataset reliability histogram: one count per case and bin, {NUM_BINS} bins", fontsize=10)
    return figure


def boxes_figure(before: Cases, after: Cases, temperature: float, names: Sequence[str]) -> Figure:
    """Box-plot reliability of every head and the top label; arguments as `reliability_figure`."""
    figure, axes = _panels(len(names), (2.4, 2.6))
    for line, cases, when in zip(axes, (before, after), _when(temperature), strict=True):
        for row, (ax, name, curves) in enumerate(zip(line, names, _present(before, cases), strict=True)):
            draw_reliability_boxes(ax, curves, row, f"{name}, {when}, {len(curves)} cases")
    figure.suptitle("Spread over cases of the frequency observed in each bin: quartiles, median, outliers", fontsize=10)
    return figure


def confidence_figure(before: Cases, after: Cases, names: Sequence[str]) -> Figure:
    """Confidence histograms of every head and the top label; arguments as `reliability_figure`."""
    figure = _figure(2.4 * len(names), 2.6)
    axes = figure.subplots(1, len(names), squeeze=False)[0]
    curves = [reliability_curve(CaseStatistics.merge(cases)) for cases in (before, after)]
    for row, (ax, name) in enumerate(zip(axes, names, strict=True)):
        draw_confidence(ax, curves[0], curves[1], row, name)
    axes[0].legend(fontsize=8)
    figure.suptitle(f"How the model spreads its probabilities: voxels of {len(before)} cases", fontsize=10)
    return figure


def nll_figure(results: Results) -> Figure:
    """NLL of all cases against temperature."""
    fit = results.summary["temperature"]
    error = fit.get("standard_error")
    figure = _figure(4.2, 3)
    ax = figure.subplots()
    draw_nll(ax, results.temperatures, results.nll, fit["temperature"], np.inf if error is None else error)
    ax.set_title(f"NLL of {len(results.cases)} cases", fontsize=10)
    return figure


def figures(results: Results) -> dict[str, Callable[[], Figure]]:
    """File name without ending -> what draws the figure of that name."""
    before, after = [case.before for case in results.cases], [case.after for case in results.cases]
    pair = (before, after, results.temperature, results.names)
    return {
        "reliability": lambda: reliability_figure(*pair),
        "dataset_reliability_histogram": lambda: dataset_reliability_figure(*pair),
        "reliability_boxes": lambda: boxes_figure(*pair),
        "confidence": lambda: confidence_figure(before, after, results.names),
        "nll": lambda: nll_figure(results),
    }


def save_figure(draw: Callable[[], Figure], *paths: Path) -> None:
    """Draw a figure, with the settings of a fresh matplotlib, into files whose endings name the formats."""
    from matplotlib import rc_context, style

    # nnU-Net's logger leaves seaborn's settings with fonts 2.5 times as large in the training process
    with style.context("default"), rc_context({"svg.hashsalt": "nnunet_calib", "hatch.linewidth": 0.6}):
        figure = draw()
        for path in paths:
            # the date would make the same figure another file each time
            metadata = {"Date": None} if path.suffix == ".svg" else {}
            with replaced_when_complete(path) as temporary:
                figure.savefig(temporary, format=path.suffix[1:], dpi=150, bbox_inches="tight", metadata=metadata)


def draw_fold(calibration_folder: Path) -> None:
    """Write all figures, as PNG and SVG, from the files of a fold or of merged folds."""
    for name, draw in figures(Results.read(calibration_folder)).items():
        save_figure(draw, *(calibration_folder / f"{name}.{ending}" for ending in ("png", "svg")))

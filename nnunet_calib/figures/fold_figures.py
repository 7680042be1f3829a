"""Figures of a fold or of merged folds, one column wide; matplotlib is imported only when one is drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nnunet_calib.decisions.expected_of_folds import read_expected
from nnunet_calib.decisions.froc import read_lesions
from nnunet_calib.figures.case_figures import ImageOf, no_image, reliability_of_cases_figure, worst_cases_figure
from nnunet_calib.figures.diagrams import (
    draw_confidence,
    draw_dataset_reliability,
    draw_nll,
    draw_reliability,
    draw_reliability_boxes,
    draw_risk_coverage,
)
from nnunet_calib.figures.drawn_results import DrawnCases, Results
from nnunet_calib.figures.expected_figure import expected_figure
from nnunet_calib.figures.froc_figure import froc_figure
from nnunet_calib.figures.style import colour_bar, in_lines, in_style, make_room, new_figure, outer_labels, save_figure
from nnunet_calib.metrics.errors import NUM_BINS, ReliabilityCurve, calibration_errors, reliability_curve
from nnunet_calib.metrics.ranking import ranking_errors, risk_coverage
from nnunet_calib.metrics.significance import ratio_intervals
from nnunet_calib.posthoc import IDENTITY, calibrator_of
from nnunet_calib.posthoc.calibrator import Calibrator
from nnunet_calib.results.layout import EXPECTED_FIGURE, LESIONS_FIGURE

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _when(calibrator: Calibrator | float) -> tuple[str, str]:
    """Return the titles of the left and right columns of panels; each case has a calibrator close to this one."""
    words = (IDENTITY.words(".0f"), calibrator_of(calibrator).words(".2f").replace("=", "≈"))
    before, after = (text.replace(" ≈ ", "\xa0≈\xa0").replace(" = ", "\xa0=\xa0") for text in words)  # keep on one line
    return before, after


@in_style
def reliability_figure(
    before: DrawnCases, after: DrawnCases, calibrator: Calibrator | float, names: Sequence[str]
) -> Figure:
    """Draw pooled reliability diagrams of each head and the top label, before (left) and after calibration (right).

    Args:
        before: cases of a fold before calibration.
        after: the same cases after calibration, each with a calibrator fitted without it.
        calibrator: the fold's calibrator, for the titles; a number is a temperature.
        names: names of the heads and of the top label.
    """
    figure, axes = new_figure(2.12 * len(names) + 0.8, len(names), 2)
    for column, cases, when in zip(axes.T, (before, after), _when(calibrator), strict=True):
        curve, errors = reliability_curve(cases.pooled), calibration_errors(cases.pooled)
        interval = frequency_interval(cases.curves)
        for row, (ax, name) in enumerate(zip(column, names, strict=True)):
            top = row == len(names) - 1
            ece, ace = (float(errors[f"top_label_{m}"] if top else errors[m][row]) for m in ("ece", "ace"))
            said = "in no case" if np.isnan(ace) else f"ACE {ace:.3f}, ECE {ece:.4f}"
            draw_reliability(ax, curve, row, f"{in_lines(f'{name}, {when}')}\n{said}", interval)
    outer_labels(axes)
    make_room(figure, axes, 2)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.suptitle(f"Reliability, voxels of {len(before)} cases pooled,\n{NUM_BINS} bins of equal width")
    return figure


def frequency_interval(curves: Sequence[ReliabilityCurve]) -> tuple[np.ndarray, np.ndarray]:
    """Return bootstrap limits of the pooled observed frequency in each bin."""
    counts = np.stack([curve.counts for curve in curves]).astype(np.float64)
    positives = np.stack([np.nan_to_num(curve.frequency) for curve in curves]) * counts
    return ratio_intervals(positives, counts)


@in_style
def dataset_reliability_figure(
    before: DrawnCases, after: DrawnCases, calibrator: Calibrator | float, names: Sequence[str]
) -> Figure:
    """Draw dataset reliability histograms of every head and the top label; see `reliability_figure`."""
    figure, axes = new_figure(1.8 * len(names) + 0.9, len(names), 2)
    for column, cases, when in zip(axes.T, (before, after), _when(calibrator), strict=True):
        for row, (ax, name) in enumerate(zip(column, names, strict=True)):
            curves = cases.having(row, before.present)
            image = draw_dataset_reliability(ax, curves, row, in_lines(f"{name}, {when},\n{len(curves)} cases"))
    outer_labels(axes)
    make_room(figure, axes, 2)
    colour_bar(figure, image, axes, "share of the cases that have the class")
    figure.suptitle(f"Dataset reliability histogram:\none count per case and bin, {NUM_BINS} bins")
    return figure


@in_style
def boxes_figure(before: DrawnCases, after: DrawnCases, calibrator: Calibrator | float, names: Sequence[str]) -> Figure:
    """Draw the box-plot reliability of every head and the top label; see `reliability_figure`."""
    figure, axes = new_figure(1.8 * len(names) + 0.6, len(names), 2)
    for column, cases, when in zip(axes.T, (before, after), _when(calibrator), strict=True):
        for row, (ax, name) in enumerate(zip(column, names, strict=True)):
            curves = cases.having(row, before.present)
            draw_reliability_boxes(ax, curves, row, in_lines(f"{name}, {when},\n{len(curves)} cases"))
    outer_labels(axes)
    make_room(figure, axes, 2)
    figure.suptitle("Spread over cases of the frequency observed\nin each bin: quartiles, median, outliers")
    return figure


@in_style
def confidence_figure(
    before: DrawnCases, after: DrawnCases, names: Sequence[str], calibrator: Calibrator = IDENTITY
) -> Figure:
    """Draw confidence histograms of every head and the top label; see `reliability_figure`."""
    rows = -(-len(names) // 2)
    figure, axes = new_figure(1.5 * rows + 0.6, rows, 2)
    curves = [reliability_curve(cases.pooled) for cases in (before, after)]
    for row, (ax, name) in enumerate(zip(axes.flat, names, strict=False)):
        draw_confidence(ax, curves[0], curves[1], row, in_lines(name), f"with {calibrator.short}")
    for ax in axes.flat[len(names) :]:
        ax.remove()
    for ax in axes[:, 1]:
        ax.set_ylabel("")
    make_room(figure, axes, 1)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.suptitle(f"Predicted probabilities of the voxels of {len(before)} cases")
    return figure


@in_style
def risk_coverage_figure(before: DrawnCases, after: DrawnCases, calibrator: Calibrator = IDENTITY) -> Figure:
    """Draw risk-coverage curves of the whole image and of the boundary; see `reliability_figure`."""
    figure, axes = new_figure(4.2, 2)
    for ax, scope, name in zip(axes[:, 0], ("image", "boundary"), ("Whole image", "Boundary"), strict=True):
        sums = [cases.pooled.histograms.scope(scope) for cases in (before, after)]
        errors = [ranking_errors(h, regions=before.pooled.regions) for h in sums]
        said = (
            f"{label} {errors[0][metric]:.4f}, {errors[1][metric]:.4f} with {calibrator.short}"
            for metric, label in (("aurc", "AURC"), ("confidence_auroc", "AUROC"))
        )
        title = "\n".join([name, *said]) if sums[0].voxels else f"{name}: no voxels"
        draw_risk_coverage(ax, risk_coverage(sums[0]), risk_coverage(sums[1]), title, f"with {calibrator.short}")
    outer_labels(axes)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.suptitle(f"Risk against coverage, voxels of {len(before)} cases pooled")
    return figure


@in_style
def nll_figure(results: Results) -> Figure:
    """Draw the NLL of all cases against temperature."""
    fit = results.summary["temperature"]
    error = fit.get("standard_error")
    figure, axes = new_figure(2.4)
    optimum = results.calibrator.to_json().get("temperature")
    draw_nll(axes[0, 0], results.temperatures, results.nll, optimum, np.inf if error is None else error)
    axes[0, 0].set_title(f"NLL of {len(results.cases)} cases, ± two standard errors")
    return figure


def _stages(results: Results) -> tuple[DrawnCases, DrawnCases, Calibrator, list[str]]:
    return results.before, results.after, results.calibrator, results.names


def _of_cases(results: Results, image_of: ImageOf) -> Figure:
    return reliability_of_cases_figure(results.cases, results.summary["heads"]["keys"], results.names)


def _worst_cases(results: Results, image_of: ImageOf) -> Figure:
    heads = results.summary["heads"]
    return worst_cases_figure(
        results.cases, heads["names"], regions=heads["regions"], ignore_label=heads["ignore_label"], image_of=image_of
    )


@dataclass(frozen=True)
class FigureSpec:
    """A figure of a fold or of merged folds.

    Attributes:
        name: name of its files without the ending, one of `results.layout.FIGURES`.
        title: title above it on a page.
        caption: caption below the title, with the calibrator's {effect}.
        draw: function that draws it, given the results and the function that returns images.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[Results, ImageOf], Figure]


FIGURES = (
    FigureSpec(
        "reliability",
        "Reliability",
        "Of the voxels that get a probability within a bin, how many belong to the class. Blue bars below the dashed "
        "line: the model is too sure (hatched: the gap); on the line: its probabilities can be taken at their word. "
        "Above each diagram, the number of voxels in each bin: a bar of few voxels says little.",
        lambda results, _: reliability_figure(*_stages(results)),
    ),
    FigureSpec(
        "dataset_reliability_histogram",
        "Dataset reliability histogram",
        "Each case counts once in each bin it has voxels in. Pooled diagrams can look calibrated while cases are not: "
        "here each case would have to lie on the diagonal.",
        lambda results, _: dataset_reliability_figure(*_stages(results)),
    ),
    FigureSpec(
        "reliability_boxes",
        "Box-plot reliability",
        "The same spread as quartiles: half of the cases lie within a box, its line is the median case. Boxes around "
        "the dashed line: a typical case is calibrated; long boxes: the cases differ, and one temperature cannot suit "
        "all.",
        lambda results, _: boxes_figure(*_stages(results)),
    ),
    FigureSpec(
        "reliability_of_cases",
        "Reliability of single cases",
        "Bars above the line in one case and below it in another cancel out where voxels are pooled. A "
        "temperature is the same for all cases, and can help one while it harms another.",
        _of_cases,
    ),
    FigureSpec(
        "confidence",
        "Confidence histogram",
        "How often each probability is given. Nearly all at 0 and 1: the model hardly ever says that it is unsure. "
        "{effect}",
        lambda results, _: confidence_figure(results.before, results.after, results.names, results.calibrator),
    ),
    FigureSpec(
        "risk_coverage",
        "Risk against coverage",
        "How many voxels are wrong if only the most confident ones are kept. A curve that stays low and rises at the "
        "end means that the model is unsure where it is wrong. A temperature changes it only as far as it changes the "
        "order of the voxels.",
        lambda results, _: risk_coverage_figure(results.before, results.after, results.calibrator),
    ),
    FigureSpec(
        "nll",
        "NLL against temperature",
        "The fitted temperature is the minimum; the band is two standard errors wide on each side. T = 1 outside of "
        "the band: the model needs calibration. A narrow band: these cases determine T well.",
        lambda results, _: nll_figure(results),
    ),
    FigureSpec(
        "worst_cases",
        "Worst cases",
        "The cases whose probabilities are off most: outlines tell where the segmentation is right and wrong, colours "
        "how sure the model is of it. A sure colour at a wrong place is what a temperature cannot repair.",
        _worst_cases,
    ),
)


def draw_fold(calibration_folder: Path, image_of: ImageOf = no_image) -> None:
    """Write all figures of a fold or of merged folds, as PNG, SVG and PDF.

    Args:
        calibration_folder: the calibration folder, with summary.json.
        image_of: returns the image behind a case's slice, or None to show the label map.
    """
    results = Results.read(calibration_folder)
    for spec in FIGURES:
        save_figure(partial(spec.draw, results, image_of), calibration_folder, spec.name)
    if (expected := read_expected(calibration_folder)) is not None:
        save_figure(partial(expected_figure, expected, results.names_by_key), calibration_folder, EXPECTED_FIGURE)
    if (lesions := read_lesions(calibration_folder)) is not None:
        save_figure(partial(froc_figure, lesions, results.foreground_names), calibration_folder, LESIONS_FIGURE)

"""Figures of single cases: slices of the worst cases, and reliability diagrams.

matplotlib is imported only when a figure is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnunet_calib.figures.case_pictures import COLOUR_MAP, OUTLINES, CasePicture, Regions
from nnunet_calib.figures.diagrams import draw_reliability
from nnunet_calib.figures.drawn_results import ReportedCase, worst_cases
from nnunet_calib.figures.style import COLUMN, colour_bar, in_lines, in_style, make_room, new_figure, outer_labels
from nnunet_calib.metrics.errors import NUM_BINS, calibration_errors, reliability_curve
from nnunet_calib.posthoc import IDENTITY
from nnunet_calib.results.error_tree import case_error
from nnunet_calib.results.heads import BACKGROUND
from nnunet_calib.results.schemas import STAGES, UNCALIBRATED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

# A function that returns the image of a case, (channels, *spatial) on the grid of its label map, or None.
ImageOf = Callable[[str], NDArray[Any] | None]

_WIDTH = 16  # characters that fit above a third of a column


def no_image(case: str) -> None:
    """Return None, so that pictures show the label map."""


def draw_case(axes: Sequence[Axes], picture: CasePicture) -> AxesImage:
    """Draw the image with outlines, and the probability before and after calibration, on three axes.

    Returns:
        The drawn probability, for a colour bar.
    """
    panels = ((picture.background, "gray"), (picture.before, COLOUR_MAP), (picture.after, COLOUR_MAP))
    for ax, (pixels, colours) in zip(axes, panels, strict=True):
        drawn = ax.imshow(pixels, cmap=colours, vmin=0, vmax=1, aspect=picture.aspect, interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        for mask, (_, colour, line) in zip(picture.outcome, OUTLINES, strict=True):
            if mask.any() and min(mask.shape) > 1:
                ax.contour(mask, levels=[0.5], colors=colour, linestyles=line, linewidths=0.9)
    return drawn


@in_style
def worst_cases_figure(
    cases: Sequence[ReportedCase],
    names: Sequence[str],
    *,
    regions: Regions,
    ignore_label: int | None,
    image_of: ImageOf,
    number: int = 4,
) -> Figure:
    """Draw the cases with the largest ACE, one per row: image with outlines, probability before and after calibration.

    Args:
        cases: cases of a fold or of merged folds.
        names: names of the heads.
        regions: label values of each head; None for classes.
        ignore_label: label of voxels without annotation, or None.
        image_of: returns a case's image.
        number: largest number of rows; cases without a slice are skipped.
    """
    from matplotlib.lines import Line2D

    read = ((case, part) for case in worst_cases(cases) if (part := case.shown) is not None)
    shown = [*islice(read, number)]
    images = [image_of(case.name) for case, _ in shown]
    pictures = [
        CasePicture.of(part, case.calibrator, regions=regions, ignore_label=ignore_label, image=image)
        for (case, part), image in zip(shown, images, strict=True)
    ]
    # rows as high as their slices, within reason
    heights = [np.clip(len(p.background) * p.aspect / p.background.shape[1], 0.4, 2.5) for p in pictures] or [0.4]
    height = sum(COLUMN / 3.2 * h + 0.55 for h in heights) + 1.05
    figure, axes = new_figure(height, len(heights), 3, height_ratios=heights)
    drawn = None
    for line, (case, _), image, picture in zip(axes, shown, images, pictures, strict=False):
        drawn = draw_case(line, picture)
        line[0].set_title(in_lines(f"{case.name}\n{'label map' if image is None else 'image'}", _WIDTH))
        for ax, stage, used in zip(line[1:], STAGES, (IDENTITY, case.calibrator), strict=True):
            said = f"{names[picture.head]}\n{used.words('.3g')}\nACE {case_error(case.row[stage]['image'], 'ace'):.3f}"
            ax.set_title(in_lines(said, _WIDTH))
    make_room(figure, axes, 3)
    if drawn is None:
        axes[0, 0].set_title("no case has a slice")
        for ax in axes.flat:
            ax.set_axis_off()
    else:
        colour_bar(figure, drawn, axes, "predicted probability of the class")
    figure.suptitle("Cases with the largest ACE, which is their mean over\nthe foreground classes in the whole image")
    handles = [Line2D([], [], color=colour, linestyle=line, label=name) for name, colour, line in OUTLINES]
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=3)
    legend.get_frame().set_facecolor("0.45")  # yellow is invisible on white
    for text in legend.get_texts():
        text.set_color("white")
    return figure


@in_style
def reliability_of_cases_figure(cases: Sequence[ReportedCase], keys: Sequence[str], names: Sequence[str]) -> Figure:
    """Draw the reliability of the cases with the largest, median and smallest ACE, before and after calibration.

    Each case shows the foreground class with the largest ACE before calibration, or the top label if no class has one.

    Args:
        cases: at least one case of a fold or of merged folds.
        keys: keys of the heads in summary.json.
        names: names of the heads and of the top label.
    """
    ranked = worst_cases(cases)
    known = [case for case in ranked if not np.isnan(case_error(case.row[UNCALIBRATED]["image"], "ace"))] or ranked
    which = {"largest": 0, "median": (len(known) - 1) // 2, "smallest": len(known) - 1}
    chosen = {place: word for word, place in reversed(which.items())}  # with few cases, one case can be two of them
    figure, axes = new_figure(2.25 * len(chosen) + 0.75, len(chosen), 2)
    for line, place in zip(axes, sorted(chosen), strict=True):
        case = known[place]
        classes = case.row[UNCALIBRATED]["image"]["per_class"]
        errors = {i: classes[key]["ace"] for i, key in enumerate(keys) if key != BACKGROUND}
        errors = {i: value for i, value in errors.items() if value is not None and not np.isnan(value)}
        head = max(errors, key=errors.__getitem__) if errors else -1
        for ax, statistics, used in zip(line, (case.before, case.after), (IDENTITY, case.calibrator), strict=True):
            found = calibration_errors(statistics)
            ace = float(found["top_label_ace"] if head < 0 else found["ace"][head])
            said = f"{case.name}\n{names[head]}\n{used.words('.3g')}, ACE {ace:.3f}"
            draw_reliability(ax, reliability_curve(statistics), head, in_lines(said))
    outer_labels(axes)
    make_room(figure, axes, 3)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    words = ", ".join(word for _, word in sorted(chosen.items()))
    figure.suptitle(f"Cases of {words} ACE, {NUM_BINS} bins;\nof each the class in which it is largest")
    return figure

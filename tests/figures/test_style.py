"""Every figure is a column wide, with text that is large enough, within the figure and not over other text."""

import functools
import itertools

import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.image import imread
from matplotlib.text import Text

from nnunet_calib.figures.case_figures import reliability_of_cases_figure, worst_cases_figure
from nnunet_calib.figures.dice_against_ace import dice_against_ace_figure
from nnunet_calib.figures.drawn_results import DrawnCases
from nnunet_calib.figures.fold_figures import (
    boxes_figure,
    confidence_figure,
    dataset_reliability_figure,
    reliability_figure,
)
from nnunet_calib.figures.progress import progress_figure
from nnunet_calib.figures.style import figure_bytes, in_lines, new_figure, styled
from tests.figures.test_case_figures import reported
from tests.figures.test_case_pictures import slice_of
from tests.figures.test_dice_against_ace import POINTS, comparison
from tests.figures.test_fold_figures import cases

LONG = ["background", "left inferior frontal gyrus, pars opercularis", "enhancing_tumour_and_necrosis", "top label"]
CASES = DrawnCases(cases(2))
REPORTED = [reported(f"{'very_' * 6}long_case_{i}", i / 10 + 0.1, slice_of()) for i in range(5)]
FIGURES = {
    "reliability": lambda: reliability_figure(CASES, CASES, 1.5, LONG),
    "dataset": lambda: dataset_reliability_figure(CASES, CASES, 1.5, LONG),
    "boxes": lambda: boxes_figure(CASES, CASES, 1.5, LONG),
    "confidence": lambda: confidence_figure(CASES, CASES, LONG),
    "cases": lambda: reliability_of_cases_figure(REPORTED, ["0", "1", "2"], LONG),
    "worst": lambda: worst_cases_figure(
        REPORTED, LONG[:3], regions=None, ignore_label=None, image_of=lambda case: None
    ),
    "dice": lambda: dice_against_ace_figure(comparison(POINTS)),
    "progress": lambda: progress_figure([0.1, 0.2], [[0.1] * 3, [0.2] * 3], LONG[:3]),
}


@functools.cache
def drawn(name):
    """The figure with everything at its place, and its texts."""
    with styled():  # as figures are saved
        figure = FIGURES[name]()
        figure.draw_without_rendering()
    return figure, [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]


@pytest.mark.parametrize("name", FIGURES)
def test_a_column_wide(name):
    """88 mm; no text below 5 points; nothing cut off, also of long names."""
    figure, texts = drawn(name)
    assert figure.get_figwidth() * 25.4 == pytest.approx(88, abs=0.2)
    assert min(text.get_fontsize() for text in texts) >= 5
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert min(box.x0, box.y0, width - box.x1, height - box.y1) >= -0.02  # inches


@pytest.mark.parametrize("name", FIGURES)
def test_titles_apart(name):
    """No title of a panel lies over another one, or over a panel."""
    figure, _ = drawn(name)
    titles = [ax.title.get_window_extent() for ax in figure.axes if ax.get_title()]
    titles += [text.get_window_extent() for text in [figure._suptitle] if text is not None]
    panels = [box for ax in figure.axes for box in (ax.get_window_extent(), *(c.bbox for c in ax.child_axes))]
    for one, other in [*itertools.combinations(titles, 2), *itertools.product(titles, panels)]:
        shared = np.minimum(one.max, other.max) - np.maximum(one.min, other.min)
        assert (shared <= 1).any(), (one, other)


@pytest.mark.parametrize("name", ["reliability", "dataset"])
def test_settings_of_others(name):
    """nnU-Net's logger leaves fonts 2.5 times as large."""
    expected = [text.get_fontsize() for text in drawn(name)[1]]
    with rc_context({"font.size": 30, "axes.titlesize": 30, "xtick.labelsize": 30}):
        assert [text.get_fontsize() for text in drawn.__wrapped__(name)[1]] == expected


def test_lines():
    """Words stay whole where they fit; those that do not are cut, and none is lost."""
    assert in_lines("left kidney, T = 1\n3 cases", 12) == "left kidney,\nT = 1\n3 cases"
    assert in_lines("abcdefgh", 3) == "abc\ndef\ngh"


def test_tall(tmp_path):
    """A figure of very many classes stays within what a bitmap can be."""
    content = figure_bytes(lambda: new_figure(300)[0], "png")["png"]
    (tmp_path / "figure.png").write_bytes(content)
    assert imread(tmp_path / "figure.png").shape[0] == 60_000

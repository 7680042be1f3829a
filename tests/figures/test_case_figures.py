"""Figures of single cases: which are shown, what their titles say, and what is drawn of them."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure

from nnunet_calib.figures.case_figures import draw_case, reliability_of_cases_figure, worst_cases_figure
from nnunet_calib.figures.case_pictures import CasePicture
from nnunet_calib.figures.drawn_results import ReportedCase, worst_cases
from nnunet_calib.metrics.errors import reliability_curve
from nnunet_calib.posthoc.temperature import Temperature
from nnunet_calib.results.error_tree import case_error
from tests.figures.test_case_pictures import slice_of
from tests.figures.test_fold_figures import cases


def test_drawn():
    """Three panels: image, before, after, on the same grid, with the pixels' aspect."""
    figure = Figure()
    axes = figure.subplots(1, 3)
    picture = CasePicture.of(slice_of(spacing=(3, 1)), 2.0, regions=None, ignore_label=None)
    assert draw_case(axes, picture) is axes[2].images[0]
    for ax, pixels in zip(axes, (picture.background, picture.before, picture.after), strict=True):
        np.testing.assert_array_equal(ax.images[0].get_array(), pixels)
        assert ax.images[0].get_clim() == (0, 1)
        assert ax.get_aspect() == 3
        assert len(ax.collections) == 3  # outlines of true positives, false positives and false negatives
    figure.canvas.draw()


AFTER = cases(1)[0].with_temperature(2)


def reported(name, ace, shown=None):
    """A case with one foreground class."""
    row = {
        "case": name,
        **{
            stage: {"image": {"per_class": {"0": {"ace": 9.0}, "1": {"ace": ace}, "2": {"ace": None}}, "nll": 0.1}}
            for stage in ("uncalibrated", "calibrated")
        },
    }
    (statistics,) = cases(1)
    return ReportedCase(row, Temperature(2.0), lambda: replace(statistics, shown=shown))


def test_worst():
    """By falling ACE of the foreground; background and absent classes do not count, no value comes last."""
    made = [reported("a", 0.1), reported("b", None), reported("c", 0.3), reported("d", float("nan"))]
    assert [case.name for case in worst_cases(made)] == ["c", "a", "b", "d"]
    assert case_error(made[0].row["calibrated"]["image"], "nll") == 0.1
    assert np.isnan(case_error(made[1].row["calibrated"]["image"], "ace"))


@pytest.mark.parametrize("number", [0, 1, 3])
def test_worst_figure(tmp_path, number):
    """A row for each of the worst cases that have a slice, with its name, its temperature and its errors."""
    made = [reported(f"case{i}", i / 10, slice_of()) for i in range(number)] + [reported("no slice", 0.9)]
    asked = []
    figure = worst_cases_figure(
        made, ["background", "bright", "dark"], regions=None, ignore_label=None, image_of=asked.append, number=2
    )
    expected = [f"case{i}" for i in range(number)][::-1][:2]
    assert asked == expected
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    if not number:
        assert titles == ["no case has a slice"]
    else:
        assert titles[::3] == [f"{name}\nlabel map" for name in expected]
        for i, t in ((1, 1), (2, 2)):
            assert titles[i::3] == [f"bright\nT = {t}\nACE {int(name[-1]) / 10:.3f}" for name in expected]
        assert figure.axes[-1].get_xlabel() == "predicted probability of the class"  # of the colour bar
    figure.savefig(tmp_path / "figure.png")


def test_images_behind_slices():
    """Where there is an image it is shown, and named so."""
    image = np.random.default_rng(0).random((1, 4, 6, 12))
    figure = worst_cases_figure(
        [reported("case0", 0.1, slice_of())],
        ["background", "bright", "dark"],
        regions=None,
        ignore_label=None,
        image_of=lambda case: image,
    )
    assert figure.axes[0].get_title() == "case0\nimage"
    cut = image[0, 2, 1:4, 3:11:2]
    low, high = np.percentile(cut, (1, 99))
    expected = ((cut - low) / (high - low)).clip(0, 1)
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([0.1, None, 0.3, 0.2, 0.4, 0.5], [5, 2, 0]),
        ([0.4, 0.3, 0.2, 0.1], [0, 1, 3]),
        ([0.2, 0.1], [0, 1]),
        ([0.1], [0]),
        ([None], [0]),
    ],
)
def test_single_cases(tmp_path, errors, expected):
    """Largest, median and smallest ACE, before and after; each case once; without a class the top label."""
    made = [reported(f"case{i}", error) for i, error in enumerate(errors)]
    names = ["background", "bright", "dark", "top label"]
    figure = reliability_of_cases_figure(made, ["0", "1", "2"], names)
    panels = [ax for ax in figure.axes if ax.get_title()]
    drawn = [ax.get_title().split("\n") for ax in panels]
    head = -1 if errors == [None] else 1
    name = names[head]
    for at, t in ((0, 1), (1, 2)):
        assert [title[:2] for title in drawn[at::2]] == [[f"case{i}", name] for i in expected]
        assert all(title[2].startswith(f"T = {t}, ACE 0.") for title in drawn[at::2])
    for ax, statistics in ((panels[0], made[0].before), (panels[1], AFTER)):
        curve = reliability_curve(statistics)
        shown = [bar.get_height() for bar in ax.containers[0]]
        np.testing.assert_array_equal(shown, curve.frequency[head][curve.counts[head] > 0])
    figure.savefig(tmp_path / "figure.png")

"""The figure shows the numbers of the comparison, tells models and stages apart, and is the same file twice."""

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from nnunet_calib.figures.dice_against_ace import (
    Estimate,
    Point,
    dice_against_ace_figure,
    draw_comparison,
    draw_dice_against_ace,
    points_of,
)

NONE = Estimate(None, None, None)
POINTS = [
    Point("A", Estimate(0.8, 0.78, 0.81), Estimate(0.2, 0.18, 0.25), Estimate(0.1, 0.09, 0.12)),
    Point("B", Estimate(0.7, 0.66, 0.71), Estimate(0.15, 0.14, 0.18), Estimate(0.12, 0.1, 0.13)),
]


def comparison(points):
    """What the figure reads of comparison.json."""
    stages = ("uncalibrated", "calibrated")
    groups = [("dice", "both", "dice"), *((metric, stage, stage) for metric in ("ace", "mce") for stage in stages)]
    of = {"of": "foreground_mean", "scope": "image"}
    results = [{"metric": "ace", "of": "top_label", "scope": "image", "stage": "calibrated", "models": []}]
    for metric, stage, name in groups:
        found = [(point.name, getattr(point, name)) for point in points]
        found = [(model, Estimate(*(2 * v for v in e))) for model, e in found] if metric == "mce" else found
        rows = [{"model": model, "mean": e.mean, "interval": [e.low, e.high]} for model, e in found]
        results.append({"metric": metric, "stage": stage, "models": rows, **of})
    return {"models": [{"name": point.name} for point in points], "cases": ["x", "y"], "results": results}


def drawn(points):
    """Axes with points."""
    ax = Figure().subplots()
    draw_dice_against_ace(ax, points)
    return ax


def markers(ax):
    """Position, shape and face of each point, in the order in which they were drawn."""
    lines = [line for line in ax.lines if line.get_marker() not in ("None", "", "|", "_") and len(line.get_xdata())]
    return [
        (line.get_xdata()[0], line.get_ydata()[0], line.get_marker(), to_rgb(line.get_markerfacecolor()))
        for line in lines
    ]


def test_points():
    """Dice against ACE, open before and filled after, a shape for each model, and a line between the two."""
    ax = drawn(POINTS)
    a, a_after, b, b_after = markers(ax)
    assert (a[:2], a_after[:2], b[:2], b_after[:2]) == ((0.8, 0.2), (0.8, 0.1), (0.7, 0.15), (0.7, 0.12))
    assert a[2] == a_after[2] != b[2] == b_after[2]
    assert a[3] == b[3] == (1, 1, 1)
    assert len({a_after[3], b_after[3], (1, 1, 1)}) == 3
    joined = [(tuple(line.get_xdata()), tuple(line.get_ydata())) for line in ax.lines if len(line.get_xdata()) == 2]
    assert joined == [((0.8, 0.8), (0.2, 0.1)), ((0.7, 0.7), (0.15, 0.12))]
    _, labels = ax.get_legend_handles_labels()
    assert labels == ["A", "B", "T = 1", "with temperature"]


def test_intervals():
    """Bars end at the limits: of Dice once, of ACE before and after."""
    ax = drawn(POINTS[:1])
    ends = [bars.get_segments()[0].round(9).tolist() for container in ax.containers for bars in container.lines[2]]
    assert ends == [[[0.78, 0.2], [0.81, 0.2]], [[0.8, 0.18], [0.8, 0.25]], [[0.8, 0.09], [0.8, 0.12]]]


@pytest.mark.parametrize(
    ("point", "shown"),
    [
        (Point("C", NONE, POINTS[0].uncalibrated, POINTS[0].calibrated), 0),
        (Point("C", POINTS[0].dice, NONE, Estimate(*[float("nan")] * 3)), 0),
        (Point("C", POINTS[0].dice, POINTS[0].uncalibrated, NONE), 1),
        (Point("C", Estimate(0.8, None, None), Estimate(0.2, None, None), Estimate(0.1, None, None)), 2),
    ],
)
def test_missing_values(point, shown):
    """A model without Dice or ACE is left out; one case has no interval, and a fold of one case nothing calibrated."""
    ax = drawn([*POINTS, point])
    assert len(markers(ax)) == 4 + shown
    assert ("C" in ax.get_legend_handles_labels()[1]) == bool(shown)
    ax.figure.canvas.draw()


def test_many_models():
    """Each of twenty has a look of its own, also where two share a colour or a shape."""
    points = [POINTS[0]._replace(name=str(i), dice=Estimate(i, i, i)) for i in range(20)]
    looks = [look[2:] for look in markers(drawn(points))[1::2]]
    assert len({*looks}) == 20


def grey(colour):
    """Its luminance in print."""
    return np.dot(to_rgb(colour), (0.299, 0.587, 0.114))


def test_two_models_in_grey():
    """A model and its baseline differ in grey too."""
    _, first, _, other = markers(drawn(POINTS))
    assert abs(grey(first[3]) - grey(other[3])) > 0.3


def test_files(tmp_path):
    """Complete and readable; the same bytes again; the axes tell what they are and which way is better."""
    assert points_of(comparison(POINTS)) == POINTS
    figure = dice_against_ace_figure(comparison(POINTS))
    ace, mce = figure.axes
    assert (ace.get_ylabel(), mce.get_ylabel()) == ("ACE, lower is better", "MCE, lower is better")
    assert mce.get_xlabel() == "Dice, higher is better"
    assert [at[:2] for at in markers(mce)] == [(x, 2 * y) for x, y, *_ in markers(ace)]
    assert "2 cases" in figure.get_suptitle()
    contents = []
    for _ in range(2):
        draw_comparison(comparison(POINTS), tmp_path)
        contents.append({path.name: path.read_bytes() for path in tmp_path.iterdir()})
    assert contents[0] == contents[1]
    assert sorted(contents[0]) == [f"dice_against_ace.{ending}" for ending in ("pdf", "png", "svg")]
    assert contents[0]["dice_against_ace.pdf"].startswith(b"%PDF")
    assert (imread(tmp_path / "dice_against_ace.png")[..., :3] < 0.5).any()


def test_no_dice_any_more(tmp_path):
    """Figures of before do not stay where no model has a Dice now."""
    draw_comparison(comparison(POINTS), tmp_path)
    draw_comparison(comparison([point._replace(dice=NONE) for point in POINTS]), tmp_path)
    assert not [*tmp_path.iterdir()]


LATE = """
import sys
from nnunet_calib.figures import dice_against_ace
assert not [name for name in sys.modules if name.split(".")[0] == "matplotlib"], "imported early"
dice_against_ace.dice_against_ace_figure({"models": [], "cases": [], "results": []}).canvas.draw()
assert "matplotlib" in sys.modules
assert "matplotlib.pyplot" not in sys.modules, "pyplot was used"
"""


def test_matplotlib_is_imported_late():
    """Importing the module costs no matplotlib, and drawing no pyplot, whose state belongs to the user."""
    done = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

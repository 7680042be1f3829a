"""Whole figures: a panel for each head, whatever cases they get, and nothing asked of pyplot."""

import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from matplotlib.image import imread

from nnunet_calib import CaseStatistics
from nnunet_calib.figures import fold_figures
from nnunet_calib.figures.case_figures import no_image
from nnunet_calib.figures.drawn_results import DrawnCases, Results
from nnunet_calib.figures.fold_figures import (
    boxes_figure,
    confidence_figure,
    dataset_reliability_figure,
    draw_fold,
    nll_figure,
    reliability_figure,
)
from nnunet_calib.figures.style import save_figure
from nnunet_calib.results.fold_summary import write_fold
from nnunet_calib.results.heads import Heads
from nnunet_calib.results.layout import ENDINGS, FIGURES, case_file
from tests.worlds.measured_cases import make_case
from tests.worlds.pictures import PICTURES

NAMES = ["background", "bright", "dark", "top label"]
DRAWN = (reliability_figure, dataset_reliability_figure, boxes_figure)


def cases(number, mode="labels", without=None):
    """Statistics of some cases with three heads; `without` is a label that background replaces."""
    made = [make_case(mode, (9, 9, 6), seed=seed) for seed in range(number)]
    for case in made:
        case.labels[case.labels == without] = 0
    return [case.measure(case=f"case{i}", model={"weights_sha256": "", "fold": 0}) for i, case in enumerate(made)]


@pytest.mark.pairs
@pytest.mark.parametrize("draw", DRAWN)
@pytest.mark.parametrize("mode", ["labels", "regions"])
@pytest.mark.parametrize("number", [1, 3])
def test_figures(tmp_path, draw, mode, number):
    """A panel for each head and the top label, before and after; titles tell which, and the temperature."""
    before = cases(number, mode)
    figure = draw(DrawnCases(before), DrawnCases(case.with_temperature(1.5) for case in before), 1.5, NAMES)
    titles = [" ".join(ax.get_title().split()) for ax in figure.axes if ax.get_title()]  # a long name takes two lines
    for name, title in zip(np.repeat(NAMES, 2), titles, strict=True):
        assert title.startswith(f"{name}, T ")
    assert ["T = 1" in t for t in titles] == [True, False] * 4
    assert all("T ≈ 1.50" in t for t in titles[1::2])
    lines = [line for ax in figure.axes for line in ax.get_title().split("\n")]
    assert not any(line.endswith(("T", "=", "≈")) for line in lines)
    figure.savefig(tmp_path / "figure.png")  # a layout that does not fit warns, and warnings are errors


@pytest.mark.parametrize("draw", DRAWN)
def test_absent_class(tmp_path, draw):
    """A class that no case has is drawn without a warning, and its cases are counted as none."""
    before = DrawnCases(cases(2, without=2))
    figure = draw(before, before, 1.0, NAMES)
    figure.savefig(tmp_path / "figure.png")
    if draw is not reliability_figure:
        counted = [ax.get_title().split("\n")[-1] for ax in figure.axes[:8:2]]
        assert counted == ["2 cases", "2 cases", "0 cases", "2 cases"]


def write_cases(folder, made):
    """The files of a fold."""
    for case in made:
        path = case_file(folder, case.cases[0])
        path.parent.mkdir(exist_ok=True)
        case.save(path)
    heads = Heads(("0", "1", "2"), (*NAMES[:3],), None, None)
    write_fold(folder, [case.cases[0] for case in made], heads, made[0].model)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Return a folder with all figures, which take seconds each, of a case that has no temperature of its own."""
    folder = tmp_path_factory.mktemp("drawn")
    write_cases(folder, cases(1))
    draw_fold(folder)
    return folder


def test_draw_fold(drawn):
    """All figures of a fold, complete and readable, and no temporary file."""
    assert {p.name for p in drawn.iterdir()} == {"cases", "summary.json", "temperature.json", *PICTURES}
    for name in FIGURES:
        check_pixels(name, drawn / f"{name}.png")


def test_several_cases(tmp_path):
    """Cases that have temperatures of their own are drawn as well."""
    write_cases(tmp_path, cases(2))
    results = Results.read(tmp_path)
    for spec in fold_figures.FIGURES:
        save_figure(partial(spec.draw, results, no_image), tmp_path, spec.name, ("png",))
        check_pixels(spec.name, tmp_path / f"{spec.name}.png")


def check_pixels(name, path):
    """Fail unless something is drawn in each quarter, but of cases without a slice."""
    pixels = imread(path)[..., :3]
    assert min(pixels.shape[:2]) > 350
    for half in np.array_split(pixels, 2) if name != "worst_cases" else ():
        assert all((quarter < 0.5).any() for quarter in np.array_split(half, 2, axis=1))


def test_same_bytes(drawn, tmp_path):
    """The same statistics give the same files, so that a report can be checked by its hash.

    Each figure as SVG, which has the most numbers in it, and one in every format.
    """
    write_cases(tmp_path, cases(1))
    results = Results.read(tmp_path)
    for number, spec in enumerate(fold_figures.FIGURES):
        save_figure(partial(spec.draw, results, no_image), tmp_path, spec.name, ENDINGS if number == 0 else ("svg",))
    again = [path for path in tmp_path.iterdir() if path.name in PICTURES]
    assert len(again) == len(FIGURES) + len(ENDINGS) - 1
    for path in again:
        assert path.read_bytes() == (drawn / path.name).read_bytes(), path.name


def test_nll(tmp_path):
    """The curve has its minimum at the fitted temperature, and at 1 the NLL that the summary states."""
    made = cases(3)
    write_cases(tmp_path, made)
    results = Results.read(tmp_path)
    (ax,) = nll_figure(results).axes
    curve = ax.lines[0]
    lowest = curve.get_xdata()[np.argmin(curve.get_ydata())]
    assert lowest == pytest.approx(results.calibrator.value, rel=0.06)  # the grid's step
    pooled = CaseStatistics.merge(made).histograms
    at_one = np.interp(0, np.log(curve.get_xdata()), curve.get_ydata())
    assert at_one == pytest.approx(pooled.nll.sum() / pooled.voxels.sum(), rel=1e-3)
    assert results.calibrator.words(".3f") in ax.get_legend().get_texts()[1].get_text()


def test_confidence():
    """A panel for each head and the top label, with both histograms."""
    before = cases(2)
    after = DrawnCases(case.with_temperature(3) for case in before)
    figure = confidence_figure(DrawnCases(before), after, NAMES)
    assert [ax.get_title() for ax in figure.axes] == NAMES
    assert [len(ax.patches) for ax in figure.axes] == [2] * 4


LATE = """
import sys
import numpy as np
from nnunet_calib import CaseStatistics
from nnunet_calib.figures.fold_figures import boxes_figure, dataset_reliability_figure, reliability_figure
from nnunet_calib.figures.drawn_results import DrawnCases
assert not [name for name in sys.modules if name.split(".")[0] == "matplotlib"], "imported early"
case = CaseStatistics.from_probabilities(np.full((2, 4, 4), 0.5), np.eye(4, dtype=int))
for draw in (reliability_figure, dataset_reliability_figure, boxes_figure):
    draw(DrawnCases([case]), DrawnCases([case]), 1.0, ["a", "b", "top label"]).canvas.draw()
assert "matplotlib" in sys.modules
assert "matplotlib.pyplot" not in sys.modules, "pyplot was used"
"""


def test_matplotlib_is_imported_late():
    """Importing the module costs no matplotlib, and drawing no pyplot, whose state belongs to the user."""
    done = subprocess.run([sys.executable, "-c", LATE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

"""The figure of a comparison's logits shows the shares that comparison.json holds."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from nnunet_calib.figures.logit_distributions import (
    MOST_PANELS,
    draw_log_odds,
    draw_logit_distributions,
    logit_distributions_figure,
)

EDGES = [-2.0, -1.0, 0.0, 1.0, 2.0]
SHARES = {
    "a": {"outside": [0.7, 0.2, 0.1, 0.0], "inside": [0.0, 0.1, 0.2, 0.7]},
    "b": {"outside": None, "inside": [0.25] * 4},
}


def test_values():
    """A solid line for the voxels of the class, a dashed one for the others, of one colour for a model."""
    ax = Figure().subplots()
    draw_log_odds(ax, EDGES, SHARES, "a title")
    outside, inside, other = ax.patches
    np.testing.assert_array_equal(outside.get_data().values, SHARES["a"]["outside"])
    np.testing.assert_array_equal(inside.get_data().values, SHARES["a"]["inside"])
    np.testing.assert_array_equal(other.get_data().values, SHARES["b"]["inside"])
    assert outside.get_edgecolor() == inside.get_edgecolor() != other.get_edgecolor()
    assert outside.get_linestyle() != inside.get_linestyle()
    assert ax.get_legend_handles_labels()[1] == ["a", "b"]


@pytest.mark.parametrize("classes", [1, 3, 11])
def test_figure(tmp_path, classes):
    """A panel for each class, up to eight, with the classes' names, written in every format."""
    names = {str(i): f"class {i}" for i in range(classes)}
    comparison = {
        "models": [{"name": "a"}, {"name": "b"}],
        "cases": ["one", "two"],
        "log_odds": {"edges": EDGES, "names": names, "per_class": dict.fromkeys(names, SHARES)},
    }
    figure = logit_distributions_figure(comparison)
    assert [ax.get_title() for ax in figure.axes] == [*names.values()][:MOST_PANELS]
    assert ("8 of 11 classes" in figure.get_suptitle()) == (classes == 11)
    if classes == 3:
        draw_logit_distributions(comparison, tmp_path)
        assert sorted(p.suffix for p in tmp_path.glob("logit_distributions.*")) == [".pdf", ".png", ".svg"]

"""Fixtures of measured folds that need no network."""

from __future__ import annotations

import pytest

from nnunet_calib.figures import dice_against_ace, fold_figures, logit_distributions
from nnunet_calib.report import page
from nnunet_calib.results.layout import ENDINGS
from tests.worlds.measured_folds import three_folds


@pytest.fixture
def model(tmp_path, monkeypatch):
    """Three measured folds, and nnU-Net's variables for them."""
    model = three_folds(tmp_path)
    for name, value in model.environment().items():
        monkeypatch.setenv(name, value)
    return model


@pytest.fixture(autouse=True)
def no_figures(request, monkeypatch):
    """Something in the place of figures, which take seconds; on real data they are drawn, as in tests/report."""
    if request.path.name == "test_real_data.py" or request.path.parent.name == "faults":
        return

    def save_nothing(draw, folder, name, endings=ENDINGS):
        for ending in endings:
            (folder / f"{name}.{ending}").write_bytes(b"figure")

    monkeypatch.setattr(fold_figures, "save_figure", save_nothing)
    if request.path.name == "test_golden.py":  # which knows those of comparisons and pages
        return
    for module in (dice_against_ace, logit_distributions):
        monkeypatch.setattr(module, "save_figure", save_nothing)
    empty = b'<svg xmlns="http://www.w3.org/2000/svg" width="72pt" height="72pt"/>'
    monkeypatch.setattr(page, "figure_bytes", lambda draw, *endings: dict.fromkeys(endings, empty))

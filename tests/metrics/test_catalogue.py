"""Values say how they were computed, and bins of few voxels can be left out."""

from __future__ import annotations

import json

import numpy as np
import pytest

from nnunet_calib import calibration_errors
from nnunet_calib.metrics.catalogue import DEFINITIONS
from tests.worlds.measured_cases import Case, make_case


def test_every_value_has_a_definition():
    """In words, and with the options that were used, as JSON."""
    statistics = make_case().measure(boundary_mm=1.5)
    errors = calibration_errors(statistics + statistics, 15, "boundary", min_count=3)
    for name in errors:
        definition = json.loads(json.dumps(errors.definition(name)))
        assert definition["metric"] == name
        assert definition["scope"] == "boundary"
        assert definition["boundary_mm"] == 1.5
        assert definition["pooled_cases"] == 2
        assert definition["definition"] in DEFINITIONS.values()
    assert errors.definition("ace") == {
        "metric": "ace",
        "definition": DEFINITIONS["ace"],
        "of": DEFINITIONS["per_class"],
        "bins": 15,
        "min_count": 3,
        "scope": "boundary",
        "pooled_cases": 2,
        "boundary_mm": 1.5,
    }
    assert errors.definition("top_label_mce")["of"] == DEFINITIONS["top_label"]
    assert errors.definition("brier_resolution")["of"] == DEFINITIONS["brier_terms"]


def test_definitions_hold_what_matters_only():
    """No bins where there are none, no width of a boundary elsewhere."""
    errors = calibration_errors(make_case().measure())
    assert errors.definition("nll") == {
        "metric": "nll",
        "definition": DEFINITIONS["nll"],
        "scope": "image",
        "pooled_cases": 1,
    }
    for name in ("ks", "squared_error", "uncertainty", "top_label_ks", "brier"):
        assert "bins" not in errors.definition(name)
    for name in ("ece", "adaptive_ece", "top_label_ece", "brier_within_bin"):
        assert errors.definition(name)["bins"] == 20
        assert "min_count" not in errors.definition(name)
    with pytest.raises(KeyError, match=r"expected one of ece, ace, .*, got 'dice'"):
        errors.definition("dice")


def test_minimum_count():
    """Bins of one, two and three voxels with gaps .05, .35 and .1: ACE and MCE leave the smaller ones out, ECE none."""
    p, y = [0.05, 0.65, 0.65, 0.9, 0.9, 0.9], [0, 1, 1, 1, 1, 1]
    statistics = Case(np.array([p]), np.array(y), regions=((1,),)).measure()
    for count, gaps in [(1, [0.05, 0.35, 0.1]), (2, [0.35, 0.1]), (2.5, [0.1]), (3, [0.1])]:
        errors = calibration_errors(statistics, 10, min_count=count)
        assert errors["ace"] == pytest.approx([np.mean(gaps)])
        assert errors["mce"] == pytest.approx([max(gaps)])
        assert errors["ece"] == pytest.approx([(0.05 + 2 * 0.35 + 3 * 0.1) / 6])
    errors = calibration_errors(statistics, 10, min_count=4)
    assert np.isnan(errors["ace"]).all()
    assert np.isnan(errors["mce"]).all()
    assert np.isfinite(errors["top_label_ece"])


@pytest.mark.parametrize("count", [0, -1, float("nan")])
def test_minimum_count_is_at_least_one(count):
    """An empty bin has no gap."""
    with pytest.raises(ValueError, match=f"^expected min_count to be at least 1, got {count}$"):
        calibration_errors(make_case().measure(), min_count=count)

"""What does not belong together is refused, saying what was expected, what came, and what to do."""

from __future__ import annotations

import re

import numpy as np
import pytest

from nnunet_calib import CaseStatistics, apply_temperature, calibration_errors, fit_temperature
from nnunet_calib.measuring.scopes import scope_members
from tests.worlds.measured_cases import Case, make_case

REGION_MODES = pytest.mark.parametrize("regions", [None, ((1,), (2,))], ids=["labels", "regions"])


def raises(text: str):
    """Expect a ValueError with exactly this text."""
    return pytest.raises(ValueError, match=f"^{re.escape(text)}$")


@pytest.mark.parametrize("num_bins", [0, -20, 7, 49, 2400])
def test_number_of_bins(num_bins):
    """Only bins that are made of whole fine bins are exact."""
    with raises(f"expected num_bins to divide 1200, got {num_bins}: use 10, 15, 20 or 25, for example"):
        calibration_errors(make_case().measure(), num_bins)


def test_unknown_scope():
    """A scope is one of three."""
    text = "expected scope to be one of image, foreground, boundary, got 'organ'"
    with raises(text):
        calibration_errors(make_case().measure(), scope="organ")
    with raises(text):
        scope_members("organ")


def test_nothing_to_merge():
    """A sum needs a summand."""
    with raises("expected at least one case's statistics to merge, got none"):
        CaseStatistics.merge([])


@pytest.mark.parametrize(
    ("mode", "heads", "boundary_mm"), [("labels", 2, 2.0), ("regions", 3, 2.0), ("labels", 3, 3.0)]
)
def test_merging_mismatched(mode, heads, boundary_mm):
    """Heads, their kind, and the boundary scope must agree."""
    ours, other = make_case().measure(case="a"), make_case(mode, heads=heads).measure(case="b", boundary_mm=boundary_mm)
    text = (
        "expected statistics of the same heads and boundary width, got (heads, regions, boundary_mm) = "
        f"(3, False, 2.0) for a and {(heads, mode == 'regions', boundary_mm)} for b"
    )
    with raises(text):
        ours + other


def test_wrong_grid():
    """Probabilities of another case, or with other axes."""
    p, labels = np.full((2, 4, 5), 0.5), np.zeros((5, 4), int)
    text = "expected probabilities (C, *spatial) on the grid of the labels, {}, got {}: are they of the same case?"
    with raises(text.format((5, 4), (2, 4, 5))):
        Case(p, labels).measure()
    with raises(text.format((3, 2), (2, 4, 5))):
        Case(p, labels).measure(crop=(slice(1, 4), slice(0, 2)))
    with raises(text.format((5, 4), (2, 1, 5, 4))):
        Case(p.reshape(2, 1, 5, 4), labels).measure()


@pytest.mark.parametrize(
    ("value", "range_"), [(-2.5, "-2.5 to 3.5"), (np.nan, "nan to nan"), (1.25, "-0.25 to 1.25")], ids=str
)
@REGION_MODES
def test_no_probabilities(regions, value, range_):
    """Logits and NaN, in a single voxel too."""
    p = np.full((2, 3, 3), 0.5)
    p[:, 1, 1] = value, 1 - value
    text = f"expected probabilities in [0, 1], got values from {range_}"
    with raises(f"{text}: pass the outputs of softmax or sigmoid, without NaN"):
        Case(p, np.zeros((3, 3), int), regions).measure()


def test_rounding_is_no_error():
    """A softmax may end just above 1."""
    p = np.array([[1 + 1e-6], [0]], np.float32)
    errors = calibration_errors(Case(p, np.array([0])).measure())
    assert errors["ece"][0] == pytest.approx(0, abs=2e-6)


@pytest.mark.parametrize(("labels", "range_"), [([0, 3], "0 to 3"), ([-1, 2], "-1 to 2")])
def test_label_without_head(labels, range_):
    """A label that no class stands for; as an ignore label it is fine."""
    case = Case(np.full((3, 2), 1 / 3), np.array(labels))
    text = f"expected labels from 0 to 2, got values from {range_}"
    with raises(f"{text}: check the labels in dataset.json against the label map"):
        case.measure()
    assert case.measure(ignore_label=3 if 3 in labels else -1).histograms.voxels.sum() == 1


@pytest.mark.parametrize("value", [-np.inf, np.inf, np.nan, 0.5])
@REGION_MODES
def test_labels_that_are_no_whole_numbers(regions, value):
    """In floats."""
    case = Case(np.full((3 if regions is None else 2, 2), 1 / 3), np.array([1.0, value]), regions)
    with raises(f"expected whole numbers as labels, got {value}: check the label map"):
        case.measure()


@pytest.mark.parametrize(
    ("logits", "labels", "regions", "text"),
    [
        ((5, 3), (4,), False, "labels (n,), got (5, 3) and (4,)"),
        ((5, 3), (5, 3), False, "labels (n,), got (5, 3) and (5, 3)"),
        ((5, 3), (5,), True, "labels (n, C), got (5, 3) and (5,)"),
        ((0, 3), (0,), False, "labels (n,), got (0, 3) and (0,)"),
        ((5,), (5,), False, "labels (n,), got (5,) and (5,)"),
    ],
)
def test_shapes_of_a_fit(logits, labels, regions, text):
    """Voxels come first, then heads; there is at least one voxel."""
    with raises(f"expected logits (n, C) with n > 0 and {text}"):
        fit_temperature(np.zeros(logits), np.zeros(labels, int), regions=regions)


@pytest.mark.parametrize("weights", [[1.0] * 4, [0.0] * 5, [1.0, 1.0, -1.0, 1.0, 1.0], [1.0, np.nan, 1.0, 1.0, 1.0]])
def test_no_weights(weights):
    """A voxel stands for some voxels or for none."""
    with raises(
        f"expected weights (5,) of at least 0, not all of them 0, got ({len(weights)},) with sum {sum(weights)}"
    ):
        fit_temperature(np.zeros((5, 3)), np.zeros(5, int), weights=weights)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_no_logits(value):
    """One NaN would make the whole sum NaN."""
    logits = np.zeros((5, 3))
    logits[2, 1] = value
    with raises("expected finite logits, got NaN or Inf: look for a diverged model or damaged predictions"):
        fit_temperature(logits, np.zeros(5, int))


@pytest.mark.parametrize("temperature", [0, -1, np.nan, np.inf])
def test_no_temperature(temperature):
    """T is a positive number."""
    with raises(f"expected a temperature above 0, got {temperature}"):
        apply_temperature(np.full((2, 3), 0.5), temperature)
    with raises(f"expected a temperature above 0, got {temperature}"):
        make_case().measure().with_temperature(temperature)

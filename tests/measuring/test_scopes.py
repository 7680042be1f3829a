"""Scopes: boundary voxels and the band around them, by hand and against the full distance transform."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt

from nnunet_calib import CaseStatistics, calibration_errors
from nnunet_calib.measuring import scopes
from nnunet_calib.measuring.scopes import (
    SCOPES,
    boundary_band,
    boundary_voxels,
    default_boundary_mm,
    scope_bits,
    scope_members,
    scope_notes,
)
from tests.worlds.measured_cases import IGNORE_LABEL, make_case

pytestmark = pytest.mark.pairs


def rows(*text: str) -> np.ndarray:
    """A 2D array of digits."""
    return np.array([[int(c) for c in row] for row in text])


def test_boundary_voxels_by_hand():
    """Both sides of a border belong to it; voxels that meet at a corner do not, and 1 next to 2 is a border too."""
    labels = rows("0000", "0112", "0000")
    assert boundary_voxels(labels).tolist() == (rows("0111", "1111", "0111") == 1).tolist()
    assert boundary_voxels(rows("01", "10")).all()
    assert boundary_voxels(rows("000", "000", "001")).tolist() == (rows("000", "001", "011") == 1).tolist()


def test_ignored_voxels_make_no_boundary():
    """Pairs with an ignored voxel do not count; the border among the other voxels stays."""
    labels = rows("09911", "00911", "00111")
    band = boundary_band(labels, width_mm=0, valid=labels != 9)
    assert band.tolist() == (rows("00000", "00000", "01100") == 1).tolist()
    labels = rows("00911")
    assert not boundary_band(labels, valid=labels != 9).any()
    # without an ignore label, 9 is a label like others
    assert boundary_band(labels, width_mm=0).tolist() == [[False, True, True, True, False]]


@pytest.mark.parametrize(
    ("width_mm", "expected"),
    [(0, "00011000"), (0.9, "00011000"), (1, "00111100"), (2, "01111110"), (2.9, "01111110"), (50, "11111111")],
)
def test_width(width_mm, expected):
    """Distances run between voxel centres, from the nearest boundary voxel; the width itself is inside."""
    labels = rows("00001111")
    assert boundary_band(labels, width_mm=width_mm).tolist() == (rows(expected) == 1).tolist()


def test_anisotropic_spacing():
    """3 mm between slices, 1 mm within: 2 mm reach two voxels along the row and no other slice; 3.2 mm reach one."""
    labels = np.zeros((3, 1, 9), int)
    labels[1, 0, 4] = 1
    row = "000111000"  # of the slice: the voxel and its neighbours
    above = "000010000"  # face neighbours across the slices
    assert (
        boundary_band(labels, spacing_mm=(3, 1, 1), width_mm=0)[:, 0].tolist()
        == (rows(above, row, above) == 1).tolist()
    )
    assert (
        boundary_band(labels, spacing_mm=(3, 1, 1), width_mm=2)[:, 0].tolist()
        == (rows("001111100", "011111110", "001111100") == 1).tolist()
    )
    # 3.2 mm from (1, 3) reach (0, 2): hypot(3, 1) = 3.16
    assert (
        boundary_band(labels, spacing_mm=(3, 1, 1), width_mm=3.2)[:, 0].tolist()
        == (rows("011111110", "111111111", "011111110") == 1).tolist()
    )
    # the spacing follows the axes of the labels
    turned = boundary_band(labels.transpose(2, 1, 0), spacing_mm=(1, 1, 3), width_mm=2)
    assert turned.transpose(2, 1, 0)[:, 0].tolist() == (rows("001111100", "011111110", "001111100") == 1).tolist()


@pytest.mark.parametrize("labels", [np.zeros((4, 5)), np.ones((3, 4, 5)), np.full((1, 1), 7), np.zeros((0, 3))])
def test_no_boundary(labels):
    """One label alone: an empty band of the same shape, at any width."""
    for width_mm in (0, 2, 1e6):
        band = boundary_band(labels, width_mm=width_mm)
        assert band.shape == labels.shape
        assert band.dtype == bool
        assert not band.any()


@pytest.mark.parametrize("many_shifts", [0, 10**6], ids=["distance transform", "shifts"])
@pytest.mark.parametrize("width_mm", [0, 1.0, 2.0, 3.7, 12.0, 90.0])
@pytest.mark.parametrize(
    ("shape", "spacing_mm"), [((30, 26), None), ((30, 26), (0.7, 1.9)), ((20, 18, 16), (5.0, 0.8, 0.8))], ids=str
)
def test_box_equals_full_distance_transform(shape, spacing_mm, width_mm, many_shifts, monkeypatch):
    """The band is computed in a box around the boundary alone; an object in a corner, one in the middle."""
    monkeypatch.setattr(scopes, "_MANY_SHIFTS", many_shifts)
    for corner in ([0] * len(shape), [n // 2 for n in shape]):
        labels = np.zeros(shape, int)
        labels[tuple(slice(c, c + 3) for c in corner)] = make_case(shape=(3,) * len(shape)).labels + 1
        # a distance of exactly the width is in, whatever way a multiple of the spacing is rounded (15 x 0.8, say)
        full = distance_transform_edt(~boundary_voxels(labels), sampling=spacing_mm) <= width_mm * (1 + 1e-6)
        np.testing.assert_array_equal(boundary_band(labels, spacing_mm=spacing_mm, width_mm=width_mm), full)
        assert full.any()
        assert width_mm > 10 or not full.all()


def test_bits():
    """The scopes of a voxel, as bits, and which bits belong to a scope."""
    labels = rows("000110")
    bits = scope_bits(labels, foreground=labels > 0, valid=None, spacing_mm=None, boundary_mm=0)
    assert bits.tolist() == [[0, 0, 2, 3, 3, 2]]
    assert bits.dtype == np.uint8
    assert [scope_members(scope) for scope in SCOPES] == [[0, 1, 2, 3], [1, 3], [2, 3]]
    assert [np.isin(bits, scope_members(scope)).sum() for scope in SCOPES] == [6, 2, 4]


def test_of_a_case(case):
    """What a case counts in each scope: bands that follow its spacing, and the foreground of its regions."""
    valid = case.labels != IGNORE_LABEL
    foreground = case.targets().any(0) if case.regions else case.labels > 0
    voxels = case.measure().histograms.voxels
    band = boundary_band(case.labels, spacing_mm=case.spacing, valid=valid)
    expected = [(valid & (foreground == f) & (band == b)).sum() for b, f in itertools.product((False, True), repeat=2)]
    assert voxels.tolist() == expected
    assert all(n > 0 for n in expected)


def test_width_of_a_multiple_of_the_spacing():
    """3 x 0.1 > 0.3 in floating point; the third neighbour is in all the same."""
    labels = np.repeat([0, 1], 6)
    assert boundary_band(labels, spacing_mm=(0.1,), width_mm=0.3).sum() == 2 * 4


@pytest.mark.parametrize(
    ("spacing", "width"),
    [
        (None, 2.0),
        ((3.0, 0.8, 0.8), 2.0),
        ((5.0, 5.0, 5.0), 2.0),
        ((999.0, 1.0, 1.0), 2.0),
        ((0.1, 0.1, 0.1), 2.0),
        ((0.02, 0.02, 0.02), 0.06),
        ((0.001, 0.0008, 0.0008), 0.0024),
        ((5e-6, 5e-6, 5e-6), 1.5e-5),
        ((0.3, 0.0333333), 0.1),
        ((float("nan"), 0.0, 3.0), 2.0),
    ],
)
def test_default_width(spacing, width):
    """2 mm, as long as it is no more than 20 of the finest voxels; else three of them, whatever the unit is."""
    assert default_boundary_mm(spacing) == pytest.approx(width, rel=1e-12)


@pytest.mark.parametrize("unit", [0.02, 0.001, 5e-6])
def test_fine_voxels_have_a_band(unit):
    """A scan of 20 um, in metres or of 5 nm has the band of one of 1 mm with 3 mm, where 2 mm were everything."""
    case = make_case(shape=(20, 40, 40))
    case.labels[:] = np.indices(case.labels.shape)[0] // 10
    measured = case.measure(spacing=(unit,) * 3)
    expected = case.measure(spacing=(1.0,) * 3, boundary_mm=3.0)
    np.testing.assert_array_equal(measured.histograms.counts, expected.histograms.counts)
    assert measured.histograms.voxels[scope_members("boundary")].sum() == 8 * 40 * 40
    errors = calibration_errors(measured, scope="boundary")
    assert errors.definition("ece")["boundary_mm"] == pytest.approx(3 * unit)
    assert boundary_band(case.labels, spacing_mm=(unit,) * 3).all()


@pytest.mark.parametrize("width", [-1.0, float("nan"), float("inf"), "2", True])
def test_no_width(width):
    """Refused before anything is measured."""
    with pytest.raises(ValueError, match=r"^expected a width of the boundary scope in mm, at least 0, got "):
        CaseStatistics.from_probabilities(np.full((2, 3, 3), 0.5), np.zeros((3, 3), int), boundary_mm=width)


def test_notes():
    """Of scopes with 99 % of the voxels or more, foreground too; of an empty image none."""
    assert scope_notes({"image": 1000, "foreground": 989, "boundary": 100}, 2.0) == []
    assert scope_notes({"image": 0, "foreground": 0, "boundary": 0}, 2.0) == []
    foreground, boundary = scope_notes({"image": 1000, "foreground": 1000, "boundary": 995}, 0.5)
    assert foreground == "The foreground holds 100.0% of the voxels: its values are those of the whole image."
    assert boundary == (
        "The boundary scope of 0.5 mm holds 99.5% of the voxels: its values are those of the whole image; measure "
        "again with a smaller --boundary-mm."
    )

"""Statistics of any case: they add up in any order and grouping, and do not depend on how a case is held or turned."""

from __future__ import annotations

from functools import reduce

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from nnunet_calib import CaseStatistics, calibration_errors
from nnunet_calib.measuring.case_file import Content, check
from tests.properties.strategies import FEW, IGNORED, SAME, Made, volumes
from tests.worlds.measured_cases import assert_same_histograms, assert_same_sample

DTYPES = st.sampled_from([np.float16, np.float32, np.float64])


def measured(made: Made, image: int = 0, dtype: type = np.float64, **options) -> CaseStatistics:
    """Statistics of one image."""
    p = made.probabilities(image).astype(dtype)
    return CaseStatistics.from_probabilities(p, made.labels[image], **made.options() | options)


@SAME
@given(made=volumes(images=4), data=st.data())
def test_order_and_grouping(made, data):
    """Any order and any grouping; a generator is merged like a list."""
    parts = [measured(made, i, case=str(i)) for i in range(4)]
    whole = CaseStatistics.merge(parts)
    order = data.draw(st.permutations(parts))
    cut = data.draw(st.integers(1, 3))
    grouped = CaseStatistics.merge(order[:cut]) + CaseStatistics.merge(part for part in order[cut:])
    for other in (reduce(CaseStatistics.__add__, order), grouped, CaseStatistics.merge(iter(order))):
        assert_same_histograms(other.histograms, whole.histograms)
        assert sorted(other.cases) == sorted(whole.cases)
        assert other.sample.weights.sum() == whole.sample.weights.sum()


@SAME
@given(made=volumes(), axis=st.integers(0, 2))
def test_flips(made, axis):
    """From another side, also where arrays have negative strides."""
    axis = min(axis, made.labels.ndim - 2)
    turned = CaseStatistics.from_probabilities(
        np.flip(made.probabilities(), axis + 1), np.flip(made.labels[0], axis), **made.options()
    )
    assert_same_histograms(turned.histograms, measured(made).histograms)


@SAME
@given(made=volumes(), dtype=DTYPES)
def test_types(made, dtype):
    """Any precision is measured as the numbers that it holds, and what is made passes the checks of a file."""
    ours = measured(made, dtype=dtype)
    held = made.probabilities().astype(dtype).astype(np.float64)
    exact = CaseStatistics.from_probabilities(held, made.labels[0], **made.options())
    assert_same_histograms_within(ours, exact, 1e-6)
    check(Content(ours.histograms, ours.sample, ours.regions, ours.boundary_mm, ours.cases, ours.model, ours.shown))
    scaled = ours.with_temperature(2.5)
    check(Content(scaled.histograms, ours.sample, ours.regions, ours.boundary_mm, ours.cases, ours.model, None))


def assert_same_histograms_within(ours: CaseStatistics, expected: CaseStatistics, tolerance: float) -> None:
    """Counts exactly, sums to a tolerance for each voxel."""
    a, b = ours.histograms, expected.histograms
    for name in ("counts", "positives", "voxels"):
        if name == "voxels" or not ours.regions:  # 1 - p of a region is rounded in its own precision
            np.testing.assert_array_equal(
                getattr(a, name)[:, :-1] if name != "voxels" else a.voxels,
                getattr(b, name)[:, :-1] if name != "voxels" else b.voxels,
            )
    voxels = 1 + b.voxels.sum()
    np.testing.assert_allclose(a.probability[:, :-1], b.probability[:, :-1], rtol=0, atol=tolerance * voxels)
    np.testing.assert_allclose(a.brier, b.brier, rtol=1e-5, atol=tolerance * voxels)


@SAME
@given(made=volumes())
def test_ignored_voxels(made):
    """Nonsense where nothing is known changes nothing."""
    p = made.probabilities()
    p[:, made.labels[0] == IGNORED] = np.nan
    other = CaseStatistics.from_probabilities(p, made.labels[0], **made.options())
    assert_same_histograms(other.histograms, measured(made).histograms)
    assert_same_sample(other, measured(made))


@FEW
@given(made=volumes(regions=False), data=st.data())
def test_class_permutation(made, data):
    """Renamed classes have the renamed errors."""
    order = np.array(data.draw(st.permutations(range(made.heads))))
    labels = made.labels[0].copy()
    known = labels != IGNORED
    labels[known] = np.argsort(order)[labels[known]]
    renamed = CaseStatistics.from_probabilities(made.probabilities()[order], labels, **made.options())
    ours, expected = calibration_errors(renamed), calibration_errors(measured(made))
    for name in ("ece", "ace", "mce", "ks"):
        np.testing.assert_allclose(ours[name], expected[name][order], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(ours["nll"], expected["nll"], rtol=1e-9, atol=1e-12)


@SAME
@given(made=volumes(regions=True))
def test_regions_are_heads_of_their_own(made):
    """Each region is measured as if it were the only one."""
    whole = measured(made)
    for c, region in enumerate(made.regions):
        labels = np.where(np.isin(made.labels[0], [*region, IGNORED]), made.labels[0], 0)
        alone = CaseStatistics.from_probabilities(
            made.probabilities()[c : c + 1], labels, **made.options() | {"regions": (region,)}
        )
        for name in ("counts", "positives"):  # the foreground is another one: scopes together
            ours, expected = (getattr(s.histograms, name).sum(0) for s in (alone, whole))
            np.testing.assert_array_equal(ours[0], expected[c])


@SAME
@given(made=volumes(), temperature=st.floats(0.05, 20))
def test_errors_are_in_range(made, temperature):
    """At any temperature errors are between 0 and 1 or NaN, and NLL and Brier score are not negative."""
    for statistics in (measured(made), measured(made).with_temperature(temperature)):
        errors = calibration_errors(statistics)
        for name in ("ece", "ace", "mce", "ks", "top_label_ece", "adaptive_ece"):
            values = errors[name][~np.isnan(errors[name])]
            assert ((values >= 0) & (values <= 1 + 1e-6)).all(), name
        assert all(errors[name] >= -1e-6 or np.isnan(errors[name]) for name in ("nll", "brier"))

"""Statistics of cases add up, and do not depend on how a case is laid out in memory."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax

from nnunet_calib import CaseStatistics, calibration_errors, fit_temperature
from nnunet_calib.measuring.scopes import SCOPES
from nnunet_calib.synthetic import synthetic_case
from tests.worlds.measured_cases import IGNORE_LABEL, MODES, Case, assert_same_histograms, assert_same_sample, make_case

pytestmark = pytest.mark.pairs

SLAB_VALUES = "nnunet_calib.measuring.volume._SLAB_VALUES"
REGION_MODES = pytest.mark.parametrize("mode", ["labels", "regions"])


@REGION_MODES
def test_merging_equals_measuring_together(mode):
    """Three cases in one volume, kept apart by ignored voxels: these make no boundary, and are wider than the band."""
    cases = [make_case(mode, (n, 6, 5), seed=n) for n in (4, 7, 5)]
    gap = Case(np.full((3, 2, 6, 5), np.nan, np.float32), np.full((2, 6, 5), IGNORE_LABEL))
    row = [cases[0], gap, cases[1], gap, cases[2]]
    together = Case(
        np.concatenate([case.probabilities for case in row], axis=1),
        np.concatenate([case.labels for case in row]),
        cases[0].regions,
        IGNORE_LABEL,
        cases[0].spacing,
    ).measure()
    merged = CaseStatistics.merge([case.measure() for case in cases])
    assert_same_histograms(merged.histograms, together.histograms)
    assert_same_sample(merged, together)
    assert merged.num_heads == 3


def test_order_and_grouping(case):
    """Any order and grouping of four cases gives the same sums; the names and voxels follow the order."""
    parts = [
        replace(case, probabilities=p).measure(case=name)
        for name, p in zip("abcd", [np.roll(case.probabilities, k, 1) for k in range(4)], strict=True)
    ]
    a, b, c, d = parts
    merged = CaseStatistics.merge(parts)
    assert merged.cases == ("a", "b", "c", "d")
    for other in [a + b + c + d, (a + b) + (c + d), a + (b + (c + d))]:
        assert_same_histograms(other.histograms, merged.histograms)
        assert_same_sample(other, merged)
        assert other.cases == merged.cases
    for order in itertools.permutations(parts):
        assert_same_histograms(CaseStatistics.merge(order).histograms, merged.histograms)


@pytest.mark.parametrize(("models", "kept"), [(({"epoch": 1},) * 2, {"epoch": 1}), (({"epoch": 1}, {}), {})])
def test_model_of_merged(models, kept):
    """What identifies the model is kept only where all cases agree."""
    parts = [make_case().measure(model=model) for model in models]
    assert CaseStatistics.merge(parts).model == kept


@pytest.mark.parametrize("order", [(2, 0, 1), (0, 2, 1), (1, 0, 2)])
def test_class_permutation(order):
    """Renaming the classes renames the errors; only the foreground depends on which class is background."""
    case = make_case()
    renamed = Case(case.probabilities[list(order)], np.argsort(order)[case.labels], spacing=case.spacing)
    for scope in SCOPES if order[0] == 0 else ("image", "boundary"):
        ours, expected = (calibration_errors(c.measure(), 20, scope) for c in (renamed, case))
        for name, values in expected.items():
            expected_values = values[list(order)] if values.ndim else values
            np.testing.assert_allclose(ours[name], expected_values, rtol=1e-9, err_msg=name)


@pytest.mark.parametrize("axes", [(0,), (1, 2), (0, 1, 2)])
def test_flips(case, axes):
    """Looking from another side changes nothing, also where arrays are views with negative strides."""
    flipped = replace(
        case, probabilities=np.flip(case.probabilities, [a + 1 for a in axes]), labels=np.flip(case.labels, axes)
    )
    assert_same_histograms(flipped.measure().histograms, case.measure().histograms)


def test_slabs(case, monkeypatch):
    """A case is measured in slabs, whose size changes nothing, not even in a thinned sample."""
    whole = case.measure(max_voxels=40)
    for size in (1, 210):
        monkeypatch.setattr(SLAB_VALUES, size)
        assert_same_histograms(case.measure(max_voxels=40).histograms, whole.histograms)
        assert_same_sample(case.measure(max_voxels=40), whole)


def test_ignored_voxels_do_not_matter():
    """Nonsense where nothing is annotated changes nothing."""
    for mode in ("labels+ignore", "regions+ignore"):
        case = make_case(mode)
        nonsense = np.where(case.labels == IGNORE_LABEL, np.nan, case.probabilities)
        assert_same_histograms(case.with_probabilities(nonsense).measure().histograms, case.measure().histograms)
        assert case.measure().histograms.voxels.sum() == (case.labels != IGNORE_LABEL).sum() < case.labels.size


@pytest.mark.parametrize("slab_values", [1, 1 << 22])
@pytest.mark.parametrize("max_voxels", [50, 10**6])
@pytest.mark.parametrize("shape", [(8, 9), (7, 6, 5)], ids=["2D", "3D"])
@pytest.mark.parametrize("mode", MODES)
def test_crop_equals_filled_volume(mode, shape, max_voxels, slab_values, monkeypatch):
    """Around the crop, background is certain: p(class 0) = 1, or p = 0 for every region."""
    monkeypatch.setattr(SLAB_VALUES, slab_values)
    case, crop = make_case(mode, shape), (slice(2, 5), slice(1, 6), slice(0, 4))[: len(shape)]
    inside = case.probabilities[(slice(None), *crop)]
    filled = np.zeros_like(case.probabilities)
    filled[0] = mode.startswith("labels")
    filled[(slice(None), *crop)] = inside
    ours = case.with_probabilities(inside).measure(crop=crop, max_voxels=max_voxels)
    expected = case.with_probabilities(filled).measure(max_voxels=max_voxels)
    assert_same_histograms(ours.histograms, expected.histograms)
    assert_same_sample(ours, expected)


def test_every_probability_is_asked_for_once(case, monkeypatch):
    """And once more those of the slice and of the voxel sample: each may have to be computed from logits."""
    monkeypatch.setattr(SLAB_VALUES, 100)
    asked = []

    class Computed:
        shape = case.probabilities.shape

        def __getitem__(self, key):
            asked.append(case.probabilities[key])
            return asked[-1]

    ours, expected = (case.with_probabilities(p).measure(max_voxels=40) for p in (Computed(), case.probabilities))
    assert_same_histograms(ours.histograms, expected.histograms)
    assert_same_sample(ours, expected)
    *slabs, of_slice, of_sample = (p.size for p in asked)
    assert sum(slabs) == case.probabilities.size
    assert max(slabs) <= case.probabilities[:, 0].size
    assert of_sample == 40 * len(case.probabilities)
    assert of_slice == case.probabilities[:, 0].size


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_tensors_and_types(case, dtype):
    """CPU tensors are measured as arrays are, and low precision as the numbers that it holds."""
    p = case.probabilities.astype(dtype)
    ours = case.with_probabilities(p).measure()
    exact = case.with_probabilities(p.astype(np.float64)).measure()
    tensors = replace(case, probabilities=torch.as_tensor(p), labels=torch.as_tensor(case.labels)).measure()
    assert_same_histograms(tensors.histograms, ours.histograms)
    assert_same_sample(tensors, ours)
    for name, values in calibration_errors(exact).items():
        np.testing.assert_allclose(calibration_errors(ours)[name], values, rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@REGION_MODES
def test_certain_probabilities(mode, dtype):
    """Zeros and ones have a finite NLL and finite logits in every type, so that a temperature can be fitted."""
    p = np.array([[0, 1, 0.5, 0.25], [1, 0, 0.5, 0.75]], dtype)
    case = Case(p, np.array([0, 1, 1, 1]), ((0,), (1,)) if mode == "regions" else None)
    measured = case.measure()
    assert np.isfinite(calibration_errors(measured)["nll"])
    assert np.isfinite(measured.sample.logits).all()
    fit_temperature(measured.sample.logits, measured.sample.labels, regions=measured.regions)


@pytest.mark.parametrize("regions", [None, ((1, 2), (2,))], ids=["labels", "regions"])
def test_temperature_1(regions):
    """float16 rounds log p by 2^-11 of itself, which moves no probability further than to the neighbouring fine bin."""
    synthetic = synthetic_case(0, (20, 20, 20))
    p = synthetic.probabilities if regions is None else synthetic.probabilities[1:].clip(0, 1)
    before = Case(p, synthetic.labels, regions).measure()
    after = before.with_temperature(1)
    for scope in SCOPES:
        exact, rounded = (s.histograms.scope(scope).counts.cumsum(1) for s in (before, after))
        assert (exact[:, :-1] <= rounded[:, 1:]).all()
        assert (rounded[:, :-1] <= exact[:, 1:]).all()
        np.testing.assert_array_equal(exact[:, -1], rounded[:, -1])
        assert calibration_errors(after, 20, scope)["nll"] == pytest.approx(
            calibration_errors(before, 20, scope)["nll"], rel=1e-3
        )


@pytest.mark.parametrize("temperature", [0.2, 0.9, 3, 15])
def test_temperature_keeps_the_decisions(case, temperature):
    """As many voxels are right as before, in every part; the probabilities are those of softmax(z / T)."""
    before, after = case.measure(), case.measure().with_temperature(temperature)
    right = [s.histograms.positives[:, -1].sum(1) for s in (before.with_temperature(1), after)]
    np.testing.assert_array_equal(*right)
    assert_same_sample(after, before)
    z = np.log(case.probabilities) - (np.log1p(-case.probabilities) if case.regions else 0)
    scaled = expit(z / temperature) if case.regions else softmax(z / temperature, axis=0)
    expected = calibration_errors(case.with_probabilities(scaled).measure())
    for name in ("nll", "brier"):
        assert calibration_errors(after)[name] == pytest.approx(expected[name], rel=2e-3), name

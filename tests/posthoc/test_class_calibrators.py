"""Temperatures by class, and vector scaling: known ones are found again in synthetic voxels."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from nnunet_calib.measuring.class_lumps import DENSE_HEADS
from nnunet_calib.posthoc import KINDS, fit, from_json
from nnunet_calib.posthoc.class_voxels import MIN_CASES, MIN_VOXELS
from nnunet_calib.posthoc.classwise import Classwise
from nnunet_calib.posthoc.temperature import fit_temperature, nll_at
from nnunet_calib.posthoc.vector import MAX_CLASSES, Vector

CASES = 12


@dataclass
class Sample:
    """Weighted voxels of a case."""

    logits: np.ndarray
    labels: np.ndarray
    weights: np.ndarray

    def __len__(self):
        return len(self.weights)


def samples(calibrator, heads, *, regions=False, voxels=20_000, cases=CASES, seed=0):
    """Cases whose labels are drawn from what a calibrator makes of their logits, log p or logit p as float16."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(cases):
        z = torch.from_numpy(rng.normal(scale=2.0, size=(heads, voxels)))
        if not regions:
            z = z.log_softmax(0)
        z = z.half().double()
        used = calibrator.logits(z, regions=regions)
        p = (used.sigmoid() if regions else used.softmax(0)).numpy()
        if regions:
            labels = rng.random(p.shape) < p
        else:
            labels = np.minimum((rng.random(voxels) > p.cumsum(0)).sum(0), heads - 1).astype(np.uint16)
        weights = rng.choice([1.0, 3.0], voxels).astype(np.float32)
        made.append(Sample(z.T.numpy().astype(np.float16), labels.T if regions else labels, weights))
    return made


@pytest.mark.parametrize("regions", [False, True])
def test_classwise(regions):
    """Each temperature is found to 1 %, within its standard error, and the NLL falls below that of one for all."""
    known = Classwise(1.5, (1.2, 1.5, 2.0), regions)
    made = samples(known, 3, regions=regions)
    found = fit("classwise", lambda: made, {"all": range(CASES), "some": {0, 1}})
    best = found["all"]
    np.testing.assert_allclose(best.calibrator.temperatures, known.temperatures, rtol=0.01)
    errors = np.array(best.standard_errors)
    assert (np.abs(np.subtract(best.calibrator.temperatures, known.temperatures)) < 3.5 * errors).all()
    assert (errors > 0).all()
    assert best.take_temperature == ()
    assert best.nll_after < best.of_all.nll_after < best.of_all.nll_before
    # two cases are too few
    few = found["some"]
    assert few.take_temperature == (0, 1, 2)
    assert {*few.calibrator.temperatures} == {few.of_all.temperature}
    assert few.nll_after == pytest.approx(few.of_all.nll_after, rel=1e-5)


def test_classwise_is_a_temperature_of_the_voxels_predicted_so():
    """The fit of a class is `fit_temperature` of its voxels, with cases as groups."""
    made = samples(Classwise(1.5, (1.2, 1.5, 2.0), regions=False), 3, voxels=2_000)
    found = fit("classwise", lambda: made, {0: range(CASES)})[0]
    z, y, w = (np.concatenate([getattr(case, name) for case in made]) for name in ("logits", "labels", "weights"))
    groups = np.repeat(np.arange(CASES), len(made[0]))
    for head in range(3):
        here = z.argmax(1) == head
        alone = fit_temperature(z[here], y[here].astype(int), weights=w[here], groups=groups[here])
        assert found.calibrator.temperatures[head] == pytest.approx(alone.temperature, rel=1e-5)
        assert found.standard_errors[head] == pytest.approx(alone.standard_error, rel=1e-3)
    assert found.of_all.nll_after == pytest.approx(nll_at(z, y.astype(int), [found.of_all.temperature], weights=w)[0])


@pytest.mark.parametrize("regions", [False, True])
def test_order(regions):
    """Temperatures by class keep the order of the classes, and each region's side of 1/2."""
    z = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0))
    after = Classwise(1.0, (0.5, 1.0, 2.0, 4.0), regions).logits(z, regions=regions)
    if regions:
        assert torch.equal(after > 0, z > 0)
    else:
        assert torch.equal(after.argsort(0), z.argsort(0))
        # a number added to all classes of a voxel changes no probability
        torch.testing.assert_close(
            after.softmax(0), Classwise(1.0, (0.5, 1.0, 2.0, 4.0), regions).logits(z + 3, regions=regions).softmax(0)
        )


@pytest.mark.parametrize("regions", [False, True])
def test_vector(regions):
    """Factors and offsets are found to their standard errors."""
    known = Vector(1.5, (0.6, 0.8, 0.5), (0.3, -0.1, -0.2), regions)
    made = samples(known, 3, regions=regions, voxels=5_000)
    found = fit("vector", lambda: made, {"all": range(CASES)}, groups=[case % 4 for case in range(CASES)])["all"]
    for ours, theirs, errors in (
        (found.calibrator.factors, known.factors, found.factor_errors),
        (found.calibrator.offsets, known.offsets, found.offset_errors),
    ):
        assert (np.array(errors) > 0).all()
        assert (np.array(errors) < 0.04).all()
        assert (np.abs(np.subtract(ours, theirs)) < 3.5 * np.array(errors)).all()
    assert found.nll_after < found.of_all.nll_after
    assert found.take_temperature == ()
    assert found.strength < 1


def test_vector_of_a_temperature():
    """Where one temperature is right, vector scaling is near it, and few cases leave it there."""
    t = 1.4
    made = samples(Vector(t, (1 / t,) * 3, (0.0,) * 3, regions=False), 3, voxels=4_000)
    found = fit("vector", lambda: made, {"all": range(CASES), "few": range(4)})
    np.testing.assert_allclose(found["all"].calibrator.factors, 1 / t, rtol=0.05)
    np.testing.assert_allclose(found["all"].calibrator.offsets, 0, atol=0.05)
    few = found["few"]
    assert few.take_temperature == (0, 1, 2)
    assert few.calibrator.factors == pytest.approx([1 / few.of_all.temperature] * 3)
    assert {*few.calibrator.offsets} == {0.0}
    assert few.factor_errors == (0, 0, 0)


@pytest.mark.parametrize("kind", ["classwise", "vector"])
def test_rare_class(kind):
    """A class with fewer effective voxels, or in fewer cases, than are wanted takes T, and the fit says so."""
    made = samples(Classwise(1.5, (1.2, 1.5, 2.0), regions=False), 3, voxels=3_000)
    for case in made[MIN_CASES - 1 :]:  # the last class is in nine cases only, predicted and true
        case.logits[:, 2] = -20
        case.labels[case.labels == 2] = 0
    found = fit(kind, lambda: made, {0: range(CASES)})[0]
    assert found.take_temperature == (2,)
    if kind == "classwise":
        assert found.calibrator.temperatures[2] == found.of_all.temperature
    else:
        assert (found.calibrator.factors[2], found.calibrator.offsets[2]) == (1 / found.of_all.temperature, 0)
    few = samples(Classwise(1.5, (1.2, 1.5, 2.0), regions=False), 3, voxels=MIN_VOXELS // CASES // 4)
    assert fit(kind, lambda: few, {0: range(CASES)})[0].take_temperature == (0, 1, 2)


@pytest.mark.parametrize("calibrator", [Classwise(1.5, (1.0, 2.0), True), Vector(1.5, (0.5, 0.7), (0.0, 0.1), False)])
def test_json(calibrator):
    """They are read as they were written, and refuse other heads."""
    assert from_json(json.loads(json.dumps(calibrator.to_json()))) == calibrator
    assert KINDS[calibrator.kind].calibrator is type(calibrator)
    with pytest.raises(ValueError, match=r"expected a calibrator of 3 .*, got one of 2"):
        calibrator.logits(torch.zeros(3, 4), regions=calibrator.regions)
    with pytest.raises(ValueError, match="expected temperature, found none"):
        from_json({"kind": calibrator.kind})


@pytest.mark.parametrize(
    "calibrator", [Classwise(1.5, (1.0, 2.0, 0.5), True), Vector(1.5, (0.5, 0.7, 1.0), (0.0, 0.1, -0.2), False)]
)
def test_last_layer(calibrator):
    """A layer with the changed weights gives calibrated logits."""
    layer = torch.nn.Conv2d(4, 3, 1).double()
    x = torch.randn(1, 4, 5, 6, dtype=torch.float64)
    expected = calibrator.logits(layer(x)[0], regions=calibrator.regions)
    weight, bias = calibrator.last_layer(layer.weight, layer.bias)
    torch.testing.assert_close(torch.nn.functional.conv2d(x, weight, bias)[0], expected)


def test_refusals():
    """What cannot be is refused in a sentence."""
    with pytest.raises(ValueError, match="nnunet_calib predict applies them"):
        Classwise(1.5, (1.0, 2.0), regions=False).last_layer(torch.ones(2, 1), torch.ones(2))
    with pytest.raises(ValueError, match="expected temperatures above 0, got -1"):
        Classwise(1.5, (1.0, -1.0), regions=False)
    with pytest.raises(ValueError, match="as many factors as offsets"):
        Vector(1.5, (1.0,), (0.0, 1.0), regions=False)
    many = samples(Classwise(1.5, (1.5,) * 9, regions=False), 9, voxels=100)
    with pytest.raises(ValueError, match="at most 8 classes"):
        fit("vector", lambda: many, {0: range(CASES)})
    assert MAX_CLASSES == DENSE_HEADS

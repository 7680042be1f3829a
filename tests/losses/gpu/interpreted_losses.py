"""The losses by the backend "triton", in Triton's interpreter; test_kernels.py runs this file in its own process."""

from __future__ import annotations

import pytest
import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper

from nnunet_calib.losses import ML1ACELoss, NACLLoss, SVLSLoss, gpu, use
from nnunet_calib.nnunet.training.loss_terms import add_term, replace_cross_entropy
from tests.losses.gpu.plain import IGNORE, make_batch
from tests.worlds.joined_losses import called_by_themselves, nnunet_loss, nnunet_region_loss

pytestmark = [
    pytest.mark.pairs,
    pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning"),  # of NumPy, which computes NaN aloud
]

TERMS = {
    "hard": (ML1ACELoss, {}),
    "soft": (ML1ACELoss, {"binning": "soft"}),
    "ece, zero, batch": (ML1ACELoss, {"reduction": "ece", "absent_classes": "zero", "pool": "batch", "num_bins": 7}),
    "mce, keep": (ML1ACELoss, {"reduction": "mce", "absent_classes": "keep", "num_bins": 5}),
    "soft, ece, keep, batch": (
        ML1ACELoss,
        {"binning": "soft", "reduction": "ece", "absent_classes": "keep", "pool": "batch", "num_bins": 6},
    ),
    "NACL": (NACLLoss, {}),
    "SVLS": (SVLSLoss, {}),
}
HALVES = {(False, False): torch.float16, (True, False): torch.bfloat16}  # of modes, float32 of the others


@pytest.fixture(params=[False, True], ids=["labels", "regions"])
def regions(request):
    """Return whether heads are regions."""
    return request.param


@pytest.fixture(params=[False, True], ids=["all", "ignore"])
def batch(request, regions):
    """Return two small images, with an ignore label or without."""
    dtype = HALVES.get((regions, request.param), torch.float32)
    return make_batch(2 if regions else 3, (5, 7), regions=regions, ignore=request.param, dtype=dtype)


def base_loss(batch, **options):
    if batch.regions:
        return nnunet_region_loss(ignore=batch.ignore_label is not None, **options)
    return nnunet_loss(ignore_label=batch.ignore_label, **options)


def with_terms(batch, *names):
    """Return nnU-Net's loss with terms."""
    base = base_loss(batch, batch_dice=len(names) > 1)
    for name in names:
        kind, options = TERMS[name]
        if kind is SVLSLoss:
            base = replace_cross_entropy(base, kind(**options, **batch.mode), batch.logits.shape[1])
        else:
            base = add_term(base, kind(**options, **batch.mode), 0.3)
    return base


def value_and_gradient(loss, logits, target):
    z = [x.clone().requires_grad_() for x in (logits if isinstance(logits, list) else [logits])]
    value = loss(z if isinstance(logits, list) else z[0], target)
    value.backward()
    return value.detach(), [x.grad for x in z]


def assert_same(actual, expected, precision):
    torch.testing.assert_close(actual[0], expected[0], rtol=2e-6, atol=2e-6)
    for a, e in zip(actual[1], expected[1], strict=True):
        largest = float(e.abs().max())
        torch.testing.assert_close(a.float(), e, rtol=2 * precision, atol=max(precision / 4, 2e-5) * largest)


PRECISION = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}


# each with nnU-Net's loss alone or with another term
COMPOUNDS = [*((name,) for name in TERMS if name not in ("soft", "NACL", "SVLS")), ("NACL", "hard"), ("SVLS", "soft")]


@pytest.mark.parametrize("names", COMPOUNDS, ids=" and ".join)
def test_compound(batch, names):
    """Dice + CE + terms is what nnU-Net's loss and the formulas give, without either of them being called."""
    loss = with_terms(batch, *names)
    with use("reference"):
        expected = value_and_gradient(loss, batch.logits.float(), batch.target)
    by_themselves = called_by_themselves(loss)
    with use("triton"):
        actual = value_and_gradient(loss, batch.logits, batch.target)
    assert by_themselves == []
    assert_same(actual, expected, PRECISION[batch.logits.dtype])


@pytest.mark.parametrize("name", ["hard", "soft, ece, keep, batch", "NACL", "SVLS"])
def test_alone(batch, name):
    """A loss by itself."""
    kind, of_kind = TERMS[name]
    loss = kind(**of_kind, **batch.mode)
    with use("reference"):
        expected = value_and_gradient(loss, batch.logits.float(), batch.target)
    with use("triton"):
        actual = value_and_gradient(loss, batch.logits, batch.target)
    assert_same(actual, expected, PRECISION[batch.logits.dtype])


def test_deep_supervision():
    """All outputs, each with nnU-Net's weight; one of weight 0 gets no gradient, as from nnU-Net."""
    batches = [make_batch(2, (size, size)) for size in (12, 6, 3)]
    loss = DeepSupervisionWrapper(nnunet_loss(), (0.6, 0.4, 0.0))
    loss = add_term(loss, ML1ACELoss(), 1.0)
    outputs, targets = [b.logits for b in batches], [b.target for b in batches]
    with use("triton"):
        value, gradients = value_and_gradient(loss, outputs, targets)
    with use("reference"):
        expected, expected_gradients = value_and_gradient(loss, outputs, targets)
    assert gradients[2] is None
    assert_same((value, gradients[:2]), (expected, expected_gradients[:2]), 1e-5)


def test_all_ignored():
    """A batch without a voxel that counts has a finite loss and no gradient."""
    batch = make_batch(2, (4, 5), ignore=True)
    batch.target[:] = IGNORE
    with use("triton"):
        value, gradients = value_and_gradient(with_terms(batch, "hard"), batch.logits, batch.target)
    assert value.isfinite()
    assert (gradients[0] == 0).all()


def test_autocast():
    """It changes nothing."""
    batch = make_batch(2, (5, 6), dtype=torch.bfloat16)
    loss = with_terms(batch, "hard")
    with use("triton"):
        expected = value_and_gradient(loss, batch.logits, batch.target)
        with torch.autocast("cpu", torch.bfloat16):
            actual = value_and_gradient(loss, batch.logits, batch.target)
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1][0], expected[1][0])


def test_refused_logits():
    """Chosen, the backend says what it cannot take; beyond its options the formulas compute."""
    batch = make_batch(2, (4, 5))
    with use("triton"), pytest.raises(ValueError, match=r"they are torch\.float64, and Triton's kernels"):
        ML1ACELoss()(batch.logits.double(), batch.target)
    with use("triton"):
        value = ML1ACELoss(num_bins=gpu.MOST_BINS + 1)(batch.logits, batch.target)
    with use("reference"):
        assert torch.equal(value, ML1ACELoss(num_bins=gpu.MOST_BINS + 1)(batch.logits, batch.target))

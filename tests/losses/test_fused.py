"""The fused loss: the plain losses' values and gradients in every mode, from float16 to float64."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from nnunet_calib.losses import ML1ACELoss, NACLLoss, SVLSLoss, use
from nnunet_calib.losses.cpu import pieces
from tests.losses.conftest import value_and_gradient
from tests.losses.plain import IGNORE, SHAPES, Batch, fused_loss, make_batch, plain_loss

pytestmark = pytest.mark.pairs

OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "batch Dice": {"batch_dice": True, "smooth": 0.5},
    "weights": {"weight_ce": 0.5, "weight_dice": 2.0, "weight_ml1_ace": 30.0},
    "no CE": {"weight_ce": 0.0},
    "no Dice": {"weight_dice": 0.0},
    "no ACE": {"weight_ml1_ace": 0.0},
    "one bin": {"num_bins": 1, "absent_classes": "zero"},
    "two bins": {"num_bins": 2, "absent_classes": "keep"},
    "many bins": {"num_bins": 100},
    "ECE": {"reduction": "ece", "absent_classes": "keep"},
    "MCE": {"reduction": "mce", "num_bins": 7},
}


def assert_same(actual: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], tolerance: float = 1e-6) -> None:
    """The value agrees relative to the terms, which are of order 1 and may cancel; the gradient to its largest."""
    value, gradient = (x.double() for x in expected)
    assert abs(actual[0].double() - value) <= tolerance * (1 + value.abs())
    assert gradient.isfinite().all()
    torch.testing.assert_close(actual[1].double(), gradient, rtol=0, atol=tolerance * float(gradient.abs().max()))


@pytest.fixture(autouse=True)
def several_pieces(monkeypatch):
    """Pieces so small that even these volumes take several, of lengths that differ."""
    monkeypatch.setattr(pieces, "PIECE", 15_000)


# every option in one shape, and those that see how images share the pieces in the others
OPTIONS_AND_SHAPES = [("3d", name) for name in OPTIONS] + [
    (shape, name) for shape in SHAPES if shape != "3d" for name in ("defaults", "batch Dice")
]


@pytest.mark.parametrize("ignore", [False, True], ids=["labels", "ignore"])
@pytest.mark.parametrize("classes", [2, 3, 15])
@pytest.mark.parametrize(("shape", "name"), OPTIONS_AND_SHAPES)
def test_plain_losses(classes, shape, ignore, name):
    """float32 agrees to 1e-6, float64 to 1e-12, with the sum of the plain losses in the same precision.

    float64 with few classes only, since the plain losses of many take long.
    """
    options = OPTIONS[name]
    for dtype, tolerance in [(torch.float32, 1e-6), (torch.float64, 1e-12)][: 1 if classes > 3 else 2]:
        batch = make_batch(classes, shape, dtype, ignore)
        value, gradient = batch.of(fused_loss, **options)
        assert (value.dtype, gradient.dtype) == (dtype, dtype)
        assert_same((value, gradient), batch.of(plain_loss, **options), tolerance)


@pytest.mark.parametrize("ignore", [False, True], ids=["labels", "ignore"])
@pytest.mark.parametrize("classes", [2, 3])
def test_bins_too_narrow_for_sure_voxels(classes, ignore):
    """Where the last bin is narrower than the margin, every voxel is binned by itself."""
    batch = make_batch(classes, "one image", ignore=ignore)
    assert_same(batch.of(fused_loss, num_bins=20_000), batch.of(plain_loss, num_bins=20_000))


@pytest.mark.parametrize("ignore", [False, True], ids=["labels", "ignore"])
def test_pieces_of_full_size(monkeypatch, ignore):
    """The size of the pieces is of no consequence, up to the largest, in which all voxels may share one bin."""
    monkeypatch.undo()
    logits = torch.tensor([9.0, 0.0]).reshape(1, 2, 1, 1).expand(1, 2, 400, 400).clone()
    target = torch.zeros(1, 1, 400, 400, dtype=torch.int16)
    target[..., ::7, ::9] = 1
    target[..., ::5, ::4] = IGNORE if ignore else 0
    batch = Batch(logits, target, IGNORE if ignore else None)
    assert_same(batch.of(fused_loss), batch.of(plain_loss))
    unsure = replace(batch, logits=logits / 9)
    assert_same(unsure.of(fused_loss), unsure.of(plain_loss))


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("largest", [100.0, 1e4])
def test_extreme_logits(classes, largest):
    """No overflow, and no -log 0, where the true class underflows."""
    batch = make_batch(classes)
    batch = replace(batch, logits=batch.logits * (largest / batch.logits.abs().max()))
    assert_same(batch.of(fused_loss), batch.of(plain_loss))


@pytest.mark.parametrize("ignore", [False, True], ids=["labels", "ignore"])
@pytest.mark.parametrize("classes", [2, 3])
def test_logits_whose_difference_overflows(classes, ignore):
    """The losses of p = 0 and 1, where all voxels are right; infinite where they are wrong."""
    batch = make_batch(classes, ignore=ignore)
    labels = batch.target.long() % classes
    right = replace(batch, logits=torch.full_like(batch.logits, -3e38).scatter_(1, labels, 3e38))
    value, gradient = right.of(fused_loss)
    assert value == pytest.approx(right.of(plain_loss)[0])
    assert gradient.abs().max() < 1e-9
    wrong = replace(right, logits=right.logits.roll(1, 1))
    assert wrong.of(fused_loss)[0] == wrong.of(plain_loss)[0] == math.inf


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("value", [0.0, 1.0, math.log(19) + 1e-4])
def test_the_same_logits_everywhere(classes, value):
    """Undecided networks, and p just above .95: not on the edge of its bin, whose side is a matter of rounding."""
    batch = make_batch(classes)
    batch = replace(batch, logits=torch.zeros_like(batch.logits).scatter_(1, batch.target.long(), value))
    assert_same(batch.of(fused_loss), batch.of(plain_loss))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("classes", [2, 15])
def test_nan_is_not_hidden(bad, classes):
    """A NaN in one voxel that counts makes the loss NaN; nnU-Net's scaler then skips the step."""
    batch = make_batch(classes)
    batch.logits[0, 1, 3, 4, 5] = bad
    assert batch.of(fused_loss)[0].isnan()


@pytest.mark.parametrize("classes", [2, 3])
def test_bad_logits_in_ignored_voxels(classes):
    """They change nothing and get no gradient."""
    batch = make_batch(classes, ignore=True)
    expected = batch.of(fused_loss)
    ignored = (batch.target == IGNORE).expand_as(batch.logits)
    value, gradient = replace(batch, logits=torch.where(ignored, math.nan, batch.logits)).of(fused_loss)
    assert torch.equal(value, expected[0])
    assert torch.equal(gradient, expected[1])
    assert not gradient[ignored].any()


@pytest.mark.parametrize("images", [slice(None), slice(1)], ids=["all", "one image"])
@pytest.mark.parametrize("classes", [2, 3])
def test_everything_ignored(classes, images):
    """The plain value, that of an empty Dice; zero gradient where nothing counts."""
    batch = make_batch(classes, ignore=True)
    batch.target[images] = IGNORE
    value, gradient = batch.of(fused_loss)
    assert_same((value, gradient), batch.of(plain_loss))
    assert not gradient[images].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("classes", [2, 3])
def test_half_precision_under_autocast(classes, dtype):
    """Computed in float32; small gradients survive where the incoming one is scaled up."""
    batch = make_batch(classes)
    half = replace(batch, logits=batch.logits.to(dtype))
    single = replace(half, logits=half.logits.float())
    scale = 2.0**16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, gradient = half.of(lambda *a, **k: scale * fused_loss(*a, **k))
    expected = single.of(lambda *a, **k: scale * plain_loss(*a, **k))
    assert (value.dtype, gradient.dtype) == (torch.float32, dtype)
    torch.testing.assert_close(value, expected[0].float(), rtol=1e-6, atol=1e-6 * scale)
    torch.testing.assert_close(gradient.float(), expected[1].to(dtype).float(), rtol=1e-2, atol=1e-5)


def test_autocast_changes_nothing():
    """Neither forward nor backward computes in less than float32."""
    batch = make_batch(15)
    expected = batch.of(fused_loss)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(map(torch.equal, batch.of(fused_loss), expected))


@pytest.mark.parametrize("classes", [2, 3])
def test_graph_used_twice(classes):
    """A retained graph gives the same gradient again, and one loss may be used in two places; inputs stay."""
    batch = make_batch(classes, ignore=True)
    logits, target = batch.logits.clone().requires_grad_(), batch.target.clone()
    loss = fused_loss(logits, target, ignore_label=IGNORE)
    loss.backward(retain_graph=True)
    once = logits.grad.clone()
    (loss + 2 * loss).backward()
    torch.testing.assert_close(logits.grad, 4 * once, rtol=0, atol=1e-6 * float(once.abs().max()))
    assert torch.equal(logits, batch.logits)
    assert torch.equal(target, batch.target)


@pytest.mark.parametrize("classes", [2, 3])
def test_two_losses_at_once(classes):
    """Deep supervision computes several losses before the first backward pass."""
    batches = [make_batch(classes), make_batch(classes, "one image"), make_batch(classes, "2d")]
    leaves = [b.logits.clone().requires_grad_() for b in batches]
    sum(fused_loss(z, b.target) / 2**i for i, (z, b) in enumerate(zip(leaves, batches, strict=True))).backward()
    for i, (z, b) in enumerate(zip(leaves, batches, strict=True)):
        torch.testing.assert_close(z.grad, b.of(fused_loss)[1] / 2**i, rtol=1e-5, atol=1e-12)


def test_only_one_derivative():
    """A second one is refused rather than wrong."""
    batch = make_batch(2)
    logits = batch.logits.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(fused_loss(logits, batch.target), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("classes", [2, 3])
def test_gradcheck(classes, options):
    """The gradient is that of the value, away from bin edges and kinks."""
    batch = make_batch(classes, "few voxels", torch.float64)
    assert torch.autograd.gradcheck(
        lambda z: fused_loss(z, batch.target, **options), batch.logits.clone().requires_grad_(), fast_mode=True
    )


@pytest.mark.parametrize("change", [lambda z: z.mT.contiguous().mT, lambda z: torch.cat([z, z], 1)[:, : z.shape[1]]])
@pytest.mark.parametrize("classes", [2, 3])
def test_strides_of_the_logits(classes, change):
    """Views and other memory formats."""
    batch = make_batch(classes)
    expected = batch.of(fused_loss)
    logits = change(batch.logits).detach().requires_grad_()
    assert not logits.is_contiguous()
    value = fused_loss(logits, batch.target)
    value.backward()
    assert torch.equal(value, expected[0])
    assert torch.equal(logits.grad, expected[1])


@pytest.mark.parametrize("ignore", [False, True], ids=["regions", "ignore"])
@pytest.mark.parametrize("confidence", [0.0, 12.0], ids=["undecided", "trained"])
@pytest.mark.parametrize(
    "loss",
    [
        ML1ACELoss(regions=True),
        NACLLoss(regions=True),
        NACLLoss(5, "gaussian", "l2", regions=True),
        SVLSLoss(regions=True),
    ],
    ids=["mL1-ACE", "NACL", "squared NACL", "SVLS"],
)
def test_regions(loss, confidence, ignore):
    """Each head is an image of two classes, binned as a whole or, where the network is confident, in part."""
    generator = torch.Generator().manual_seed(5)
    maps = torch.rand(2, 3 + ignore, 5, 8, 6, generator=generator).repeat_interleave(4, 2) < 0.3
    maps[1, 2] = False
    logits = torch.randn(2, 3, 20, 8, 6, generator=generator) + confidence * (maps[:, :3].float() - 0.5)
    if ignore:
        logits = torch.where(maps[:, 3:], torch.nan, logits)
    options = loss.options | {"ignore_label": IGNORE if ignore else None}
    expected, actual = [], []
    for way, results in (("reference", expected), ("cpu", actual)):
        with use(way):
            results += value_and_gradient(loss.function, logits, maps, **options)
    assert_same((actual[0], actual[1]), (expected[0], expected[1]), 3e-6)  # both are rounded


@pytest.mark.parametrize(
    ("label", "text"),
    [(3, "from 0 to 3"), (-1, "from -1 to 2"), (2**32, "from 0 to 4294967296"), (-(2**32), "from -4294967296 to 2")],
)
def test_label_without_class(label, text):
    """The sentence of the plain losses."""
    batch = make_batch(3)
    target = batch.target.long()
    target[0, 0, 0, 0, 0] = label
    with pytest.raises(ValueError, match=rf"expected labels from 0 to 2.*got values {text}: check the labels"):
        fused_loss(batch.logits, target)

"""NACL and SVLS from soft labels at borders only: the losses with whole maps, for any logits."""

from __future__ import annotations

import re
from functools import partial

import pytest
import torch
from torch.nn.functional import one_hot

from nnunet_calib.losses import cpu, nacl_loss, svls_loss, use
from nnunet_calib.losses.cpu.borders import find_borders
from tests.losses.conftest import IGNORE_LABEL, assert_same, make_case, value_and_gradient
from tests.losses.test_borders import IGNORE, blocks

pytestmark = pytest.mark.pairs

LOSSES = {
    "nacl": nacl_loss,
    "nacl-l2": partial(nacl_loss, penalty="l2"),
    "nacl-gaussian": partial(nacl_loss, prior="gaussian", kernel_size=5, sigma=2.0),
    "nacl-gaussian-l2": partial(nacl_loss, prior="gaussian", penalty="l2", sigma=0.1),
    "svls": svls_loss,
    "svls-wide": partial(svls_loss, kernel_size=5, sigma=3.0),
    "svls-narrow": partial(svls_loss, kernel_size=(3, 1), sigma=0.1),
}
every_loss = pytest.mark.parametrize("name", LOSSES)
ignore_or_not = pytest.mark.parametrize("mode", ["labels", "labels+ignore"])


def from_maps(*args, **options):
    """Value and gradient from whole maps."""
    with use("reference"):
        return value_and_gradient(*args, **options)


def batch(shape: tuple[int, ...] = (9, 12), mode: str = "labels+ignore", dtype: torch.dtype = torch.float64):
    """Logits, blocks of labels and the ignore label; a kernel (3, 1) is meant for two axes."""
    case = make_case(mode, shape)
    target = blocks(3, (2, *shape), ignore=mode.endswith("ignore"))
    return case.logits.to(dtype), torch.where(target == IGNORE, IGNORE_LABEL, target), case.ignore_label


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)], ids=str)
@pytest.mark.parametrize("shape", [(9, 12), (40, 30), (1, 1)], ids=str)
@pytest.mark.parametrize("largest", [5, 1e4])
@ignore_or_not
@every_loss
def test_2d(name, mode, shape, dtype, tolerance, largest):
    """Value and gradient are those of the filtered maps, with extreme logits too."""
    logits, target, ignore_label = batch(shape, mode, dtype)
    if shape == (1, 1):
        target.clamp_(max=2)
    logits *= largest / logits.abs().max()
    expected = from_maps(LOSSES[name], logits, target, ignore_label=ignore_label)
    actual = value_and_gradient(LOSSES[name], logits, target, ignore_label=ignore_label)
    assert actual[0].dtype == actual[1].dtype == dtype
    assert_same(tuple(x.double() for x in actual), expected, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)], ids=str)
@pytest.mark.parametrize("shape", [(9, 10, 8), (1, 12, 2)], ids=str)
@ignore_or_not
@pytest.mark.parametrize("name", [name for name in LOSSES if name != "svls-narrow"])
def test_3d(name, mode, shape, dtype, tolerance):
    """Value and gradient are those of the filtered maps."""
    logits, target, ignore_label = batch(shape, mode, dtype)
    expected = from_maps(LOSSES[name], logits, target, ignore_label=ignore_label)
    actual = value_and_gradient(LOSSES[name], logits, target, ignore_label=ignore_label)
    assert_same(tuple(x.double() for x in actual), expected, tolerance)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@every_loss
def test_half_precision(name, dtype, autocast):
    """Computed in float32, with autocast or not; the gradient is rounded once."""
    logits, target, ignore_label = batch(dtype=dtype)
    expected = from_maps(LOSSES[name], logits.float(), target, ignore_label=ignore_label)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        value, gradient = value_and_gradient(LOSSES[name], logits, target, ignore_label=ignore_label)
    assert (value.dtype, gradient.dtype) == (torch.float32, dtype)
    torch.testing.assert_close(value, expected[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.float(), expected[1], rtol=torch.finfo(dtype).eps, atol=1e-7)


STRIDES = {
    "permuted": lambda z: z.transpose(1, -1).contiguous().transpose(1, -1),
    "channels last": lambda z: z.to(memory_format=torch.channels_last),
    "part": lambda z: torch.cat([z, z], 1)[:, :3],
    "every other voxel": lambda z: z.repeat_interleave(2, -1)[..., ::2],
}


@pytest.mark.parametrize("change", STRIDES.values(), ids=STRIDES.keys())
@ignore_or_not
@every_loss
def test_strides_of_the_logits(name, mode, change):
    """Views and other memory formats give the same."""
    plain, target, ignore_label = batch(mode=mode)
    expected = value_and_gradient(LOSSES[name], plain, target, ignore_label=ignore_label)
    logits = change(plain).detach().requires_grad_()
    assert not logits.is_contiguous()
    value = LOSSES[name](logits, target, ignore_label=ignore_label)
    value.backward()
    assert_same((value.detach(), logits.grad), expected, 1e-14)


@pytest.mark.parametrize("head", [0, 1, 2])
@every_loss
def test_nan_is_not_hidden(name, head):
    """A NaN in a voxel that counts, at a border or away from one, and of any class, makes the loss NaN."""
    logits, target, ignore_label = batch(mode="labels")
    target = target * 0 + (torch.arange(12) < 6)  # two halves; the voxel at 0 lies far from the border, that at 6 at it
    for voxel in (0, 6):
        bad = logits.clone()
        bad[1, head, 4, voxel] = torch.nan
        assert LOSSES[name](bad, target, ignore_label=ignore_label).isnan()


@pytest.mark.parametrize("voxel", [0, 6], ids=["away from the border", "at it"])
@pytest.mark.parametrize("head", [0, 1, 2])
@pytest.mark.parametrize("bad", [torch.inf, -torch.inf])
@pytest.mark.parametrize("name", [name for name in LOSSES if name.startswith("nacl")])
def test_infinite_logits(name, bad, head, voxel):
    """They make NACL infinite; the gradient is that from whole maps."""
    logits, target, _ = batch(mode="labels")
    target = target * 0 + (torch.arange(12) < 6)
    logits[1, head, 4, voxel] = bad
    value, gradient = value_and_gradient(LOSSES[name], logits, target)
    assert value == torch.inf
    expected = from_maps(LOSSES[name], logits, target)
    torch.testing.assert_close(gradient, expected[1], rtol=1e-12, atol=1e-14)
    assert expected[0] == torch.inf


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@every_loss
def test_bad_logits_in_ignored_voxels(name, bad):
    """They change nothing and get no gradient."""
    logits, target, ignore_label = batch()
    ignored = (target == ignore_label).expand_as(logits)
    expected = value_and_gradient(LOSSES[name], logits, target, ignore_label=ignore_label)
    actual = value_and_gradient(LOSSES[name], torch.where(ignored, bad, logits), target, ignore_label=ignore_label)
    assert all(map(torch.equal, actual, expected))
    assert not actual[1][ignored].any()


@pytest.mark.parametrize("shape", [(9, 12), (1, 1)], ids=str)
@every_loss
def test_everything_ignored(name, shape):
    """Loss and gradient are exactly 0, whatever the logits."""
    logits, target, ignore_label = batch(shape)
    value, gradient = value_and_gradient(
        LOSSES[name],
        torch.full_like(logits, torch.nan),
        torch.full_like(target, ignore_label),
        ignore_label=ignore_label,
    )
    assert value == 0
    assert not gradient.any()


@every_loss
def test_graph_used_twice(name):
    """A retained graph gives the same gradient again, and one loss may be used in two places; inputs stay."""
    plain, target, ignore_label = batch()
    logits, labels = plain.clone().requires_grad_(), target.clone()
    loss = LOSSES[name](logits, labels, ignore_label=ignore_label)
    loss.backward(retain_graph=True)
    once = logits.grad.clone()
    assert once.any()
    (loss + 2 * loss).backward()
    torch.testing.assert_close(logits.grad, 4 * once, rtol=1e-12, atol=0)
    assert torch.equal(logits, plain)
    assert torch.equal(labels, target)


@pytest.mark.parametrize("ignore_label", [None, IGNORE_LABEL])
@pytest.mark.parametrize(
    ("label", "text"),
    [(4, "from 0 to 4"), (-1, "from -1 to 2"), (2**32, "from 0 to 4294967296"), (2**31, "from 0 to 2147483648")],
)
@every_loss
def test_label_without_class(name, label, text, ignore_label):
    """The error says which labels were expected and which came, those of ignored voxels aside."""
    logits, target, _ = batch(mode="labels")
    target[0, 0, 1, 1] = label
    if ignore_label is not None:
        target[0, 0, 2] = ignore_label
    message = (
        f"expected labels from 0 to 2 (or the ignore label, {ignore_label}), got values {text}: "
        "check the labels in dataset.json against the label maps"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        LOSSES[name](logits, target, ignore_label=ignore_label)


@pytest.mark.parametrize(
    ("loss", "options", "looks"),
    [
        (nacl_loss, {}, True),
        (nacl_loss, {"prior": "gaussian", "penalty": "l2"}, True),
        (nacl_loss, {"prior": "median"}, False),
        (nacl_loss, {"on": "probabilities"}, False),
        (nacl_loss, {"regions": True}, True),
        (svls_loss, {}, True),
        (svls_loss, {"regions": True}, True),
    ],
)
def test_where_borders_are_looked_for(monkeypatch, loss, options, looks):
    """On a CPU, for priors that are one-hot away from borders."""
    calls = []

    def counted(*args, **more):
        calls.append(1)
        return find_borders(*args, **more)

    monkeypatch.setattr(cpu, "find_borders", counted)
    logits, target, _ = batch(mode="labels")
    loss(logits, one_hot(target[:, 0], 3).movedim(-1, 1) if options.get("regions") else target, **options)
    assert len(calls) == looks

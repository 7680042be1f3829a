"""What the losses cost on a GPU and on Apple's MPS, counted on fake tensors: memory, waiting, additions of floats."""

from __future__ import annotations

import math

import pytest
import torch

from nnunet_calib.losses import (
    DicePlusPlusLoss,
    EntropyPenalty,
    FocalLoss,
    LabelSmoothingLoss,
    MarginLabelSmoothingLoss,
    MDCALoss,
    ML1ACELoss,
    NACLLoss,
    SVLSLoss,
    ml1_ace,
    targets,
    use,
)
from nnunet_calib.losses.chunked import bins
from nnunet_calib.losses.joined import DiceCE, joined_loss
from tests.losses.cost import backward, cost_of
from tests.losses.counting import Count

pytestmark = pytest.mark.pairs

TERMS = {
    "mL1-ACE": [(ML1ACELoss, {})],
    "soft mL1-ACE": [(ML1ACELoss, {"binning": "soft", "pool": "batch"})],
    "NACL": [(NACLLoss, {})],
    "Gaussian NACL": [(NACLLoss, {"prior": "gaussian", "penalty": "l2"})],
    "SVLS": [(SVLSLoss, {})],
    "NACL + mL1-ACE": [(NACLLoss, {}), (ML1ACELoss, {})],
}
COMPARATORS = (LabelSmoothingLoss, MarginLabelSmoothingLoss, FocalLoss, EntropyPenalty, DicePlusPlusLoss, MDCALoss)
SIZE = (128, 128, 128)


def joined(name, *, regions=False, ignore_label=None):
    """Dice + cross-entropy with terms."""
    mode = {"regions": regions, "ignore_label": ignore_label}
    terms = [(loss(**options, **mode), 1.0) for loss, options in TERMS[name]]
    return lambda z, y: joined_loss(z, y, DiceCE(weight_ce=float(name != "SVLS"), **mode), terms)


def in_logits(size: int, shape: tuple[int, ...]) -> float:
    """Bytes as multiples of the logits' in float32."""
    return size / (4 * math.prod(shape))


MANY = pytest.mark.slow  # heads, hence parts


# of many heads, one loss of each kind
CHUNKED = [(name, 4, 2.5) for name in ("mL1-ACE", "soft mL1-ACE", "NACL + mL1-ACE", "SVLS")] + [
    pytest.param(name, 15, 1.1, marks=MANY) for name in ("soft mL1-ACE", "SVLS")
]


@pytest.mark.parametrize("regions", [False, True], ids=["labels", "regions"])
@pytest.mark.parametrize(("name", "heads", "most"), CHUNKED)
def test_chunked(name, heads, most, regions):
    """The largest memory of a step, its gradient included; nothing waits, and floats are added in a fixed order."""
    shape = (2, heads, *SIZE)
    with use("chunked"):
        cost = cost_of(joined(name, regions=regions), shape, regions=regions)
    assert in_logits(cost.peak, shape) < most
    assert cost.waiting == []
    assert cost.float_additions == 0


@pytest.mark.parametrize("regions", [False, True], ids=["labels", "regions"])
@pytest.mark.parametrize("loss", COMPARATORS)
def test_comparators(monkeypatch, loss, regions):
    """With Dice + cross-entropy no more memory than mL1-ACE; no waiting, and no float64 where there is none."""
    mode, shape = {"regions": regions, "ignore_label": 9}, (2, 4, *SIZE)
    with use("chunked"):
        whole = cost_of(
            lambda z, y: joined_loss(z, y, DiceCE(**mode), [(loss(**mode), 1.0)]), shape, regions=regions, ignore=True
        )
    assert in_logits(whole.peak, shape) < 1.8
    assert whole.waiting == []
    assert whole.float_additions == 0
    monkeypatch.setattr(targets, "WITHOUT_FLOAT64", {"cuda"})
    for module in (ml1_ace, bins):
        monkeypatch.setattr(module, "bin_index", lambda p, num_bins: (p.detach() * num_bins).long())
    for way in ("reference", "chunked"):
        with use(way):
            options = {"regions": regions, "ignore": True, "dtype": torch.float32}
            alone = cost_of(loss(**mode), (2, 3, 16, 16, 16), **options)
        assert alone.waiting == []
        assert torch.float64 not in alone.types


@pytest.mark.parametrize("regions", [False, True], ids=["labels", "regions"])
@pytest.mark.parametrize("way", ["reference", "chunked"])
@pytest.mark.parametrize("name", TERMS)
def test_no_waiting(name, way, regions):
    """No way waits for a GPU, with an ignore label neither."""
    with use(way):
        for loss, options in TERMS[name]:
            alone = loss(**options, regions=regions, ignore_label=9)
            cost = cost_of(alone, (2, 3, 16, 16, 16), regions=regions, ignore=True)
            assert cost.waiting == []


@pytest.mark.parametrize("prior", ["mean", "gaussian", "max", "min", "median", "mode"])
@pytest.mark.parametrize("way", ["reference", "chunked"])
def test_every_prior(way, prior):
    """The formulas of NACL do not wait either, nor do they add floats in any order."""
    with use(way):
        cost = cost_of(NACLLoss(prior=prior, ignore_label=9), (2, 3, 16, 16, 16), ignore=True)
    assert cost.waiting == []
    assert cost.float_additions == 0


@pytest.mark.parametrize("regions", [False, True], ids=["labels", "regions"])
@pytest.mark.parametrize("way", ["reference", "chunked"])
@pytest.mark.parametrize("name", TERMS)
def test_device_without_float64(monkeypatch, name, way, regions):
    """No float64 comes up on a device that has none, as Apple's MPS; PyTorch for others has no such tensors."""
    monkeypatch.setattr(targets, "WITHOUT_FLOAT64", {"cuda"})
    for module in (ml1_ace, bins):  # the rule itself looks at the device's type
        monkeypatch.setattr(module, "bin_index", lambda p, num_bins: (p.detach() * num_bins).long())
    with use(way):
        for loss, options in TERMS[name]:
            alone = loss(**options, regions=regions, ignore_label=9)
            cost = cost_of(alone, (2, 3, 16, 16, 16), regions=regions, ignore=True, dtype=torch.float32)
            assert torch.float64 not in cost.types
            assert cost.waiting == []


def test_mps():
    """Apple's devices are among those without float64."""
    assert targets.widest(torch.device("mps")) == torch.float32
    assert targets.widest(torch.device("cuda")) == targets.widest(torch.device("cpu")) == torch.float64


def test_the_count_itself():
    """Losses whose cost is known: memory, additions by index, types, and operations that need a number."""
    shape = (2, 4, 32, 32, 32)

    def adding(z, y):
        return z.new_zeros(4, dtype=torch.float32).scatter_add(0, y.flatten().long(), z[:, 0].flatten().float()).sum()

    # twice the logits, which are forgotten, and the gradient; then with what is kept for it, and both gradients
    for loss, size in ((lambda z, _: (2 * z).sum(), 1), (lambda z, _: torch.sigmoid(2 * z).sum(), 2)):
        assert in_logits(cost_of(loss, shape, dtype=torch.float32).peak, shape) == pytest.approx(size, abs=0.01)
    assert cost_of(adding, shape).float_additions == 2 * 32**3
    assert torch.float64 in cost_of(lambda z, _: z.double().sum(), shape).types
    for waiting in (lambda z, y: z.sum() * y.nonzero().sum(), lambda z, y: z[:, :1][y > 0].sum()):
        with pytest.raises(torch._subclasses.fake_tensor.DynamicOutputShapeException):
            cost_of(waiting, shape)
    there_and_back = cost_of(lambda z, _: z.sum() + z.detach().sum().to("cpu").to("cuda"), shape)
    assert there_and_back.waiting == ["_to_copy from cuda:0 to cpu", "_to_copy from cpu to cuda:0"]


@pytest.mark.parametrize("name", ["mL1-ACE", "SVLS"])
def test_the_engine_agrees(name):
    """The peak with our walk of the graph is that with PyTorch's engine, on real tensors."""
    peaks = []
    for engine in (backward, lambda loss: loss.pop().backward()):
        logits = torch.randn(2, 4, 24, 24, 24, generator=torch.Generator().manual_seed(0)).requires_grad_()
        target = torch.randint(0, 4, (2, 1, 24, 24, 24), generator=torch.Generator().manual_seed(1))
        counted = Count(logits, target)
        with counted, use("chunked"):
            engine([joined(name)(logits, target)])
        peaks.append(counted.peak)
    assert peaks[0] == pytest.approx(peaks[1], rel=0.02)

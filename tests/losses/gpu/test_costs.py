"""What the backend "triton" costs, counted without a GPU: memory, launches, and that nothing waits for the device."""

from __future__ import annotations

import pytest
import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper

from nnunet_calib.losses import ML1ACELoss, NACLLoss, SVLSLoss, gpu, use
from nnunet_calib.nnunet.training.loss_terms import add_term, replace_cross_entropy
from tests.losses.counting import count
from tests.worlds.joined_losses import nnunet_loss, nnunet_region_loss

pytest.importorskip("triton")  # comes with PyTorch's packages for GPUs

SMALLEST = {2: 1.3, 4: 0.95, 15: 0.65, 62: 0.55}  # peak in float32 bytes of the logits
TERMS = {
    "hard": [ML1ACELoss],
    "soft": [ML1ACELoss],
    "NACL": [NACLLoss],
    "SVLS": [SVLSLoss],
    "NACL and hard": [NACLLoss, ML1ACELoss],
}


@pytest.fixture
def counted_launches(monkeypatch):
    """Let the backend take any tensors, and count its kernels instead of starting them."""
    from nnunet_calib.losses.gpu import bin_error, neighbour_terms, sums

    monkeypatch.setattr(gpu, "why_missing", lambda: None)
    monkeypatch.setattr(gpu, "why_not", lambda logits, *, regions: None)
    monkeypatch.setattr(gpu.launch, "works", lambda *arguments, **options: True)

    def before(counted):
        for module in (sums, neighbour_terms, bin_error):
            monkeypatch.setattr(module, "launch", counted.launch)

    with use("triton"):
        yield before


def with_terms(names, heads, regions=False, ignore=False, base=None):
    """Return nnU-Net's loss with terms."""
    options = {"regions": regions, "ignore_label": heads if ignore else None}
    loss = base or (nnunet_region_loss(ignore=ignore) if regions else nnunet_loss(options["ignore_label"]))
    for kind in TERMS[names]:
        if kind is SVLSLoss:
            loss = replace_cross_entropy(loss, kind(**options), heads)
        else:
            loss = add_term(loss, kind(**options, **({"binning": "soft"} if names == "soft" else {})), 1.0)
    return loss


@pytest.mark.parametrize("names", TERMS)
@pytest.mark.parametrize("heads", SMALLEST)
def test_memory_for_labels(counted_launches, heads, names):
    """The whole loss with its gradient takes less than the float32 logits and a third, from 15 classes on, half."""
    counted, peak = count(with_terms(names, heads), heads, before=counted_launches)
    assert peak <= SMALLEST[heads]
    assert peak > 0.5  # the gradient alone
    assert counted.waiting == []


@pytest.mark.parametrize("names", TERMS)
@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.parametrize("heads", [1, 4, 15])
def test_memory_for_regions(counted_launches, heads, ignore, names):
    """Regions need nothing but the gradient and the sums of parts."""
    loss = with_terms(names, heads, regions=True, ignore=ignore)
    counted, peak = count(loss, heads, before=counted_launches, regions=True, ignore=ignore)
    assert 0.5 < peak <= 0.6
    assert counted.waiting == []


def stock_launches(outputs, regions):
    """How many kernels nnU-Net's own loss starts; under autocast it computes in float32."""
    base = nnunet_region_loss() if regions else nnunet_loss()
    stock = DeepSupervisionWrapper(base, [1.0] * outputs) if outputs > 1 else base

    def in_float32(logits, targets):
        return stock([x.float() for x in logits] if outputs > 1 else logits.float(), targets)

    return count(in_float32, 3, size=32, outputs=outputs, regions=regions)[0].launches


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("outputs", [1, 5])
@pytest.mark.parametrize("names", TERMS)
def test_launches(counted_launches, names, outputs, regions):
    """At most 20 more launches for each output than nnU-Net's own loss has."""
    base = nnunet_region_loss() if regions else nnunet_loss()
    base = DeepSupervisionWrapper(base, [1.0] * outputs) if outputs > 1 else base
    loss = with_terms(names, 3, regions=regions, base=base)
    counted, _ = count(loss, 3, size=32, outputs=outputs, before=counted_launches, regions=regions)
    own = stock_launches(outputs, regions)
    assert counted.launches <= own + 20 * outputs


def test_what_counting_sees():
    """Memory is freed when nobody holds it, a view is not counted twice, and what waits is found."""

    def loss(logits, target):
        doubled = logits.float() * 2  # two tensors of one unit at once, then one, then two again with the square
        flat = doubled.view(-1)
        return (flat.detach() ** 2).sum() + logits.sum()

    counted, peak = count(loss, 2, size=16)
    assert 2 <= peak < 2.1
    assert counted.waiting == []
    assert counted.launches > 4

    def waits(logits, target):
        return logits[target.expand_as(logits) > 0].sum()

    with pytest.raises(Exception, match=r"nonzero|data-dependent|dynamic"):
        count(waits, 2, size=4)

    def asks(logits, target):
        return logits.sum() if torch.zeros(()).sum() > 1 else logits.sum() * 2

    with pytest.raises(Exception, match=r"data-dependent|scalar|guard"):
        count(asks, 2, size=4)

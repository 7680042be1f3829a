"""The kernels of NACL and SVLS in Triton's interpreter; test_kernels.py runs this file in a process of its own."""

from __future__ import annotations

import pytest
import torch

from nnunet_calib.losses import gpu, nacl_loss, use
from nnunet_calib.losses.gpu import neighbour_terms
from nnunet_calib.losses.nacl import neighbour_prior
from nnunet_calib.losses.neighbourhood import gaussian, spatially_varying_labels
from nnunet_calib.losses.targets import prepare
from tests.losses.gpu.plain import make_batch

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")  # of NumPy, which computes NaN aloud

# The interpreter takes its time for each program, class and neighbour, hardly any for voxels.
BATCHES = {
    "labels 2D": {"heads": 3, "shape": (7, 9)},
    "labels 2D, ignore, fp16": {"heads": 3, "shape": (6, 11), "ignore": True, "dtype": torch.float16},
    "regions 2D, ignore": {"heads": 2, "shape": (7, 9), "regions": True, "ignore": True},
    "regions 2D, bf16": {"heads": 2, "shape": (5, 8), "regions": True, "dtype": torch.bfloat16},
}
PRECISION = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
all_batches = pytest.mark.parametrize("options", BATCHES.values(), ids=BATCHES.keys())
both = pytest.mark.parametrize("regions", [False, True], ids=["labels", "regions"])


def assert_agree(batch, ways, compare):
    """Two ways agree in the value and, of three times the value plus the squares of the logits, in the gradient."""
    found = []
    for way, x in zip(ways, (batch.logits, batch.logits.float()), strict=True):
        z = x.clone().requires_grad_()
        logits, value = way(z)
        (3 * value + logits.square().sum(dtype=torch.float32) / 500).backward()
        found.append((value.detach(), z.grad))
    (value, gradient), (expected, expected_gradient) = found
    assert value.dtype == torch.float32
    assert gradient.dtype == batch.logits.dtype
    torch.testing.assert_close(value, expected, rtol=compare, atol=1e-7)
    largest = float(expected_gradient.abs().max())
    precision = PRECISION[gradient.dtype]
    torch.testing.assert_close(gradient.float(), expected_gradient, rtol=2 * precision, atol=precision * largest)


def assert_nacl_agrees(batch, prior="mean", penalty="l1", kernel_size=3, sigma=1.0):
    options = {"prior": prior, "penalty": penalty, "kernel_size": kernel_size, "sigma": sigma, **batch.mode}

    def formula(z):
        with use("reference"):
            return z, nacl_loss(z, batch.target, **options)

    assert_agree(batch, (lambda z: gpu.nacl(z, batch.target, on="logits", **options), formula), 2e-6)


def assert_smoothing_agrees(batch, kernel_size=3, sigma=1.0):
    options = {"kernel_size": kernel_size, "sigma": sigma, **batch.mode}

    def formula(z):
        wide, maps, valid = prepare(z, batch.target, **batch.mode)
        soft = spatially_varying_labels(maps, valid, kernel_size, sigma)
        count = maps[:, :1].numel() if valid is None else valid.sum()
        count = count * (z.shape[1] if batch.regions else 1)
        difference = (maps - soft) * wide
        return z, (difference if valid is None else torch.where(valid, difference, 0)).sum() / count

    assert_agree(batch, (lambda z: gpu.label_smoothing(z, batch.target, **options), formula), 1e-5)


@all_batches
def test_means(options):
    """NACL by its formula, with its gradient added to what comes in."""
    assert_nacl_agrees(make_batch(**options, sure=2.0))


@pytest.mark.parametrize("prior", ["gaussian", "max", "min", "median", "mode"])
@pytest.mark.parametrize("name", ["labels 2D, ignore, fp16", "regions 2D, ignore"])
def test_priors(name, prior):
    """The other priors."""
    assert_nacl_agrees(make_batch(**BATCHES[name], sure=2.0), prior)


@both
def test_squares(regions):
    """The l2 penalty, in neighbourhoods of 5 x 1."""
    assert_nacl_agrees(make_batch(2, (7, 4), regions=regions, ignore=True), penalty="l2", kernel_size=(5, 1))


@all_batches
def test_smoothing(options):
    """What SVLS adds to the cross-entropy."""
    assert_smoothing_agrees(make_batch(**options))


@both
@pytest.mark.parametrize(("kernel_size", "sigma"), [((1, 5), 0.4), (1, 1.0)])
def test_kernels_of_smoothing(regions, kernel_size, sigma):
    """A narrow row; and one voxel, whose label is not smoothed."""
    assert_smoothing_agrees(make_batch(2, (4, 7), regions=regions, ignore=True), kernel_size, sigma)


@both
@pytest.mark.parametrize("agree", [assert_nacl_agrees, assert_smoothing_agrees])
def test_volumes(agree, regions):
    """In 3D, with one axis or another left out."""
    agree(make_batch(2, (4, 3, 5), regions=regions, ignore=True), kernel_size=(3, 3, 1))
    agree(make_batch(2, (2, 3, 5), regions=regions), kernel_size=(1, 3, 3))


@both
@pytest.mark.parametrize("agree", [assert_nacl_agrees, assert_smoothing_agrees])
def test_many_blocks(monkeypatch, agree, regions):
    """Blocks with one label and blocks with several, the last one not full."""
    monkeypatch.setattr(neighbour_terms, "BLOCK", 16)
    batch = make_batch(2, (5, 5), regions=regions)
    if not regions:
        batch.target[0, 0, :4] = 1
    agree(batch)


def test_logits_on_their_prior():
    """Where a logit equals its prior exactly, the l1 penalty has no slope, as by the formula."""
    batch = make_batch(2, (6, 6))
    maps = torch.cat([batch.target == 0, batch.target == 1], 1).float()
    tau = neighbour_prior(maps, None, kernel_size=3, prior="mean", sigma=1.0, regions=False)
    assert ((tau > 0) & (tau < 1)).any()
    batch.logits[:] = tau
    batch.logits[:, 0, ::2] += 0.5
    assert_nacl_agrees(batch)


@both
def test_nothing_but_this_loss(regions):
    """Without a gradient of something else the loss brings its own; ignored voxels get none, whatever is there."""
    batch = make_batch(2, (5, 6), regions=regions, ignore=True)
    ignored = batch.target[:, -1:] == (1 if regions else batch.ignore_label)
    options = {"kernel_size": 3, "prior": "mean", "penalty": "l1", "on": "logits", "sigma": 1.0, **batch.mode}
    gradients = []
    for logits in (batch.logits, torch.where(ignored, torch.nan, batch.logits)):
        z = logits.clone().requires_grad_()
        gpu.nacl(z, batch.target, **options)[1].backward()
        gradients.append(z.grad)
    assert torch.equal(*gradients)
    assert (gradients[0][ignored.expand_as(z)] == 0).all()
    assert (gradients[0][~ignored.expand_as(z)] != 0).all()

    z = batch.logits.clone()
    z[:, 0][~ignored[:, 0]] = torch.nan
    assert gpu.nacl(z, batch.target, **options)[1].isnan()
    everything = torch.full_like(batch.target, True if regions else batch.ignore_label)
    z = batch.logits.clone().requires_grad_()
    value = gpu.nacl(z, everything, **options)[1]
    value.backward()
    assert value == 0
    assert (z.grad == 0).all()


def test_kept_graph():
    """A second pass through a kept graph gives the same gradient, to the last bit."""
    batch = make_batch(3, (5, 6))
    z = batch.logits.clone().requires_grad_()
    logits, value = gpu.label_smoothing(z, batch.target, kernel_size=3, sigma=1.0, **batch.mode)
    sums = gpu.voxel_sums(logits, batch.target, num_bins=0, binning="hard", **batch.mode)
    gradients = [torch.autograd.grad(sums.nll + value, z, retain_graph=True)[0] for _ in range(2)]
    assert torch.equal(*gradients)


def test_weights():
    """As `spatially_varying_labels` has them; without sigma all neighbours weigh the same."""
    falloff, centre = neighbour_terms.weights((1, 3, 5), 0.7)
    rows = [gaussian(size, 0.7) for size in (3, 5)]
    assert centre == pytest.approx(sum(a * b for a in rows[0] for b in rows[1]) - 1)
    assert 2.718281828**-falloff == pytest.approx(rows[0][0])
    assert neighbour_terms.weights((3, 3, 3), None) == (0.0, 1.0)


def test_what_is_refused():
    """Labels without a class; NACL on probabilities is left to the formulas."""
    batch = make_batch(3, (5, 6))
    options = {"kernel_size": 3, "prior": "mean", "penalty": "l1", "sigma": 1.0, **batch.mode}
    assert gpu.nacl(batch.logits, batch.target, on="probabilities", **options) is None
    batch.target[1, 0, 2, 2] = 5
    with pytest.raises(ValueError, match=r"expected labels from 0 to 2 .*, got values from 0 to 5"):
        gpu.nacl(batch.logits, batch.target, on="logits", **options)
    with pytest.raises(ValueError, match="expected sigma to be at least"):
        gpu.label_smoothing(batch.logits, batch.target, kernel_size=3, sigma=0.01, **batch.mode)

"""The kernels of the sums over voxels, in Triton's interpreter; test_kernels.py runs this file in its own process."""

from __future__ import annotations

import re

import pytest
import torch
import triton
import triton.language as tl

from nnunet_calib.binning import bin_index
from nnunet_calib.losses import gpu
from nnunet_calib.losses.gpu import sums as sums_module
from nnunet_calib.losses.gpu import voxel_kernels
from tests.losses.gpu.plain import make_batch, plain_sums

pytestmark = [
    pytest.mark.usefixtures("exact_fma"),
    pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning"),  # of NumPy, which computes NaN aloud
]

# The interpreter takes its time for each program (class and image) and each bin, hardly any for voxels.
BINS = {"no bins": (0, "hard"), "hard": (7, "hard"), "soft": (7, "soft"), "few soft": (3, "soft"), "one": (1, "soft")}
BATCHES = {
    "labels 2D": {"heads": 2, "shape": (7, 9)},
    "labels 3D, ignore, fp16": {"heads": 4, "shape": (3, 4, 5), "ignore": True, "dtype": torch.float16},
    "labels 2D, ignore, bf16, fresh": {
        "heads": 3,
        "shape": (6, 7),
        "ignore": True,
        "dtype": torch.bfloat16,
        "sure": 0.0,
    },
    "regions 3D, ignore": {"heads": 3, "shape": (3, 4, 5), "regions": True, "ignore": True},
    "regions 2D, fp16, fresh": {"heads": 2, "shape": (5, 9), "regions": True, "dtype": torch.float16, "sure": 0.0},
    "regions 2D, bf16": {"heads": 1, "shape": (8, 8), "regions": True, "dtype": torch.bfloat16},
}


def functional(sums, soft):
    """Return a sum of all sums that have a gradient, each entry with a weight of its own."""
    values = [sums.nll, sums.total, sums.of_true, sums.probability, *([sums.weight, sums.positive] if soft else [])]
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in values]
    return sum((w * x).sum() for w, x in zip(weights, values, strict=True))


def assert_agree(batch, bins, binning):
    """All sums to 1e-5 of their scale, the gradient to what its type can hold."""
    soft = binning == "soft"
    z = batch.logits.clone().requires_grad_()
    actual = gpu.voxel_sums(z, batch.target, num_bins=bins, binning=binning, **batch.mode)
    functional(actual, soft).backward()
    wide = batch.logits.float().requires_grad_()
    expected = plain_sums(wide, batch, bins, soft)
    functional(expected, soft).backward()
    for name, a, e in zip(actual._fields[:8], actual, expected, strict=False):
        assert a.shape == e.shape, name
        torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    assert z.grad.dtype == batch.logits.dtype
    precision = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}[z.dtype]
    torch.testing.assert_close(z.grad.float(), wide.grad, rtol=precision, atol=2e-5 * float(wide.grad.abs().max()))


# hard bins of every batch; the others of labels and of regions, with and without an ignore label where that matters
BATCHES_AND_BINS = [(batch, "hard") for batch in BATCHES] + [
    ("labels 2D", "soft"),
    ("labels 3D, ignore, fp16", "soft"),
    ("regions 3D, ignore", "soft"),
    ("regions 2D, bf16", "soft"),
    ("labels 3D, ignore, fp16", "no bins"),
    ("regions 3D, ignore", "no bins"),
    ("labels 2D", "few soft"),
    ("regions 3D, ignore", "one"),
]


REGIONS_AND_BINNING = [(False, "hard"), (True, "soft")]


@pytest.mark.parametrize(("batch", "bins"), BATCHES_AND_BINS)
def test_sums(batch, bins):
    """They are those of whole maps, and so is the gradient."""
    assert_agree(make_batch(**BATCHES[batch]), *BINS[bins])


@pytest.mark.parametrize(("regions", "binning"), REGIONS_AND_BINNING)
def test_many_chunks(monkeypatch, regions, binning):
    """Volumes of several chunks of several blocks, the last ones not full."""
    monkeypatch.setattr(sums_module, "BLOCK", 32)
    monkeypatch.setattr(sums_module, "chunks_of", lambda voxels, classes: (2, -(-voxels // 64)))
    assert_agree(make_batch(2, (3, 5, 7), regions=regions, ignore=True), 4, binning)


def test_chunks_of():
    """Chunks hold all voxels, and no program adds more values in float32 than it may."""
    for voxels in (1, 511, 512, 513, 2**21, 2**21 + 1):
        for classes in (2, 62):
            steps, chunks = sums_module.chunks_of(voxels, classes)
            assert steps <= voxel_kernels.MAX_STEPS
            assert (chunks - 1) * steps * sums_module.BLOCK < voxels <= chunks * steps * sums_module.BLOCK


@triton.jit
def bins_kernel(p_ptr, out_ptr, M: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out_ptr + at, voxel_kernels.bin_of(tl.load(p_ptr + at), M).to(tl.int32))


@pytest.mark.parametrize("num_bins", [3, 20, 49])
def test_bins_at_edges(num_bins):
    """The bin is that of the exact product, also for the float32 numbers next to each edge, 0, 1 and NaN."""
    edges = (torch.arange(num_bins + 1, dtype=torch.float64) / num_bins).float()
    near = [torch.nextafter(edges, torch.tensor(to)) for to in (0.0, 1.0)]
    p = torch.cat([edges, *near, torch.tensor([0.0, 1e-45, 1.0])])
    size = triton.next_power_of_2(len(p) + 1)
    p = torch.cat([p, torch.full((size - len(p),), torch.nan)])
    bins = torch.empty(size, dtype=torch.int32)
    bins_kernel[(1,)](p, bins, M=num_bins, BLOCK=size)
    assert bins.tolist() == torch.where(p.isnan(), 0, bin_index(p.nan_to_num(), num_bins)).tolist()


def test_small_complement():
    """1 - p keeps its digits where p is nearly 1, however large the logits are."""
    z = torch.full((1, 2, 8, 8), 1000.0, dtype=torch.float32)
    z[:, 1] -= 9.25
    target = torch.zeros((1, 1, 8, 8), dtype=torch.int16)
    sums = gpu.voxel_sums(z, target, num_bins=20, binning="hard", regions=False, ignore_label=None)
    expected = 64 * torch.tensor([1.0, 9.25]).double().neg().exp()[1] / (1 + torch.tensor(-9.25).double().exp())
    torch.testing.assert_close(64 - sums.total[0, 0], expected, rtol=2e-3, atol=0)
    torch.testing.assert_close(sums.nll, 64 * torch.tensor(-9.25).double().exp().log1p(), rtol=2e-3, atol=0)


@pytest.mark.parametrize(("regions", "binning"), REGIONS_AND_BINNING)
def test_nan(regions, binning):
    """A NaN that counts is in every kind of sum; ignored ones change nothing, and get no gradient."""
    batch = make_batch(2, (6, 7), regions=regions, ignore=True)
    options = {"num_bins": 3, "binning": binning, **batch.mode}
    ignored = batch.target[:, -1:] == (1 if regions else batch.ignore_label)
    bad = torch.where(ignored, torch.tensor([torch.nan, torch.inf]).view(1, 2, 1, 1), batch.logits)
    assert bad.isnan().any()
    z, clean = (x.clone().requires_grad_() for x in (bad, batch.logits))
    actual, expected = (gpu.voxel_sums(x, batch.target, **options) for x in (z, clean))
    for x in (actual, expected):
        functional(x, binning == "soft").backward()
    assert all(torch.equal(a, e) for a, e in zip(actual[:8], expected[:8], strict=True))
    assert torch.equal(z.grad, clean.grad)
    assert (z.grad[ignored.expand_as(z)] == 0).all()

    bad = batch.logits.clone()
    bad[:, 0][~ignored[:, 0]] = torch.nan
    sums = gpu.voxel_sums(bad, batch.target, **options)
    assert sums.nll.isnan()
    assert sums.total[:, 0].isnan().all()
    assert sums.probability[:, 0].isnan().any(1).all()


def test_same_from_run_to_run():
    """Sums and gradients are the same to the last bit, also of a graph that is kept."""
    batch = make_batch(2, (5, 9))
    z = batch.logits.clone().requires_grad_()
    runs = [gpu.voxel_sums(z, batch.target, num_bins=4, binning="hard", **batch.mode) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*(run[:8] for run in runs), strict=True))
    gradients = [torch.autograd.grad(functional(runs[k], False), z, retain_graph=True)[0] for k in (0, 0, 1)]
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_types_of_labels(dtype):
    """Whatever type labels have; no input is written to."""
    batch = make_batch(3, (5, 6), ignore=True)
    options = {"num_bins": 0, "binning": "hard", **batch.mode}
    target = batch.target.to(dtype)
    before = target.clone(), batch.logits.clone()
    actual = gpu.voxel_sums(batch.logits, target, **options)
    expected = gpu.voxel_sums(batch.logits, batch.target, **options)
    assert all(torch.equal(a, e) for a, e in zip(actual[:8], expected[:8], strict=True))
    assert torch.equal(before[0], target)
    assert torch.equal(before[1], batch.logits)


@pytest.mark.parametrize(
    ("label", "dtype", "found"),
    [
        (3, torch.int16, "0 to 3"),
        (-1, torch.int8, "-1 to 2"),
        (2**32, torch.int64, f"0 to {2**32}"),
        (torch.inf, torch.float32, "0 to inf"),
    ],
)
def test_label_without_a_class(label, dtype, found):
    """It is refused as by the formulas, in numbers beyond 32 bits too."""
    batch = make_batch(3, (5, 6))
    target = batch.target.to(dtype)
    target[0, 0, 2, 3] = label
    text = f"expected labels from 0 to 2 (or the ignore label, None), got values from {found}: check the labels"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
        gpu.voxel_sums(batch.logits, target, num_bins=0, binning="hard", **batch.mode)


def test_what_is_left_to_the_formulas():
    """More bins than a program should go through, and maps of fractions."""
    batch = make_batch(2, (4, 4), regions=True)
    options = {"binning": "hard", **batch.mode}
    assert gpu.voxel_sums(batch.logits, batch.target, num_bins=gpu.MOST_BINS + 1, **options) is None
    assert gpu.voxel_sums(batch.logits, batch.target.float(), num_bins=20, **options) is None

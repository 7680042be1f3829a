"""The kernel of the calibration error of bins, in Triton's interpreter; test_kernels.py runs it in its own process."""

from __future__ import annotations

import itertools

import pytest
import torch

from nnunet_calib.losses.bin_errors import error_of_sums
from nnunet_calib.losses.gpu import bin_error as module
from nnunet_calib.losses.gpu.bin_error import bin_error

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")  # of NumPy, which computes NaN aloud
every_way = pytest.mark.parametrize(
    ("reduction", "absent"), list(itertools.product(["ace", "ece", "mce"], ["skip", "zero", "keep"]))
)

three_ways = pytest.mark.parametrize(("reduction", "absent"), [("ace", "skip"), ("ece", "zero"), ("mce", "keep")])


def make_tables(soft=False):
    """Return tables of three images with five classes and seven bins, some of which are empty.

    Class 1 is absent from the first image, the last image has no voxel, a bin of the second has no gap.
    """
    generator = torch.Generator().manual_seed(2)
    weight = torch.randint(0, 9, (3, 5, 7), generator=generator).double()
    weight[:, :, 2] = 0
    if soft:
        weight = weight * 0.37 + torch.tensor([0, 0, 0.004, 0.02, 0, 0, 0])
    probability = weight * torch.rand(weight.shape, generator=generator, dtype=torch.float64)
    positive = (weight * torch.rand(weight.shape, generator=generator, dtype=torch.float64)).round()
    positive[0, 1] = 0
    weight[1, 0, 3] = 4
    probability[1, 0, 3] = positive[1, 0, 3] = 2
    for x in (weight, probability, positive):
        x[2] = 0
    return weight, probability, positive


def value_and_gradients(function, tables, *options):
    tables = [x.clone().requires_grad_() for x in tables]
    value = function(*tables, *options)
    (3 * value).backward()
    return [value.detach(), *(x.grad for x in tables)]


def assert_same(tables, *options):
    actual, expected = (value_and_gradients(f, tables, *options) for f in (bin_error, error_of_sums))
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-14, equal_nan=True)
    return actual


@every_way
@pytest.mark.parametrize("soft", [False, True])
def test_error(reduction, absent, soft):
    """Value and all derivatives are those of the formula."""
    value, *_ = assert_same(make_tables(soft), 0.01 if soft else 1, reduction, absent)
    assert value > 0


@three_ways
def test_nothing_counts(reduction, absent):
    """Tables without a voxel have no error and no derivative."""
    value, *gradients = assert_same([torch.zeros(2, 3, 4).double()] * 3, 1, reduction, absent)
    assert value == 0
    assert all((g == 0).all() for g in gradients)


@three_ways
def test_nan(reduction, absent):
    """A NaN makes the error NaN, wherever it is."""
    tables = make_tables()
    tables[1][0, 1, 0] = torch.nan
    assert bin_error(*tables, 1, reduction, absent).isnan()
    assert error_of_sums(*tables, 1, reduction, absent).isnan()


def test_equal_gaps():
    """Bins with the same largest gap share its derivative."""
    weight = torch.full((1, 2, 3), 4.0).double()
    probability = weight * torch.tensor([0.75, 0.5, 0.25]).double()
    assert_same((weight, probability, torch.full_like(weight, 2)), 1, "mce", "skip")


def test_strides_and_needs():
    """Tables that lie within larger ones; only the sums of p have a gradient with hard bins."""
    whole = torch.stack(make_tables(), 2)
    weight, probability, positive = torch.nn.functional.pad(whole, (0, 5)).unbind(2)
    tables = [x[..., :7] for x in (weight, probability, positive)]
    tables[1] = tables[1].requires_grad_()
    bin_error(*tables, 1, "ace", "skip").backward()
    expected = value_and_gradients(error_of_sums, [x.detach() for x in tables], 1, "ace", "skip")
    torch.testing.assert_close(tables[1].grad * 3, expected[2])


def test_large_tables(monkeypatch):
    """Too large for a program, they are left to the formula."""
    monkeypatch.setattr(module, "launch", None)
    tables = [torch.ones(1, 40, 40).double()] * 3
    assert torch.equal(bin_error(*tables, 1, "ace", "skip"), error_of_sums(*tables, 1, "ace", "skip"))

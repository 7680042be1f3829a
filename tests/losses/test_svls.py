"""SVLS: the reference's values and gradients, cases by hand, and where it is the plain cross-entropy."""

from __future__ import annotations

from math import exp, log

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from nnunet_calib.losses import SVLSLoss, svls_loss
from tests.losses import reference
from tests.losses.conftest import IGNORE_LABEL, assert_same, value_and_gradient
from tests.losses.properties import LossProperties

pytestmark = pytest.mark.pairs


def check(case, **options):
    """Value and gradient are the reference's."""
    actual = value_and_gradient(svls_loss, case.logits, case.target, **options, **case.mode)
    assert_same(actual, reference.svls(case.volume(), **options))


def plain_loss(case):
    """PyTorch's cross-entropy, or binary cross-entropy, over the voxels that count, with its gradient."""

    def loss(logits, target):
        if not case.regions:
            return cross_entropy(logits, target[:, 0], ignore_index=IGNORE_LABEL)
        counts = ~case.ignored.expand_as(logits)
        return binary_cross_entropy_with_logits(logits[counts], target[:, :3][counts].double())

    return value_and_gradient(loss, case.logits, case.target)


class TestProperties(LossProperties):
    """The properties of all losses."""

    function = staticmethod(svls_loss)
    module = SVLSLoss
    variants = ({}, {"kernel_size": 5, "sigma": 2.0})
    symmetric_variants = variants


@pytest.mark.usefixtures("every_way")
@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_kernel_and_sigma(case, kernel_size, sigma):
    """Odd sizes and widths agree with the reference."""
    check(case, kernel_size=kernel_size, sigma=sigma)


@pytest.mark.usefixtures("every_way")
@pytest.mark.parametrize("kernel_size", [(1, 3, 3), (5, 1, 3), (1, 1, 9)], ids=str)
def test_kernel_per_axis(case_3d, kernel_size):
    """One size per axis agrees with the reference, also where it exceeds the volume."""
    check(case_3d, kernel_size=kernel_size)


@pytest.mark.usefixtures("every_way")
def test_row_by_hand():
    """A row of three voxels: the centre weighs 1/2, each neighbour 1/4, whatever sigma is."""
    # labels 0 0 1, border replicated: soft labels of class 1 are 0, 1/4 and 1/4 + 1/2 = 3/4.
    # logits 0 and log 3 are probabilities 1/4 and 3/4, so the voxels have
    # log 4,  3/4 log 4 + 1/4 log 4/3,  1/4 log 4 + 3/4 log 4/3: together 2 log 4 + log 4/3
    logits = torch.zeros(1, 2, 1, 3, dtype=torch.float64)
    logits[:, 1] = log(3)
    target = torch.tensor([0, 0, 1])[None, None, None]
    for sigma in (0.5, 1.0, 4.0):
        loss = svls_loss(logits, target, kernel_size=(1, 3), sigma=sigma)
        assert loss.item() == pytest.approx((2 * log(4) + log(4 / 3)) / 3)
    # with the last voxel ignored the labels are 0 and 0, and hard
    target = torch.tensor([0, 0, 9])[None, None, None]
    assert svls_loss(logits, target, kernel_size=(1, 3), ignore_label=9).item() == pytest.approx(log(4))
    # labels 0 1 ignored: the weights 1/4, 1/2 that are left are 1/3, 2/3, so class 1 has 1/4 and 2/3:
    # 3/4 log 4 + 1/4 log 4/3  and  1/3 log 4 + 2/3 log 4/3
    target = torch.tensor([0, 1, 9])[None, None, None]
    expected = ((3 / 4 + 1 / 3) * log(4) + (1 / 4 + 2 / 3) * log(4 / 3)) / 2
    assert svls_loss(logits, target, kernel_size=(1, 3), ignore_label=9).item() == pytest.approx(expected)


@pytest.mark.usefixtures("every_way")
@pytest.mark.parametrize("sigma", [0.1, 0.15, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_narrow_gaussian(dtype, sigma):
    """However small sigma is, the centre weighs 1/2 and its nearest neighbours share the other half."""
    # one voxel of class 1 amid class 0, kernel (1, 3): soft labels 1/4, 1/2, 1/4 of class 1. At p = 1/2 the gradient
    # of the class's logit is (1/2 - soft label) / 3
    logits = torch.zeros(1, 2, 1, 3, dtype=dtype, requires_grad=True)
    svls_loss(logits, torch.tensor([0, 1, 0])[None, None, None], kernel_size=(1, 3), sigma=sigma).backward()
    assert logits.grad[0, 1, 0].tolist() == pytest.approx([1 / 12, 0, 1 / 12], rel=1e-5, abs=1e-6)


def test_region_by_hand():
    """A region of one voxel in the middle of 3 x 3: weights of faces and corners."""
    # e = exp(-1/2): a face neighbour weighs e and a corner e^2, together 4 e + 4 e^2, of one half.
    # logit log 3 is p = 3/4: -log p = log 4/3, -log (1 - p) = log 4
    e, half = exp(-1 / 2), 1 / 2
    face, corner = (half * g / (4 * e + 4 * e**2) for g in (e, e**2))
    target = torch.zeros(1, 1, 3, 3)
    target[..., 1, 1] = 1
    logits = torch.full((1, 1, 3, 3), log(3), dtype=torch.float64)
    inside = half + 4 * face + 4 * corner
    expected = (inside * log(4 / 3) + (9 - inside) * log(4)) / 9
    assert svls_loss(logits, target, regions=True).item() == pytest.approx(expected)
    # d loss / d logit = (p - soft label) / 9
    logits.requires_grad_()
    svls_loss(logits, target, regions=True).backward()
    expected = [[corner, face, corner], [face, half, face], [corner, face, corner]]
    torch.testing.assert_close(logits.grad[0, 0], (3 / 4 - torch.tensor(expected, dtype=torch.float64)) / 9)


@pytest.mark.usefixtures("every_way")
def test_kernel_of_one_voxel_is_cross_entropy(case):
    """Without neighbours nothing is smoothed."""
    actual = value_and_gradient(svls_loss, case.logits, case.target, kernel_size=1, **case.mode)
    assert_same(actual, plain_loss(case))


@pytest.mark.usefixtures("every_way")
@pytest.mark.parametrize("label", [0, 1])
def test_constant_labels_are_cross_entropy(case, label):
    """Where all voxels that count have one label, it stays hard, also beside borders and ignored voxels."""
    target = case.target
    if case.regions:
        target[:, :3] = label
    else:
        target[~case.ignored] = label
    assert_same(value_and_gradient(svls_loss, case.logits, target, **case.mode), plain_loss(case))


def test_smoothing_is_felt(case):
    """With a border between labels the loss is not the plain cross-entropy."""
    assert abs(svls_loss(case.logits, case.target, **case.mode) - plain_loss(case)[0]) > 1e-3


@pytest.mark.usefixtures("every_way")
def test_flat_kernel_equals_slices(case_3d):
    """Kernel (1, k, k) in 3D is kernel k on every slice."""
    case = case_3d
    logits, target = (x.transpose(1, 2).flatten(0, 1) for x in (case.logits, case.target))
    value, gradient = value_and_gradient(svls_loss, logits, target, **case.mode)
    actual = value_and_gradient(svls_loss, case.logits, case.target, kernel_size=(1, 3, 3), **case.mode)
    assert_same(actual, (value, gradient.unflatten(0, (2, -1)).transpose(1, 2)))

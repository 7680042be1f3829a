"""NACL: the reference's values and gradients, cases by hand, and what must not depend on the volume's dimension."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from nnunet_calib.losses import NACLLoss, nacl_loss
from tests.losses import reference
from tests.losses.conftest import assert_same, make_case, value_and_gradient
from tests.losses.properties import LossProperties

pytestmark = pytest.mark.pairs

PRIORS = ("mean", "gaussian", "max", "min", "median", "mode")
MEASURES = [("l2", "logits"), ("l1", "probabilities"), ("l2", "probabilities")]


def check(case, **options):
    """Value and gradient are the reference's."""
    actual = value_and_gradient(nacl_loss, case.logits, case.target, **options, **case.mode)
    assert_same(actual, reference.nacl(case.volume(), **options))


def by_hand(labels, logits, **options):
    """Loss of a row of labels (or, with regions, of one binary map) and one row of logits per head."""
    target, logits = torch.tensor(labels)[None, None, None], torch.tensor(logits, dtype=torch.float64)[None, :, None]
    return nacl_loss(logits, target, **{"kernel_size": (1, 3)} | options).item()


class TestProperties(LossProperties):
    """The properties of all losses."""

    function = staticmethod(nacl_loss)
    module = NACLLoss
    variants = (
        {},
        {"kernel_size": 5, "prior": "gaussian", "penalty": "l2", "sigma": 2.0},
        {"prior": "median", "on": "probabilities"},
        {"prior": "mode", "penalty": "l2", "on": "probabilities"},
    )
    symmetric_variants = (*variants[:2], {"on": "probabilities"})


@pytest.mark.usefixtures("every_way")
@pytest.mark.parametrize("prior", PRIORS)
def test_every_prior(case, prior):
    """Each prior agrees with the reference."""
    check(case, prior=prior)


@pytest.mark.usefixtures("every_way")
@pytest.mark.parametrize(("penalty", "on"), MEASURES)
def test_every_measure(case, penalty, on):
    """Both penalties, on logits and on probabilities, agree with the reference."""
    check(case, penalty=penalty, on=on)


@pytest.mark.usefixtures("every_way")
@pytest.mark.parametrize("prior", ["mean", "gaussian", "median"])
@pytest.mark.parametrize("kernel_size", [1, 5, (1, 3, 3), (5, 1, 3)], ids=str)
def test_every_kernel(case_3d, kernel_size, prior):
    """Any odd size, per axis or for all, agrees with the reference, also where it exceeds the volume."""
    check(case_3d, kernel_size=kernel_size, prior=prior)


@pytest.mark.usefixtures("every_way")
@pytest.mark.parametrize("sigma", [0.5, 2.0])
def test_sigma(case, sigma):
    """The width of the gaussian prior agrees with the reference."""
    check(case, prior="gaussian", sigma=sigma)


@pytest.mark.usefixtures("every_way")
def test_row_by_hand():
    """Proportions along a row; the border is replicated, an ignored voxel is no neighbour."""
    # labels 0 0 1: the neighbours are {0,0,0}, {0,0,1}, {0,1,1}, so tau_0 = 1, 2/3, 1/3 and tau_1 = 0, 1/3, 2/3.
    # Logits 1 and 0 everywhere are 0, 1/3, 2/3 away from tau, in both heads.
    ones, zeros = [1.0] * 3, [0.0] * 3
    assert by_hand([0, 0, 1], [ones, zeros]) == pytest.approx((0 + 1 / 3 + 2 / 3) / 3)
    assert by_hand([0, 0, 1], [ones, zeros], penalty="l2") == pytest.approx((0 + 1 / 9 + 4 / 9) / 3)
    # labels 0 1 ignored: neighbours {0,0,1} and {0,1}, tau_0 = 2/3, 1/2, so 1/3 and 1/2 away
    assert by_hand([0, 1, 9], [ones, zeros], ignore_label=9) == pytest.approx((1 / 3 + 1 / 2) / 2)
    # as a region: tau = 0, 1/3, 2/3, and the sigmoid's logit is held to 2 tau - 1 = -1, -1/3, 1/3
    assert by_hand([0, 0, 1], [zeros], regions=True) == pytest.approx((1 + 1 / 3 + 1 / 3) / 3)
    # sigmoid(0) = 1/2 is held to tau itself
    assert by_hand([0, 0, 1], [zeros], regions=True, on="probabilities") == pytest.approx((1 / 2 + 1 / 6 + 1 / 6) / 3)


@pytest.mark.parametrize(("prior", "label"), [("max", 3), ("min", 0), ("median", 1), ("mode", 0)])
def test_picked_label_by_hand(prior, label):
    """One-hot priors: of two middle or equally frequent labels, the lower one."""
    # Around the centre, without the ignored 9: 0 0 0 1 2 2 2 3. The two in the middle are 1 and 2; 0 and 2 tie.
    labels = torch.tensor([[3, 2, 0], [2, 2, 0], [0, 9, 1]])
    logits = torch.zeros(1, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    nacl_loss(logits, labels[None, None], prior=prior, ignore_label=9).backward()
    # at z = 0 the gradient is negative where tau = 1 and 0 where tau = 0
    assert logits.grad[0, :, 1, 1].nonzero().flatten().tolist() == [label]


@pytest.mark.usefixtures("every_way")
@pytest.mark.parametrize("shape", [(3, 5), (4, 3, 5), (1, 1)], ids=str)
def test_corner_proportions(shape):
    """A volume of one label is held to that label up to its corners."""
    target = torch.ones(1, 1, *shape, dtype=torch.long)
    logits = torch.zeros(1, 2, *target.shape[2:])
    logits[:, 1] = 1
    assert nacl_loss(logits, target) == 0


@pytest.mark.usefixtures("every_way")
def test_zero_at_the_prior():
    """Logits equal to the prior have loss 0, and any other logits more."""
    case = make_case("labels+ignore", (4, 5, 4))
    logits = torch.zeros_like(case.logits)
    volume = case.volume()
    for b, position in volume.voxels:
        for c in range(3):
            logits[(b, c, *position)] = reference.prior_value(volume, b, c, position, 3, "mean", 1.0)
    assert nacl_loss(logits, case.target, **case.mode) == pytest.approx(0, abs=1e-15)
    shifted = nacl_loss(logits + 0.25, case.target, **case.mode)
    assert shifted == pytest.approx(0.25)


@pytest.mark.usefixtures("every_way")
@pytest.mark.parametrize("prior", PRIORS)
def test_flat_kernel_equals_slices(case_3d, prior):
    """Kernel (1, k, k) in 3D is kernel k on every slice."""
    case = case_3d
    slices = replace(case, **{name: getattr(case, name).transpose(1, 2).flatten(0, 1) for name in ("logits", "target")})
    value, gradient = value_and_gradient(nacl_loss, slices.logits, slices.target, prior=prior, **case.mode)
    gradient = gradient.unflatten(0, (2, -1)).transpose(1, 2)
    actual = value_and_gradient(nacl_loss, case.logits, case.target, prior=prior, kernel_size=[1, 3, 3], **case.mode)
    assert_same(actual, (value, gradient))


@pytest.mark.parametrize(("prior", "mirrored"), [("max", "min"), ("mean", "mean")])
def test_reversed_classes(case, prior, mirrored):
    """With the order of the labels reversed, the largest label becomes the smallest one."""
    if case.regions:  # the order is that of outside and inside
        target = case.target.clone()
        target[:, :3] = 1 - target[:, :3]
        reversed_case = replace(case, logits=-case.logits, target=target)
    else:
        target = torch.where(case.ignored, case.target, 2 - case.target)
        reversed_case = replace(case, logits=case.logits.flip(1), target=target)
    value, gradient = value_and_gradient(nacl_loss, case.logits, case.target, prior=prior, **case.mode)
    expected = (value, -gradient if case.regions else gradient.flip(1))
    actual = value_and_gradient(nacl_loss, reversed_case.logits, reversed_case.target, prior=mirrored, **case.mode)
    assert_same(actual, expected)

"""mL1-ACE: the reference's values and gradients, cases by hand, and perfectly calibrated input."""

from __future__ import annotations

from dataclasses import replace
from math import log

import pytest
import torch

from nnunet_calib.losses import ML1ACELoss, ml1_ace_loss
from nnunet_calib.losses.bin_errors import error_of_sums
from tests.losses import reference
from tests.losses.conftest import assert_same, value_and_gradient
from tests.losses.properties import LossProperties

pytestmark = pytest.mark.pairs

REDUCTIONS = ("ace", "ece", "mce")
POLICIES = ("skip", "zero", "keep")


def check_hard(case, **options):
    """Value and gradient are the reference's."""
    actual = value_and_gradient(ml1_ace_loss, case.logits, case.target, **options, **case.mode)
    assert_same(actual, reference.ml1_ace(case.volume(), **options))


def check_soft(case, **options):
    """The value is the reference's, the gradient that of the reference along some directions."""
    options |= {"binning": "soft"}
    value, gradient = value_and_gradient(ml1_ace_loss, case.logits, case.target, **options, **case.mode)

    def slow(logits):
        return reference.ml1_ace(case.volume(logits), **options)[0]

    assert value.item() == pytest.approx(slow(case.logits.numpy()), rel=1e-12)
    assert gradient.any()
    for seed in range(3):
        direction = torch.randn(case.logits.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        expected = reference.slope(slow, case.logits.numpy(), direction.numpy())
        assert (gradient * direction).sum().item() == pytest.approx(expected, rel=1e-6, abs=1e-8)


def by_hand(probabilities, positives, **options):
    """ACE, ECE and MCE of one region."""
    logits = torch.tensor(probabilities, dtype=torch.float64).logit()[None, None, None]
    target = torch.tensor(positives)[None, None, None]
    return [ml1_ace_loss(logits, target, regions=True, reduction=r, **options).item() for r in REDUCTIONS]


class TestProperties(LossProperties):
    """The properties of all losses."""

    function = staticmethod(ml1_ace_loss)
    module = ML1ACELoss
    variants = (
        {},
        {"num_bins": 5, "reduction": "ece", "absent_classes": "zero"},
        {"num_bins": 7, "reduction": "mce", "absent_classes": "keep"},
        {"binning": "soft"},
        {"num_bins": 4, "reduction": "ece", "binning": "soft", "absent_classes": "keep"},
    )
    symmetric_variants = variants


@pytest.mark.usefixtures("every_way")
@pytest.mark.parametrize("absent_classes", POLICIES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_hard_bins(case, reduction, absent_classes):
    """Each reduction and policy agrees with the reference."""
    check_hard(case, reduction=reduction, absent_classes=absent_classes)


@pytest.mark.parametrize("absent_classes", POLICIES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_soft_bins(case, reduction, absent_classes):
    """Each reduction and policy agrees with the reference."""
    check_soft(case, reduction=reduction, absent_classes=absent_classes)


@pytest.mark.usefixtures("every_way")
@pytest.mark.parametrize("num_bins", [1, 2, 3, 100])
def test_number_of_bins(case, num_bins):
    """Any number of bins agrees with the reference, hard and soft."""
    check_hard(case, num_bins=num_bins)
    check_soft(case, num_bins=num_bins)


def test_policies_differ(case):
    """The cases above do tell the policies apart."""
    losses = [ml1_ace_loss(case.logits, case.target, absent_classes=p, **case.mode).item() for p in POLICIES]
    assert min(abs(a - b) for a, b in zip(losses, losses[1:] + losses[:1], strict=True)) > 1e-3


def test_hard_bins_by_hand():
    """Two filled bins, of which one holds twice as many voxels; empty bins do not count."""
    # [0, 1/2): .1 and .3, one of them positive: |1/2 - .2| = .3.  [1/2, 1]: .8, positive: .2
    expected = [(0.3 + 0.2) / 2, (2 * 0.3 + 0.2) / 3, 0.3]
    assert by_hand([0.1, 0.3, 0.8], [0, 1, 1], num_bins=2) == pytest.approx(expected)
    # four bins: .1: .1;  .3: .7;  [1/2, 3/4) is empty;  .8: .2
    assert by_hand([0.1, 0.3, 0.8], [0, 1, 1], num_bins=4) == pytest.approx([1 / 3, 1 / 3, 0.7])


def test_soft_bins_by_hand():
    """A probability between two centres is shared; a bin with next to no weight counts as empty."""
    # centres 1/4 and 3/4. .1 lies below the first one and is wholly in bin 0; .5, positive, half in either.
    # bin 0: weight 1.5, probability .1 + .25, positives .5: .15 / 1.5 = .1.  bin 1: |.5 - .25| / .5 = .5
    assert by_hand([0.1, 0.5], [0, 1], num_bins=2, binning="soft") == pytest.approx([0.3, (0.15 + 0.25) / 2, 0.5])
    # .252, positive, is shared .996 : .004; .004 is too little, so that only bin 0 counts, with .25 (not positive)
    gap = (0.996 - 0.996 * 0.252 - 0.25) / 1.996
    expected = [gap, gap * 1.996 / 2, gap]
    assert by_hand([0.252, 0.25], [1, 0], num_bins=2, binning="soft") == pytest.approx(expected)


def test_gradient_by_hand():
    """Per voxel d ACE / d p = sign(e - o) / (filled bins x voxels in the bin), times dp/dz = p (1 - p)."""
    # as above: in [0, 1/2) e - o = -.3 over two voxels, in [1/2, 1] -.2 over one
    logits = torch.tensor([0.1, 0.3, 0.8], dtype=torch.float64).logit()[None, None, None].requires_grad_()
    ml1_ace_loss(logits, torch.tensor([0, 1, 1])[None, None, None], num_bins=2, regions=True).backward()
    expected = [-0.1 * 0.9 / 4, -0.3 * 0.7 / 4, -0.8 * 0.2 / 2]
    assert logits.grad.flatten().tolist() == pytest.approx(expected)


@pytest.mark.usefixtures("every_way")
@pytest.mark.parametrize(("absent_classes", "expected"), [("skip", 0.5), ("zero", 0.5 / 3), ("keep", 1 / 3)])
def test_absent_classes_by_hand(absent_classes, expected):
    """Four voxels of class 0, predicted .5, .3, .2: the errors of the three classes are .5, .3, .2."""
    logits = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()[None, :, None, None].expand(1, 3, 2, 2)
    target = torch.zeros(1, 1, 2, 2, dtype=torch.long)
    assert ml1_ace_loss(logits, target, absent_classes=absent_classes).item() == pytest.approx(expected)


@pytest.mark.parametrize(("absent_classes", "expected"), [("skip", 0.0), ("zero", 0.0), ("keep", 0.25)])
def test_no_region_at_all(absent_classes, expected):
    """An image without any region has an error only where absent classes are kept."""
    logits = torch.full((1, 2, 3, 3), -log(3), dtype=torch.float64, requires_grad=True)
    loss = ml1_ace_loss(logits, torch.zeros(1, 2, 3, 3), absent_classes=absent_classes, regions=True)
    loss.backward()
    assert loss.item() == pytest.approx(expected)
    assert logits.grad.any() == (absent_classes == "keep")


@pytest.mark.usefixtures("every_way")
@pytest.mark.parametrize("binning", ["hard", "soft"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_perfect_calibration_is_zero(reduction, binning):
    """Frequencies equal to the probabilities have no error, and neither have certain, correct ones."""
    options = {"reduction": reduction, "binning": binning}
    # classes of probability .5, .25, .25, labels 0 0 1 2
    logits = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64).log()[None, :, None, None].expand(1, 3, 2, 2)
    target = torch.tensor([[0, 0], [1, 2]])[None, None]
    assert ml1_ace_loss(logits, target, **options).item() == pytest.approx(0, abs=1e-15)
    certain = torch.nn.functional.one_hot(target[:, 0], 3).movedim(-1, 1) * 1e4
    assert ml1_ace_loss(certain, target, **options) == 0
    # and certain, wrong ones all the error there is
    target = (target > 0).long()
    assert ml1_ace_loss(1e4 * (1 - 2 * target), target, regions=True, **options) == 1


@pytest.mark.parametrize("absent_classes", POLICIES)
@pytest.mark.parametrize("binning", ["hard", "soft"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("pool", ["image", "batch"])
def test_nan_of_an_absent_region(reduction, binning, absent_classes, pool):
    """A NaN is not hidden in a head that an image, or every image, has no voxel of."""
    options = {"reduction": reduction, "binning": binning, "absent_classes": absent_classes, "pool": pool}
    logits, target = torch.zeros(2, 2, 3, 3), torch.zeros(2, 2, 3, 3)
    target[:, 0, 0] = 1
    for maps in (target, torch.zeros_like(target)):
        assert ml1_ace_loss(logits, maps, regions=True, **options).isfinite()
        broken = logits.clone()
        broken[1, 1, 2, 2] = torch.nan
        assert ml1_ace_loss(broken, maps, regions=True, **options).isnan()


@pytest.mark.usefixtures("every_way")
def test_ignored_slab_equals_crop(ignoring_case):
    """Ignoring a slab at the border is the same as cutting it off."""
    for axis in range(2, ignoring_case.logits.ndim):
        slab = ignoring_case.ignore((slice(None),) * axis + (slice(0, 2),))
        rest = slab.logits.shape[axis] - 2
        crop = replace(slab, **{k: getattr(slab, k).narrow(axis, 2, rest) for k in ("logits", "target")})
        value, gradient = value_and_gradient(ml1_ace_loss, crop.logits, crop.target, **crop.mode)
        padding = torch.zeros_like(slab.logits.narrow(axis, 0, 2))
        actual = value_and_gradient(ml1_ace_loss, slab.logits, slab.target, **slab.mode)
        assert_same(actual, (value, torch.cat([padding, gradient], axis)))


@pytest.mark.usefixtures("every_way")
def test_many_voxels_in_one_bin():
    """A float32 sum of a million probabilities would be off by more than the error that is measured."""
    logits = torch.full((1, 1, 1024, 1024), 9.0)
    loss = ml1_ace_loss(logits, torch.ones(1, 1, 1024, 1024), regions=True)
    assert loss.item() == pytest.approx(1 - torch.sigmoid(torch.tensor(9.0)).item(), rel=1e-6)


def test_rounding_has_no_sign():
    """A bin whose sums differ by their rounding alone pulls nowhere, so that no order of summation matters."""
    weight, positive = torch.full((1, 2, 1), 10.0).double(), torch.tensor([[[2.0], [8.0]]]).double()
    probability = torch.tensor([[[2.0 * (1 + 2e-15)], [8.1]]]).double().requires_grad_()
    error_of_sums(weight, probability, positive, 1, "ace", "skip").backward()
    assert probability.grad.flatten().tolist() == [0, pytest.approx(0.05)]

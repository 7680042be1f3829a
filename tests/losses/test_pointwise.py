"""The comparators: the reference's values, cases by hand, other losses that they contain, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from math import log

import pytest
import torch
from torch.nn.functional import cross_entropy

from nnunet_calib import losses
from nnunet_calib.losses import (
    DicePlusPlusLoss,
    EntropyPenalty,
    FocalLoss,
    LabelSmoothingLoss,
    MarginLabelSmoothingLoss,
    MDCALoss,
    dice_plus_plus_loss,
    entropy_penalty,
    focal_loss,
    label_smoothing_loss,
    margin_label_smoothing_loss,
    mdca_loss,
    use,
)
from nnunet_calib.losses.chunked import parts
from tests.losses import reference
from tests.losses.conftest import IGNORE_LABEL, MODES, assert_same, make_case, value_and_gradient
from tests.losses.properties import LossProperties

pytestmark = pytest.mark.pairs

FUNCTIONS = {
    LabelSmoothingLoss: label_smoothing_loss,
    MarginLabelSmoothingLoss: margin_label_smoothing_loss,
    FocalLoss: focal_loss,
    EntropyPenalty: entropy_penalty,
    DicePlusPlusLoss: dice_plus_plus_loss,
    MDCALoss: mdca_loss,
}
every_loss = pytest.mark.parametrize("loss", FUNCTIONS)

# nothing in these losses depends on where voxels lie, and the modes without ignored voxels are compared with the others
SMALLER_CASES = {
    "case": (MODES[1::2], ((3, 4, 3),)),
    "small_case": (MODES, ((3, 2),)),
    "plain_case": (MODES[::2], ((5, 6),)),
    "ignoring_case": (MODES[1::2], ((5, 6),)),
}


@pytest.fixture(params=["chunked"])
def every_way(request, monkeypatch):
    """The one way of all backends, in several parts; `test_reference` holds the formulas to it."""
    monkeypatch.setattr(parts, "ON_CPU", 60)
    with use(request.param):
        yield


class TestLabelSmoothing(LossProperties):
    """The properties of all losses."""

    function = staticmethod(label_smoothing_loss)
    module = LabelSmoothingLoss
    variants = symmetric_variants = ({},)


class TestMargin(LossProperties):
    """The same."""

    function = staticmethod(margin_label_smoothing_loss)
    module = MarginLabelSmoothingLoss
    variants = symmetric_variants = ({"margin": 1.0},)


class TestFocal(LossProperties):
    """The same."""

    function = staticmethod(focal_loss)
    module = FocalLoss
    variants = symmetric_variants = ({}, {"gamma": 0.5})


class TestEntropyPenalty(LossProperties):
    """The same."""

    function = staticmethod(entropy_penalty)
    module = EntropyPenalty
    variants = symmetric_variants = ({},)


class TestDicePlusPlus(LossProperties):
    """The same, with nnU-Net's way with an image that is ignored altogether."""

    function = staticmethod(dice_plus_plus_loss)
    module = DicePlusPlusLoss
    variants = ({}, {"gamma": 1.5, "background": True, "pool": "batch"})
    symmetric_variants = variants[1:]

    def test_ignored_image_leaves_no_trace(self, ignoring_case, variant):
        """It has no error, which by image counts in the mean."""
        case = ignoring_case.ignore(slice(1, 2))
        value, gradient = self.both(replace(case, logits=case.logits[:1], target=case.target[:1]), variant)
        share = 1 if variant.get("pool") == "batch" else 1 / 2
        expected = share * value, share * torch.cat([gradient, torch.zeros_like(gradient)])
        assert_same(self.both(case, variant), expected)


class TestMDCA(LossProperties):
    """The same."""

    function = staticmethod(mdca_loss)
    module = MDCALoss
    variants = symmetric_variants = ({},)


REFERENCES = [
    (label_smoothing_loss, reference.label_smoothing, {}),
    (label_smoothing_loss, reference.label_smoothing, {"alpha": 1.0}),
    (margin_label_smoothing_loss, reference.margin, {"margin": 0.5}),
    (focal_loss, reference.focal, {}),
    (focal_loss, reference.focal, {"gamma": 0.7}),
    (entropy_penalty, reference.negative_entropy, {}),
    (dice_plus_plus_loss, reference.dice_plus_plus, {}),
    (dice_plus_plus_loss, reference.dice_plus_plus, {"gamma": 3.0, "smooth": 1.0, "background": True, "pool": "batch"}),
]


@pytest.mark.parametrize("mode", MODES)
def test_reference(mode, monkeypatch):
    """Loops over voxels give the same values; those of MDCA are mL1-ECE's with one bin and absent classes."""
    monkeypatch.setattr(parts, "ON_CPU", 60)
    case = make_case(mode, (4, 5, 4))
    for loss, slow, options in REFERENCES:
        actual = {}
        for way in ("reference", "chunked", "auto"):
            with use(way):
                actual[way] = value_and_gradient(loss, case.logits, case.target, **options, **case.mode)
        value, gradient = actual["reference"]
        assert value.item() == pytest.approx(slow(case.volume(), **options), rel=1e-12), (loss, options)
        assert_same(actual["chunked"], (value, gradient))
        assert all(map(torch.equal, actual["auto"], actual["chunked"]))
    one_bin = reference.ml1_ace(case.volume(), num_bins=1, reduction="ece", absent_classes="keep")
    for way in ("reference", "chunked", "auto"):
        with use(way):
            assert_same(value_and_gradient(mdca_loss, case.logits, case.target, **case.mode), one_bin)


@pytest.mark.usefixtures("every_way")
def test_by_hand():
    """Two voxels with probabilities 3/4 and 1/4, and 1/4 and 3/4; the labels are 0 and 1, then 0 and 0."""
    logits = torch.tensor([[log(3), 0.0], [0.0, log(3)]], dtype=torch.float64)[None, :, None]
    right, half = (torch.tensor(labels)[None, None, None] for labels in ([0, 1], [0, 0]))
    assert label_smoothing_loss(logits, right).item() == pytest.approx(-0.95 * log(3 / 4) - 0.05 * log(1 / 4))
    assert margin_label_smoothing_loss(logits, right, margin=0.5).item() == pytest.approx((log(3) - 0.5) / 2)
    focal = -((1 / 4) ** 3) * log(3 / 4), -((3 / 4) ** 3) * log(1 / 4)
    assert focal_loss(logits, right).item() == pytest.approx(focal[0])
    assert focal_loss(logits, half).item() == pytest.approx(sum(focal) / 2)
    assert entropy_penalty(logits, right).item() == pytest.approx(3 / 4 * log(3 / 4) + 1 / 4 * log(1 / 4))
    # class 1: TP = 3/4, errors (1/4)^2 twice
    assert dice_plus_plus_loss(logits, right, smooth=0).item() == pytest.approx(1 - 1.5 / (1.5 + 1 / 8))
    # mean probability 1/2 of both classes; frequencies 1 and 0
    assert mdca_loss(logits, right).item() == pytest.approx(0, abs=1e-12)
    assert mdca_loss(logits, half).item() == pytest.approx(1 / 2)


@pytest.mark.usefixtures("every_way")
def test_other_losses():
    """Special cases: PyTorch's cross-entropy, the plain mean distance, V-Net's Dice and the distance of means."""
    case = make_case("labels", (4, 5, 4))
    logits, target = case.logits, case.target
    for alpha in (0.0, 0.2):
        expected = cross_entropy(logits, target[:, 0], label_smoothing=alpha)
        torch.testing.assert_close(label_smoothing_loss(logits, target, alpha=alpha), expected)
    torch.testing.assert_close(focal_loss(logits, target, gamma=0), cross_entropy(logits, target[:, 0]))
    expected = (logits.amax(1, keepdim=True) - logits).mean()
    torch.testing.assert_close(margin_label_smoothing_loss(logits, target, margin=0), expected)
    p, y = (x.flatten(2) for x in (logits.softmax(1), torch.zeros_like(logits).scatter_(1, target, 1)))
    expected = 1 - (2 * (p * y).sum(2) / (p.square() + y).sum(2)).mean()
    torch.testing.assert_close(dice_plus_plus_loss(logits, target, smooth=0, background=True), expected)
    torch.testing.assert_close(mdca_loss(logits, target), (p.mean(2) - y.mean(2)).abs().mean())
    together = (p.mean((0, 2)) - y.mean((0, 2))).abs().mean()
    torch.testing.assert_close(mdca_loss(logits, target, pool="batch"), together)


@pytest.mark.usefixtures("every_way")
@every_loss
def test_region_is_a_softmax_of_two(loss):
    """Of the logits 0 and z, by head."""
    case = make_case("regions", (4, 5, 4))
    options = {"margin": 1.0} if loss is MarginLabelSmoothingLoss else {}
    z, y = (x.transpose(0, 1).flatten(0, 1)[:, None] for x in (case.logits, case.target))
    value, gradient = value_and_gradient(loss(**options), torch.cat([torch.zeros_like(z), z], 1), y)
    expected = value, gradient[:, 1].unflatten(0, (3, 2)).transpose(0, 1)
    assert_same(value_and_gradient(loss(regions=True, **options), case.logits, case.target), expected)


@pytest.mark.usefixtures("every_way")
@every_loss
@pytest.mark.parametrize("mode", MODES[1::2])
def test_ignored_voxels_might_as_well_not_be_there(loss, mode):
    """Cut away from one image, they leave the same value, and the others' gradients."""
    case = make_case(mode, (4, 5, 4))
    logits, target, counts = case.logits[:1], case.target[:1], ~case.ignored[0, 0]
    cut_logits, cut_target = (x[:, :, counts][:, :, None] for x in (logits, target))
    if case.regions:
        cut_target = cut_target[:, :-1]
    options = {"margin": 1.0} if loss is MarginLabelSmoothingLoss else {}
    expected, cut_gradient = value_and_gradient(loss(**options, regions=case.regions), cut_logits, cut_target)
    gradient = torch.zeros_like(logits)
    gradient[:, :, counts] = cut_gradient[:, :, 0]
    assert_same(value_and_gradient(loss(**options, **case.mode), logits, target), (expected, gradient))


@every_loss
@pytest.mark.parametrize("shape", [(2, 3, 0, 4), (0, 3, 4, 4)], ids=["no voxels", "no images"])
def test_empty(loss, shape):
    """Nothing has no error."""
    for ignore_label in (None, IGNORE_LABEL):
        logits = torch.zeros(shape, requires_grad=True)
        value = loss(ignore_label=ignore_label)(logits, torch.zeros(shape[0], 1, *shape[2:], dtype=torch.long))
        value.backward()
        assert value == 0
        assert logits.grad is not None


def test_ties_and_sure_voxels():
    """Equal largest logits, probabilities of exactly 0 or 1: finite, and the two ways agree."""
    logits = torch.tensor([[2.0, 2, 0], [300, 0, -300], [0, 0, 0]]).T[None, :, None]
    for mode, target in (({}, torch.tensor([[[[0, 0, 1]]]])), ({"regions": True}, torch.eye(3)[None, :, None].long())):
        for loss in FUNCTIONS:
            for options in ({}, {"gamma": 0.5}) if loss is FocalLoss else ({},):
                ways = []
                for way in ("reference", "chunked"):
                    with use(way):
                        ways.append(value_and_gradient(loss(**options, **mode), logits, target))
                assert ways[0][1].isfinite().all()
                torch.testing.assert_close(ways[1], ways[0])


REFUSED = [
    (LabelSmoothingLoss, {"alpha": 1.1}, "expected alpha to be from 0 to 1, got 1.1"),
    (LabelSmoothingLoss, {"alpha": float("nan")}, "expected alpha to be from 0 to 1, got nan"),
    (MarginLabelSmoothingLoss, {"margin": -1}, "expected margin to be at least 0, got -1"),
    (FocalLoss, {"gamma": -0.5}, "expected gamma to be at least 0, got -0.5"),
    (DicePlusPlusLoss, {"gamma": 0.5}, "expected gamma to be at least 1, got 0.5"),
    (DicePlusPlusLoss, {"smooth": -1}, "expected smooth to be at least 0, got -1"),
    (DicePlusPlusLoss, {"pool": "ranks"}, "expected pool to be one of 'image', 'batch', got 'ranks'"),
    (MDCALoss, {"pool": "ranks"}, "expected pool to be one of 'image', 'batch', got 'ranks'"),
]


@pytest.mark.parametrize(("loss", "options", "text"), REFUSED)
def test_unknown_option(loss, options, text):
    """Told when the Module is made, and by the function."""
    for refuse in (loss, lambda **o: FUNCTIONS[loss](torch.zeros(1, 3, 2, 2), torch.zeros(1, 1, 2, 2), **o)):
        with pytest.raises(ValueError, match=f"^{text}$"):
            refuse(**options)


@pytest.mark.usefixtures("every_way")
@every_loss
def test_refused_tensors(loss):
    """Shapes that do not belong together, and labels that have no class."""
    logits, target = torch.zeros(2, 3, 4, 5), torch.zeros(2, 1, 4, 5, dtype=torch.long)
    with pytest.raises(ValueError, match=r"and a target of shape \(2, 3, 4, 5\) \(regions=True, ignore_label=None\)"):
        loss(regions=True)(logits, target)
    target[1, 0, 2, 3] = 3
    with pytest.raises(ValueError, match=r"expected labels from 0 to 2 \(or the ignore label, 7\), got values from 0"):
        loss(ignore_label=7)(logits, target)


def test_public_names():
    """Each loss is there as a function and as a Module."""
    assert {*FUNCTIONS.values()} | {*FUNCTIONS} <= {getattr(losses, name) for name in losses.__all__}

"""Options, shapes and labels that do not belong together are refused, saying what was expected and what came."""

from __future__ import annotations

import re

import pytest
import torch

from nnunet_calib.losses import ML1ACELoss, NACLLoss, SVLSLoss, ml1_ace_loss, nacl_loss, svls_loss
from tests.losses.plain import fused_loss

pytestmark = pytest.mark.pairs

PAIRS = {NACLLoss: nacl_loss, SVLSLoss: svls_loss, ML1ACELoss: ml1_ace_loss}
KERNEL_LOSSES = (NACLLoss, SVLSLoss)
LOGITS, TARGET = torch.zeros(2, 3, 4, 5), torch.zeros(2, 1, 4, 5, dtype=torch.long)
KERNEL = "expected kernel_size to be odd and positive, one number or one per axis, got {}"
OPTIONS = [
    (NACLLoss, {"prior": "average"}, "'mean', 'gaussian', 'max', 'min', 'median', 'mode'"),
    (NACLLoss, {"penalty": "huber"}, "'l1', 'l2'"),
    (NACLLoss, {"on": "labels"}, "'logits', 'probabilities'"),
    (ML1ACELoss, {"reduction": "mean"}, "'ace', 'ece', 'mce'"),
    (ML1ACELoss, {"binning": "fuzzy"}, "'hard', 'soft'"),
    (ML1ACELoss, {"absent_classes": "drop"}, "'skip', 'zero', 'keep'"),
]


def raises(text: str):
    """Expect a ValueError with exactly this text."""
    return pytest.raises(ValueError, match=f"^{re.escape(text)}$")


@pytest.mark.parametrize("sigma", [0.0, 0.05, float("nan")])
@pytest.mark.parametrize("options", [(nacl_loss, {"prior": "gaussian"}), (svls_loss, {})], ids=["nacl", "svls"])
def test_narrow_sigma(options, sigma):
    """A sigma that leaves neighbours no weight."""
    loss, chosen = options
    with raises(f"expected sigma to be at least 0.1 voxels, got {sigma}"):
        loss(LOGITS, TARGET, sigma=sigma, **chosen)


@pytest.mark.parametrize("kernel_size", [2, 0, -1, (3, 4), (1, 3, 0)], ids=str)
@pytest.mark.parametrize("loss", KERNEL_LOSSES)
def test_even_kernel(loss, kernel_size):
    """Sizes must be odd and positive, for the Module as soon as it is made."""
    text = KERNEL.format(kernel_size)
    with raises(text):
        loss(kernel_size=kernel_size)
    with raises(text):
        PAIRS[loss](LOGITS, TARGET, kernel_size=kernel_size)


@pytest.mark.parametrize(("kernel_size", "axes"), [((3,), 2), ((3, 3, 3), 2), ((3, 3), 3), ((), 3)], ids=str)
@pytest.mark.parametrize("loss", KERNEL_LOSSES)
def test_wrong_number_of_kernel_sizes(loss, kernel_size, axes):
    """One size, or one per spatial axis."""
    logits, target = torch.zeros(1, 3, *[4] * axes), torch.zeros(1, 1, *[4] * axes)
    with raises(f"expected one kernel_size or {axes}, one per spatial axis, got {kernel_size}"):
        loss(kernel_size=kernel_size)(logits, target)


@pytest.mark.parametrize(("loss", "option", "allowed"), OPTIONS)
def test_unknown_option(loss, option, allowed):
    """An unknown option is answered with those there are, for the Module as soon as it is made."""
    ((name, value),) = option.items()
    text = f"expected {name} to be one of {allowed}, got {value!r}"
    with raises(text):
        loss(**option)
    with raises(text):
        PAIRS[loss](LOGITS, TARGET, **option)


@pytest.mark.parametrize("num_bins", [0, -3])
def test_no_bins(num_bins):
    """There must be a bin."""
    text = f"expected num_bins to be at least 1, got {num_bins}"
    with raises(text):
        ML1ACELoss(num_bins=num_bins)
    with raises(text):
        ml1_ace_loss(LOGITS, TARGET, num_bins=num_bins)


@pytest.mark.parametrize(
    ("logits", "expected", "target", "regions", "ignore_label"),
    [
        ((2, 3, 4, 5), (2, 1, 4, 5), (2, 4, 5), False, None),  # no channel axis
        ((2, 3, 4, 5), (2, 1, 4, 5), (2, 3, 4, 5), False, None),  # one-hot
        ((2, 3, 4, 5), (2, 1, 4, 5), (1, 1, 4, 5), False, None),  # another batch size
        ((2, 3, 4, 5), (2, 1, 4, 5), (2, 1, 5, 4), False, 3),  # another volume
        ((2, 3, 4, 5), (2, 3, 4, 5), (2, 1, 4, 5), True, None),  # labels for regions
        ((2, 3, 4, 5), (2, 4, 4, 5), (2, 3, 4, 5), True, 3),  # no channel for ignored voxels
        ((2, 3, 4, 5), (2, 3, 4, 5), (2, 4, 4, 5), True, None),  # no ignore label, but a channel for it
        ((2, 3, 4), (2, 1, 4), (2, 1, 4), False, None),  # 1D
        ((2, 3, 4, 5, 6, 7), (2, 1, 4, 5, 6, 7), (2, 1, 4, 5, 6, 7), False, None),  # 4D
    ],
)
@pytest.mark.parametrize("loss", PAIRS)
def test_shapes(loss, logits, expected, target, regions, ignore_label):
    """A target of the wrong shape is answered with the right one."""
    text = (
        f"expected logits (B, C, *spatial) with 2 or 3 spatial axes and a target of shape {expected} "
        f"(regions={regions}, ignore_label={ignore_label}), got logits {logits} and target {target}"
    )
    with raises(text):
        loss(regions=regions, ignore_label=ignore_label)(torch.zeros(logits), torch.zeros(target))


@pytest.mark.parametrize(("label", "lowest", "highest"), [(3, 0, 3), (-1, -1, 0)])
@pytest.mark.parametrize("ignore_label", [None, 7])
@pytest.mark.parametrize("loss", PAIRS)
def test_label_without_head(loss, ignore_label, label, lowest, highest):
    """A label that no head stands for is refused, not turned into an all-zero target."""
    target = TARGET.clone()
    target[1, 0, 2, 3] = label
    with raises(
        f"expected labels from 0 to 2 (or the ignore label, {ignore_label}), got values from {lowest} to {highest}: "
        "check the labels in dataset.json against the label maps"
    ):
        loss(ignore_label=ignore_label)(LOGITS, target)


@pytest.mark.parametrize("bad", [float("-inf"), float("inf"), float("nan"), -1.0])
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("ignore_label", [None, 9])
@pytest.mark.parametrize("loss", [nacl_loss, svls_loss, ml1_ace_loss, fused_loss])
def test_labels_that_no_integer_holds(loss, ignore_label, classes, bad):
    """nnU-Net's targets may be floats."""
    target = torch.zeros(1, 1, 4, 5)
    target[0, 0, 2, 2] = bad
    text = rf"^expected labels from 0 to {classes - 1} \(or the ignore label, {ignore_label}\), got values from "
    with pytest.raises(ValueError, match=text + rf"{bad:g} to|{text}0 to {bad:g}:"):
        loss(torch.zeros(1, classes, 4, 5), target, ignore_label=ignore_label)

"""Every loss, in every label mode: what may not change it, and the fused loss against the plain formulas."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nnunet_calib.losses import ml1_ace_loss, nacl_loss, svls_loss
from tests.losses.conftest import value_and_gradient
from tests.losses.plain import fused_loss, plain_loss
from tests.properties.strategies import FEW, IGNORED, SAME, Made, volumes

LOSSES = pytest.mark.parametrize("loss", [ml1_ace_loss, nacl_loss, svls_loss], ids=lambda loss: loss.__name__)


def both(loss, made: Made, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Value and gradient."""
    return value_and_gradient(loss, *made.tensors(dtype), **made.mode)


def assert_near(ours, expected, tolerance: float = 1e-9) -> None:
    """Values and gradients agree, beside the largest of each."""
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=tolerance * (1 + float(b.abs().max())))


@LOSSES
@SAME
@given(made=volumes(images=2), axis=st.integers(2, 4))
def test_flips(loss, made, axis):
    """A mirrored volume has the mirrored gradient."""
    axis = min(axis, made.logits.ndim - 1)
    value, gradient = both(loss, made)
    mirrored = replace(made, logits=np.flip(made.logits, axis).copy(), labels=np.flip(made.labels, axis - 1).copy())
    assert_near(both(loss, mirrored), (value, gradient.flip(axis)))


@LOSSES
@SAME
@given(made=volumes(images=2, regions=False), data=st.data())
def test_class_permutation(loss, made, data):
    """Classes may have any order."""
    order = np.array(data.draw(st.permutations(range(made.heads))))
    value, gradient = both(loss, made)
    labels = made.labels.copy()
    known = labels != IGNORED
    labels[known] = np.argsort(order)[labels[known]]
    assert_near(both(loss, replace(made, logits=made.logits[:, order], labels=labels)), (value, gradient[:, order]))


@LOSSES
@SAME
@given(made=volumes(images=2))
def test_ignored_voxels(loss, made):
    """Whatever is predicted where nothing is known, the loss is the same, and nothing is learnt there."""
    ignored = np.broadcast_to((made.labels == IGNORED)[:, None], made.logits.shape)
    other = replace(made, logits=np.where(ignored, np.nan, made.logits))
    value, gradient = both(loss, made)
    assert_near(both(loss, other), (value, gradient), 0)
    assert not gradient[torch.tensor(ignored.copy())].any()


@LOSSES
@FEW
@given(made=volumes(images=3))
def test_order_of_images(loss, made):
    """The images of a batch may have any order."""
    value, gradient = both(loss, made)
    turned = replace(made, logits=made.logits[::-1].copy(), labels=made.labels[::-1].copy())
    assert_near(both(loss, turned), (value, gradient.flip(0)))


@FEW
@given(made=volumes(images=3))
def test_batch_split(made):
    """mL1-ACE is an average of images that have a voxel: of a batch as of its images one by one."""
    if made.ignores and (made.labels == IGNORED).all((*range(1, made.labels.ndim),)).any():
        return  # the mean is over the other images
    images = [replace(made, logits=made.logits[i : i + 1], labels=made.labels[i : i + 1]) for i in range(3)]
    one_by_one = [both(ml1_ace_loss, image) for image in images]
    whole = torch.stack([value for value, _ in one_by_one]).mean(), torch.cat([g for _, g in one_by_one]) / 3
    assert_near(both(ml1_ace_loss, made), whole)


@LOSSES
@SAME
@given(made=volumes(images=2), dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]))
def test_precision(loss, made, dtype):
    """In any precision the loss is that of the numbers that the logits hold."""
    logits, target = made.tensors(dtype)
    value, gradient = value_and_gradient(loss, logits, target, **made.mode)
    exact, _ = value_and_gradient(loss, logits.double(), target, **made.mode)
    assert (value.dtype, gradient.dtype) == (torch.float32, dtype)
    assert gradient.isfinite().all()
    torch.testing.assert_close(value.double(), exact, rtol=2e-6, atol=1e-6)


@SAME
@given(made=volumes(images=2, regions=False), bins=st.sampled_from([1, 2, 15, 20]), batch_dice=st.booleans())
def test_fused(made, bins, batch_dice):
    """Dice + CE + mL1-ACE at once are the three one after the other."""
    logits, target = made.tensors()
    options = {"num_bins": bins, "batch_dice": batch_dice, "ignore_label": made.mode["ignore_label"]}
    assert_near(
        value_and_gradient(fused_loss, logits, target, **options),
        value_and_gradient(plain_loss, logits, target, **options),
    )


@LOSSES
@FEW
@given(made=volumes(images=2, regions=True))
def test_regions_are_heads_of_their_own(loss, made):
    """The loss of region-based heads is the mean of that of each head; mL1-ACE takes it over heads that are present."""
    value, _ = both(loss, made)
    known = made.labels != IGNORED
    heads = []
    for c in range(made.heads):
        alone = replace(made, logits=made.logits[:, c : c + 1], regions=(made.regions[c],))
        if loss is not ml1_ace_loss:
            heads.append(both(loss, alone)[0])
            continue
        for i in range(2):
            if (alone.maps[i, 0] & known[i]).any():
                image = replace(alone, logits=alone.logits[i : i + 1], labels=alone.labels[i : i + 1])
                heads.append(both(loss, image)[0])
    if not heads:
        assert value == 0
    elif loss is not ml1_ace_loss:
        torch.testing.assert_close(value, torch.stack(heads).mean())

"""The properties that all losses share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from tests.losses.conftest import IGNORE_LABEL, Case, assert_same, value_and_gradient


@pytest.mark.pairs
@pytest.mark.usefixtures("every_way")
class LossProperties:
    """What holds for every loss. `symmetric_variants` are those to which the order of the classes means nothing."""

    function: Callable[..., Tensor]
    module: type[nn.Module]
    variants: ClassVar[tuple[dict[str, Any], ...]]
    symmetric_variants: ClassVar[tuple[dict[str, Any], ...]]

    def both(self, case: Case, variant: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Value and gradient for a case."""
        return value_and_gradient(self.function, case.logits, case.target, **variant, **case.mode)

    def test_function_and_module_agree(self, case, variant):
        """The Module hands every option on, has the same defaults and shows its options."""
        module = self.module(**variant, **case.mode)
        expected = self.function(case.logits, case.target, **variant, **case.mode)
        assert torch.equal(module(case.logits, case.target), expected)
        assert all(f"{name}={value!r}" in repr(module) for name, value in (variant | case.mode).items())

    def test_gradcheck(self, small_case, variant):
        """The gradient is that of the value, away from bin edges and kinks."""
        loss = self.module(**variant, **small_case.mode)
        logits = small_case.logits.clone().requires_grad_()
        assert torch.autograd.gradcheck(lambda z: loss(z, small_case.target), logits, fast_mode=True)

    def test_inputs_stay_and_backward_repeats(self, case, variant):
        """Neither input is written to, and a retained graph gives the same gradient again."""
        logits, target = case.logits.clone().requires_grad_(), case.target.clone()
        loss = self.function(logits, target, **variant, **case.mode)
        loss.backward(retain_graph=True)
        once = logits.grad.clone()
        loss.backward()
        assert once.any()
        assert torch.equal(logits.grad, 2 * once)
        assert torch.equal(logits, case.logits)
        assert torch.equal(target, case.target)

    def test_type_of_the_target(self, case, variant):
        """Labels and maps may come as any integer type or as floats."""
        expected = self.both(case, variant)
        for dtype in (torch.uint8, torch.int16, torch.int32, torch.float32):
            actual = self.both(replace(case, target=case.target.to(dtype)), variant)
            if case.regions and dtype == torch.float32:  # float maps may hold fractions: the formulas alone
                assert_same(actual, expected)
            else:
                assert all(map(torch.equal, actual, expected))

    def test_precision(self, case, variant):
        """Any precision and extreme logits give a finite float32 loss that is right to float32's precision."""
        for dtype, largest in product((torch.float16, torch.bfloat16, torch.float32), (5, 1e4)):
            logits = (case.logits * (largest / case.logits.abs().max())).to(dtype)
            value, gradient = self.both(replace(case, logits=logits), variant)
            exact, _ = self.both(replace(case, logits=logits.double()), variant)
            assert (value.dtype, exact.dtype, gradient.dtype) == (torch.float32, torch.float64, dtype)
            assert gradient.isfinite().all()
            torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=1e-7)

    def test_autocast_changes_nothing(self, case, variant):
        """Under autocast the loss of the same logits is the same."""
        single = replace(case, logits=case.logits.float())
        expected = self.both(single, variant)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = self.both(single, variant)
        assert all(map(torch.equal, actual, expected))

    def test_nan_is_not_hidden(self, case, variant):
        """NaN logits in one voxel that counts make the loss NaN."""
        case.logits[(0, slice(None), *[-1] * (case.logits.ndim - 2))] = torch.nan
        assert self.function(case.logits, case.target, **variant, **case.mode).isnan()

    def test_flips(self, case, variant):
        """A mirrored volume has the same loss and the mirrored gradient."""
        value, gradient = self.both(case, variant)
        for axis in range(2, case.logits.ndim):
            mirrored = replace(case, logits=case.logits.flip(axis), target=case.target.flip(axis))
            assert_same(self.both(mirrored, variant), (value, gradient.flip(axis)))

    def test_class_permutation(self, case, symmetric_variant):
        """Renamed classes have the same loss and the permuted gradient."""
        value, gradient = self.both(case, symmetric_variant)
        order = [2, 0, 1]
        if case.regions:
            target = case.target[:, order + [3] * (case.ignore_label is not None)]
        else:
            target = torch.tensor([*(order.index(c) for c in range(3)), IGNORE_LABEL])[case.target]
        renamed = replace(case, logits=case.logits[:, order], target=target)
        assert_same(self.both(renamed, symmetric_variant), (value, gradient[:, order]))

    def test_content_of_ignored_voxels_has_no_influence(self, ignoring_case, variant):
        """Other logits, other maps or another ignore label there change nothing; the gradient there is 0."""
        case = ignoring_case
        if case.regions:
            target = torch.where(case.ignored.expand_as(case.target[:, :3]), 1 - case.target[:, :3], case.target[:, :3])
            other = replace(case, target=torch.cat([target, case.target[:, 3:]], dim=1))
        else:
            other = replace(case, target=torch.where(case.ignored, -1, case.target), ignore_label=-1)
        other = replace(other, logits=torch.where(case.ignored, -5 * case.logits, case.logits))
        expected = self.both(case, variant)
        assert all(map(torch.equal, self.both(other, variant), expected))
        assert not expected[1][case.ignored.expand_as(case.logits)].any()

    def test_bad_logits_in_ignored_voxels_have_no_influence(self, ignoring_case, variant):
        """NaN or Inf in ignored voxels changes neither the loss nor the gradient elsewhere."""
        value, gradient = self.both(ignoring_case.with_bad_logits(), variant)
        expected_value, expected_gradient = self.both(ignoring_case, variant)
        assert torch.equal(value, expected_value)
        assert torch.equal(torch.where(ignoring_case.ignored, 0, gradient), expected_gradient)

    def test_bad_logits_in_ignored_voxels_get_no_gradient(self, ignoring_case, variant):
        """NaN or Inf in ignored voxels has gradient 0 itself, so that none spreads through the network's weights."""
        _, gradient = self.both(ignoring_case.with_bad_logits(), variant)
        assert not gradient[ignoring_case.ignored.expand_as(gradient)].any()

    def test_everything_ignored(self, ignoring_case, variant):
        """Without a voxel that counts, loss and gradient are exactly 0."""
        value, gradient = self.both(ignoring_case.ignore(slice(None)), variant)
        assert value == 0
        assert not gradient.any()

    def test_ignored_image_leaves_no_trace(self, ignoring_case, variant):
        """An image that is ignored altogether might as well not be in the batch."""
        case = ignoring_case.ignore(slice(1, 2))
        value, gradient = self.both(replace(case, logits=case.logits[:1], target=case.target[:1]), variant)
        assert_same(self.both(case, variant), (value, torch.cat([gradient, torch.zeros_like(gradient)])))

    def test_ignore_label_without_ignored_voxels(self, plain_case, variant):
        """Where no voxel has the ignore label, naming one changes nothing."""
        case = plain_case
        target = torch.cat([case.target, torch.zeros_like(case.target[:, :1])], 1) if case.regions else case.target
        same = replace(case, target=target, ignore_label=IGNORE_LABEL)
        assert_same(self.both(same, variant), self.both(case, variant))

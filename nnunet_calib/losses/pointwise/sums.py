"""Sums of a formula's terms over the voxels that count, and losses that are their mean."""

from __future__ import annotations

import torch
from torch import Tensor

from nnunet_calib.losses.backends import Formula, compute
from nnunet_calib.losses.joined import JoinedLoss
from nnunet_calib.losses.module import FunctionalLoss
from nnunet_calib.losses.targets import check_shapes, loss_type, prepare, widest


def pointwise_sums(
    logits: Tensor, target: Tensor, *, formula: Formula, regions: bool, ignore_label: int | None
) -> Tensor:
    """Return the sums (K, B, C) of a formula's K terms, in float64 (float32 on a device without it)."""
    check_shapes(logits, target, regions=regions, ignore_label=ignore_label)
    computed = compute("pointwise", logits, target, formula=formula, regions=regions, ignore_label=ignore_label)
    if computed is not None:
        return computed[1]
    z, maps, valid = prepare(logits, target, regions=regions, ignore_label=ignore_label)
    terms = torch.stack(formula.terms(z.flatten(2), maps.flatten(2), regions))
    if valid is not None:
        terms = torch.where(valid.flatten(2), terms, 0)
    return terms.sum(3, dtype=widest(logits.device))


def mean_loss(logits: Tensor, target: Tensor, *, formula: Formula, regions: bool, ignore_label: int | None) -> Tensor:
    """Return the mean over the voxels that count of a formula's term, which is summed over the classes.

    For regions it is a mean over the heads too. Without a voxel that counts it is 0.
    """
    sums = pointwise_sums(logits, target, formula=formula, regions=regions, ignore_label=ignore_label)
    return _mean(sums, target, regions, ignore_label).to(loss_type(logits))


def _mean(sums: Tensor, target: Tensor, regions: bool, ignore_label: int | None) -> Tensor:
    heads = sums.shape[2]
    if ignore_label is None:
        voxels = sums.new_full((), target[:, 0].numel())
    else:
        voxels = ((target[:, heads:] == 0) if regions else (target != ignore_label)).sum()
    return sums.sum() / (voxels * (heads if regions else 1)).clamp_min(1)


def joined_sums(joined: JoinedLoss, *, formula: Formula, regions: bool, ignore_label: int | None) -> Tensor | None:
    """Return the sums (K, B, C) of a formula's terms and pass the logits on; None if no backend can."""
    computed = compute(
        "pointwise", joined.logits, joined.target, formula=formula, regions=regions, ignore_label=ignore_label
    )
    if computed is None:
        return None
    joined.logits, sums = computed
    return sums


class MeanLoss(FunctionalLoss):
    """Module form of `mean_loss` with a formula."""

    def __init__(self, formula: Formula, regions: bool, ignore_label: int | None) -> None:
        super().__init__(mean_loss, formula=formula, regions=regions, ignore_label=ignore_label)

    def join(self, joined: JoinedLoss, weight: float) -> bool:
        """Add the mean of the formula's term, and pass the logits on."""
        if not self.fits(joined):
            return False
        sums = joined_sums(joined, **self.options)
        if sums is None:
            return False
        mean = _mean(sums, joined.target, self.options["regions"], self.options["ignore_label"])
        joined.values.append(weight * mean.to(loss_type(joined.logits)))
        return True

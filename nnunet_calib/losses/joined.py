"""Dice + cross-entropy and calibration terms, computed together for one output of a network.

Dice, cross-entropy and mL1-ACE are formulas of a few sums over the voxels of each image (`backends.VoxelSums`), small
tensors that autograd differentiates. A term joins them by asking for bins among these sums, by passing the logits
through before the sums are taken, or by raising the weight of the cross-entropy. A term that cannot join is computed
separately.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor, nn

from nnunet_calib.losses.backends import Binning, VoxelSums, choice, compute
from nnunet_calib.losses.targets import at_least_float32, loss_type

if TYPE_CHECKING:
    from nnunet_calib.losses.module import FunctionalLoss


@dataclass(frozen=True)
class DiceCE:
    r"""Weighted sum of cross-entropy and Dice loss; for regions of the binary cross-entropy and the Dice of each head.

    .. math:: - \frac{w_{CE}}{N} \sum_i \log p_{i, y_i}
        - w_{Dice} \, \mathrm{mean}_{b, c > 0} \frac{2 \sum_{i: y_i = c} p_{i,c} + s}{\sum_i p_{i,c} + n_c + s}

    Attributes:
        weight_ce: factor of the cross-entropy, a mean over the voxels that count, and over the heads for regions.
        weight_dice: factor of the Dice loss, which is the negative of the coefficient; for labels without background.
        batch_dice: take the Dice coefficient of the whole batch rather than of each image.
        smooth: s.
        regions: whether heads are regions.
        ignore_label: voxels with this label are left out; for regions only whether it is None matters.
    """

    weight_ce: float = 1.0
    weight_dice: float = 1.0
    batch_dice: bool = False
    smooth: float = 1e-5
    regions: bool = False
    ignore_label: int | None = None


@dataclass
class JoinedLoss:
    """The requests of all terms, collected before the voxels are visited.

    Attributes:
        logits: (B, C, *spatial), from which the next term is computed.
        target: nnU-Net's, of the matching shape.
        base: the loss that the terms join.
        weight_ce: factor of the cross-entropy.
        bins: number and kind of the bins among the sums.
        of_sums: terms computed from the sums.
        values: terms computed separately.
    """

    logits: Tensor
    target: Tensor
    base: DiceCE
    weight_ce: float
    bins: tuple[int, Binning] = (0, "hard")
    of_sums: list[Callable[[VoxelSums], Tensor]] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    def value(self) -> Tensor | None:
        """Return the loss, or None if no backend supports these sums."""
        num_bins, binning = self.bins
        sums = compute(
            "voxel_sums",
            self.logits,
            self.target,
            num_bins=num_bins,
            binning=binning,
            regions=self.base.regions,
            ignore_label=self.base.ignore_label,
        )
        if sums is None:
            return None
        loss = self.weight_ce * cross_entropy(sums, self.base.regions) - self.base.weight_dice * self._dice(sums)
        for formula in self.of_sums:
            loss = loss + formula(sums)
        loss = loss.to(loss_type(self.logits))
        for value in self.values:
            loss = loss + value
        return loss

    def _dice(self, sums: VoxelSums) -> Tensor:
        """Return the mean Dice coefficient, as nnU-Net computes it."""
        total, of_true, number = sums.total, sums.of_true, sums.number
        if self.base.batch_dice:
            total, of_true, number = (x.sum(0, keepdim=True) for x in (total, of_true, number))
        dice = (2 * of_true + self.base.smooth) / (number + total + self.base.smooth).clamp_min(1e-8)
        return dice.mean() if self.base.regions else dice[:, 1:].mean()


def cross_entropy(sums: VoxelSums, regions: bool) -> Tensor:
    """Return the mean over the voxels that count, and for regions over the heads; 0 where none does."""
    heads = sums.total.shape[1] if regions else 1
    return sums.nll / (sums.voxels * heads).clamp_min(1)


def joined_loss(
    logits: Tensor, target: Tensor, base: DiceCE, terms: Iterable[tuple[nn.Module, float]]
) -> Tensor | None:
    """Return base + the sum of weight * term, computed together; None if the formulas were chosen.

    Args:
        logits: (B, C, *spatial); for labels C is at least 2.
        target: nnU-Net's, of the matching shape.
        base: the loss that the terms join.
        terms: losses of (logits, target) and their weights.

    Returns:
        A scalar in at least float32, which can be differentiated once.

    Raises:
        ValueError: for a label that has no class, or if a backend was chosen that cannot take these logits.
    """
    if choice() == "reference":
        return None
    joined = JoinedLoss(logits, target, base, base.weight_ce)
    alone = [(term, weight) for term, weight in terms if not _join(term, joined, weight)]
    if alone:
        joined.logits = at_least_float32(joined.logits)  # so that the terms' gradients are added in single precision
    for term, weight in alone:
        joined.values.append(weight * term(joined.logits, target))
    return joined.value()


def _join(term: nn.Module | FunctionalLoss, joined: JoinedLoss, weight: float) -> bool:
    """Return whether the term has joined, which needs a loss of this package, of the same kind of labels."""
    join = getattr(term, "join", None)
    return join is not None and join(joined, weight)

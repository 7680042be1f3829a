"""Puts a calibration term into the loss that an nnU-Net trainer has built.

The term is put inside what `super()._build_loss()` returns, never beside a copy of it: nnU-Net's weights over the
output resolutions, its handling of DDP and of torch.compile, and whatever a trainer variant does there, are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.training.loss.robust_ce_loss import RobustCrossEntropyLoss
from nnunetv2.utilities.helpers import softmax_helper_dim1
from torch import Tensor, nn

from nnunet_calib.losses import ML1ACELoss, NACLLoss, SVLSLoss
from nnunet_calib.losses.fused import fused_loss
from nnunet_calib.losses.module import FunctionalLoss
from nnunet_calib.losses.nacl import from_borders, is_from_borders
from nnunet_calib.losses.svls import border_term
from nnunet_calib.losses.targets import at_least_float32, for_cpu

Outputs = Tensor | Sequence[Tensor]


class NoTerm(nn.Module):
    """Stands where nnU-Net's cross-entropy was: always zero."""

    def forward(self, net_output: Tensor, target: Tensor) -> Tensor:
        """A zero scalar."""
        return torch.zeros((), device=net_output.device)


def fusible(net_output: Tensor, target: Tensor) -> bool:
    """Whether `fused_loss` takes these tensors: labels on a CPU; nnU-Net's sums are float32 even for float64 logits."""
    return (
        net_output.dtype != torch.float64
        and net_output.ndim > 2
        and for_cpu(net_output, regions=False)
        and target.device == net_output.device
        and target.shape == (net_output.shape[0], 1, *net_output.shape[2:])
    )


def fused_options(base: Any) -> dict[str, Any] | None:
    """What `fused_loss` needs to know to equal an nnU-Net loss, or None unless it is one that it can compute.

    It is Dice + cross-entropy as nnU-Net's trainers build it, not compiled, and without gathering a batch over the
    processes of DDP. A subclass might compute something else and is not recognised.
    """
    if type(base) is not DC_and_CE_loss:
        return None
    ce, dice = base.ce, base.dc
    if type(dice) is not MemoryEfficientSoftDiceLoss or type(ce) not in (RobustCrossEntropyLoss, NoTerm):
        return None
    if dice.apply_nonlin is not softmax_helper_dim1 or dice.do_bg or (dice.ddp and dice.batch_dice):
        return None
    ignore_index = nn.CrossEntropyLoss().ignore_index if base.ignore_label is None else base.ignore_label
    if type(ce) is RobustCrossEntropyLoss and (ce.weight, ce.label_smoothing, ce.reduction, ce.ignore_index) != (
        None, 0, "mean", ignore_index,
    ):
        return None
    return {
        "weight_ce": base.weight_ce if type(ce) is RobustCrossEntropyLoss else 0,
        "weight_dice": base.weight_dice,
        "batch_dice": dice.batch_dice,
        "smooth": dice.smooth,
        "ignore_label": base.ignore_label,
    }


def fused(base: Any, term: Any, weight: float, net_output: Tensor, target: Tensor) -> Tensor | None:
    """Value of base + weight * term by `fused_loss`, or None where it cannot compute the base.

    With mL1-ACE (hard bins for each image) all is one pass; SVLS is the cross-entropy and a term at label borders, NACL
    one distance to the logits; any other term is computed by itself.
    """
    options = fused_options(base) if fusible(net_output, target) else None
    if options is None:
        return None
    net_output = at_least_float32(net_output)  # once: the parts' gradients are added in single precision
    of_term: dict[str, Any] = term.options if isinstance(term, FunctionalLoss) else {}
    same_labels = (of_term.get("regions"), of_term.get("ignore_label")) == (False, base.ignore_label)
    if type(term) is ML1ACELoss and same_labels and (of_term["binning"], of_term["pool"]) == ("hard", "image"):
        binned = {name: of_term[name] for name in ("num_bins", "reduction", "absent_classes")}
        return fused_loss(net_output, target, weight_ml1_ace=weight, **binned, **options)
    if type(term) is SVLSLoss and same_labels and options["weight_ce"] == 0:
        smoothed = {name: of_term[name] for name in ("kernel_size", "sigma", "ignore_label")}
        net_output, more = border_term(net_output, target, **smoothed)
        return fused_loss(net_output, target, weight_ml1_ace=0, **(options | {"weight_ce": weight})) + weight * more
    if type(term) is NACLLoss and same_labels and is_from_borders(of_term["prior"], of_term["on"]):
        held = {name: of_term[name] for name in ("kernel_size", "prior", "sigma", "penalty", "ignore_label")}
        net_output, more = from_borders(net_output, target, **held)
        return fused_loss(net_output, target, weight_ml1_ace=0, **options) + weight * more
    return fused_loss(net_output, target, weight_ml1_ace=0, **options) + weight * term(net_output, target)


class LossWithTerm(nn.Module):
    """base(output, target) + weight * term(output, target); with weight 0 the base alone, to the last bit.

    Inside deep supervision, output and target are tensors, and the term takes part at every resolution. Around it they
    are lists, from the full resolution down, and the term sees the first.

    Attributes:
        fuse: compute both at once where possible, see `fused`.
    """

    fuse = True

    def __init__(self, base: nn.Module, term: nn.Module, weight: float) -> None:
        super().__init__()
        self.base = base
        self.term = term
        self.weight = weight

    def forward(self, net_output: Outputs, target: Outputs) -> Tensor:
        """The sum of both."""
        # looked up in each call: a mixin or a trainer may yet change the base (SVLS, torch.compile)
        if self.fuse and self.weight != 0 and isinstance(net_output, Tensor) and isinstance(target, Tensor):
            loss = fused(self.base, self.term, self.weight, net_output, target)
            if loss is not None:
                return loss
        loss = self.base(net_output, target)
        if self.weight == 0:
            return loss
        if not isinstance(net_output, Tensor):
            net_output, target = net_output[0], target[0]
        return loss + self.weight * self.term(net_output, target)

    def extra_repr(self) -> str:
        """The weight, which nnU-Net's debug.json then records."""
        return f"weight={self.weight}"


def add_term(base: nn.Module, term: nn.Module, weight: float, *, every_resolution: bool = True) -> nn.Module:
    """Add weight * term to an nnU-Net loss.

    Args:
        base: what an nnU-Net trainer's `_build_loss()` returned, with or without deep supervision.
        term: loss of (logits, target) in nnU-Net's target convention.
        weight: factor of the term, at least 0.
        every_resolution: let the term take part at every resolution, with nnU-Net's own weights; else only at the full
            resolution, with weight 1. Without deep supervision there is no difference.

    Returns:
        The loss to train with. `base` is changed.

    Raises:
        ValueError: for a negative weight.
    """
    if weight < 0:
        raise ValueError(f"expected the weight of a calibration loss to be at least 0, got {weight}")
    if not isinstance(base, DeepSupervisionWrapper) or not every_resolution:
        return LossWithTerm(base, term, weight)
    base.loss = LossWithTerm(base.loss, term, weight)
    return base


def replace_cross_entropy(base: nn.Module, term: nn.Module | None, num_heads: int = 1) -> nn.Module:
    """Put a term in the place of the CE (or BCE) of nnU-Net's Dice + CE loss; the Dice term stays as it is.

    The term gets the scale of what it replaces: nnU-Net's BCE with an ignore label sums over the heads, where without
    one it averages over them.

    Args:
        base: what an nnU-Net trainer's `_build_loss()` returned, with or without deep supervision.
        term: loss of (logits, target), a mean over the voxels that count (and over the heads, for regions); None leaves
            the Dice alone.
        num_heads: number of segmentation heads.

    Returns:
        The loss to train with. `base` is changed.

    Raises:
        TypeError: if there is no such cross-entropy in `base`.
    """
    if isinstance(base, DeepSupervisionWrapper):
        base.loss = replace_cross_entropy(base.loss, term, num_heads)
        return base
    if isinstance(base, LossWithTerm):
        base.base = replace_cross_entropy(base.base, term, num_heads)
        return base
    if not isinstance(base, DC_and_CE_loss | DC_and_BCE_loss):
        raise TypeError(
            f"expected nnU-Net's Dice + cross-entropy loss, whose cross-entropy is to be replaced, got "
            f"{type(base).__name__}: use a trainer that keeps nnU-Net's own loss, or another calibration loss"
        )
    weight, base.weight_ce, base.ce = base.weight_ce, 0, NoTerm()
    if isinstance(base, DC_and_BCE_loss) and base.use_ignore_label:
        weight *= num_heads
    return base if term is None else LossWithTerm(base, term, weight)

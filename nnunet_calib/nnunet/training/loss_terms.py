"""Insertion of a calibration term into the loss that an nnU-Net trainer has built.

The term goes into the loss that `super()._build_loss()` returns, never beside a copy of it. So nnU-Net's weights over
the output resolutions, its handling of DDP and torch.compile, and the changes of a trainer variant are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss, DC_and_topk_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.training.loss.robust_ce_loss import RobustCrossEntropyLoss
from nnunetv2.utilities.helpers import softmax_helper_dim1
from torch import Tensor, nn

from nnunet_calib.losses.joined import DiceCE, joined_loss

Outputs = Tensor | Sequence[Tensor]


class _Nothing(nn.Module):
    """Loss that is always zero, in the place of a part of nnU-Net's."""

    place: ClassVar[str]

    def forward(self, net_output: Tensor, target: Tensor, loss_mask: Tensor | None = None) -> Tensor:
        """Return a zero scalar."""
        return torch.zeros((), device=net_output.device)


class NoTerm(_Nothing):
    """Loss that is always zero, in the place of nnU-Net's cross-entropy."""

    place = "the cross-entropy"


class NoDice(_Nothing):
    """Loss that is always zero, in the place of nnU-Net's Dice."""

    place = "the Dice"


def joinable(net_output: Tensor, target: Tensor, base: DiceCE) -> bool:
    """Return whether `joined_loss` takes these tensors; nnU-Net's sums are float32 even for float64 logits."""
    heads, ignore = net_output.shape[1], base.ignore_label is not None
    return (
        net_output.dtype != torch.float64
        and net_output.ndim in (4, 5)
        and net_output.numel() > 0
        and (base.regions or heads > 1)
        and target.device == net_output.device
        and target.shape == (net_output.shape[0], heads + ignore if base.regions else 1, *net_output.shape[2:])
    )


def describe(base: Any, num_heads: int) -> DiceCE | None:
    """Return the parameters of nnU-Net's Dice + (binary) cross-entropy, or None for any other loss.

    The Dice may be compiled, as nnU-Net does on a GPU. It must not gather a batch over the processes of DDP. A subclass
    might compute something else and is not recognised.
    """
    if type(base) not in (DC_and_CE_loss, DC_and_BCE_loss):
        return None
    regions = type(base) is DC_and_BCE_loss
    dice = _dice_of(base)
    without_dice = type(dice) is NoDice
    if not (without_dice or _is_plain_dice(dice, regions)):
        return None
    weight_ce = base.weight_ce
    if type(base.ce) is NoTerm:
        weight_ce = 0
    elif not (_is_plain_bce(base) if regions else _is_plain_ce(base)):
        return None
    if not regions:
        ignore_label = base.ignore_label
    elif base.use_ignore_label:
        ignore_label = -1  # its number does not matter: a channel marks it
        weight_ce = weight_ce * num_heads  # this binary cross-entropy is a sum over the heads
    else:
        ignore_label = None
    if without_dice:
        return DiceCE(weight_ce, weight_dice=0, regions=regions, ignore_label=ignore_label)
    return DiceCE(weight_ce, base.weight_dice, dice.batch_dice, dice.smooth, regions, ignore_label)


def _dice_of(base: Any) -> Any:
    """Return the Dice of a compound loss, which nnU-Net may have compiled."""
    return getattr(base.dc, "_orig_mod", base.dc)


def _is_plain_dice(dice: Any, regions: bool) -> bool:
    if type(dice) is not MemoryEfficientSoftDiceLoss or (dice.ddp and dice.batch_dice):
        return False
    return dice.apply_nonlin is (torch.sigmoid if regions else softmax_helper_dim1) and dice.do_bg is regions


def _is_plain_ce(base: Any) -> bool:
    ignore_index = nn.CrossEntropyLoss().ignore_index if base.ignore_label is None else base.ignore_label
    settings = type(base.ce), base.ce.weight, base.ce.label_smoothing, base.ce.reduction, base.ce.ignore_index
    return settings == (RobustCrossEntropyLoss, None, 0, "mean", ignore_index)


def _is_plain_bce(base: Any) -> bool:
    reduction = "none" if base.use_ignore_label else "mean"
    settings = type(base.ce), base.ce.weight, base.ce.pos_weight, base.ce.reduction
    return settings == (nn.BCEWithLogitsLoss, None, None, reduction)


class LossWithTerm(nn.Module):
    """Loss base(output, target) + weight * term(output, target); with weight 0 exactly the base.

    Inside deep supervision, output and target are tensors, and the term takes part at every resolution. Around it they
    are lists, from the full resolution down, and the term sees the first. If the base is nnU-Net's own loss, both are
    computed at once. The base may be any function, with further arguments.

    Attributes:
        called: whether it has been called in this epoch of a training.
    """

    called = False

    def __init__(self, base: Callable[..., Tensor], term: nn.Module, weight: float) -> None:
        super().__init__()
        self.base = base
        self.term = term
        self.weight = weight

    def forward(self, net_output: Outputs, target: Outputs, *more: Any, **named: Any) -> Tensor:
        """Return the sum of both; further arguments go to the base alone."""
        first, self.called = not self.called, True
        if isinstance(net_output, Tensor) and isinstance(target, Tensor) and not more and not named:
            loss = self._at_once(net_output, target)
            if loss is not None:
                return loss
        loss = self.base(net_output, target, *more, **named)
        if not isinstance(loss, Tensor):
            raise TypeError(
                f"expected a tensor from {_name(self.base)}, to which {_name(self.term)} is added, got {_name(loss)}: "
                f"return the sum of its parts, or train with nnUNetTrainerCalib, which adds nothing"
            )
        if self.weight != 0:
            return loss + self.weight * self._of_term(net_output, target)
        if first:  # a term that cannot be computed must fail in the first step, not when its warm-up begins
            with torch.no_grad():
                self._of_term(net_output, target)
        return loss

    def _of_term(self, net_output: Any, target: Any) -> Tensor:
        """Return the term's value; TypeError unless it is called with nnU-Net's output and target."""
        try:
            value: Tensor = self.term(*(x if isinstance(x, Tensor) else x[0] for x in (net_output, target)))
        except (TypeError, KeyError, IndexError, AttributeError) as error:
            raise TypeError(
                f"expected a loss to be called with logits and labels like nnU-Net's, got {_name(net_output)} and "
                f"{_name(target)}, from which {_name(self.term)} cannot be computed ({error!r}): train with "
                f"nnUNetTrainerCalib, which adds nothing"
            ) from error
        return value

    def _at_once(self, net_output: Tensor, target: Tensor) -> Tensor | None:
        """Return the sum, computed at once with the terms of nested losses, or None if that is not possible."""
        # looked up in each call: a mixin or a trainer may still change the base (SVLS, torch.compile)
        base: Callable[..., Tensor] = self
        losses = []
        while isinstance(base, LossWithTerm):
            losses.append(base)
            base = base.base
        terms = [(loss.term, loss.weight) for loss in losses if loss.weight != 0]
        described = describe(base, net_output.shape[1]) if terms and net_output.ndim > 1 else None
        if described is None or not joinable(net_output, target, described):
            return None
        value = joined_loss(net_output, target, described, reversed(terms))
        for loss in losses if value is not None else ():
            loss.called = True
        return value

    def extra_repr(self) -> str:
        """Return the weight, which nnU-Net's debug.json then records."""
        return f"weight={self.weight}"


def _name(thing: Any) -> str:
    return str(getattr(thing, "__name__", type(thing).__name__))


def add_term(
    base: Callable[..., Tensor], term: nn.Module, weight: float, *, every_resolution: bool = True
) -> nn.Module:
    """Add weight * term to an nnU-Net loss.

    Args:
        base: loss from a trainer's `_build_loss()`, with or without nnU-Net's deep supervision; a module or a function.
        term: loss of (logits, target) in nnU-Net's target convention.
        weight: factor of the term, at least 0.
        every_resolution: whether the term takes part at every resolution, with nnU-Net's own weights, or only at the
            full resolution, with weight 1. Without deep supervision there is no difference.

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
    wrapper: nn.Module = base
    return wrapper


def replace_cross_entropy(base: Callable[..., Tensor], term: nn.Module | None, num_heads: int = 1) -> nn.Module:
    """Replace the CE (or BCE) of nnU-Net's Dice + CE loss by a term; the Dice term does not change.

    The term gets the scale of the cross-entropy: nnU-Net's BCE sums over the heads with an ignore label, and averages
    over them without one.

    Args:
        base: loss from an nnU-Net trainer's `_build_loss()`, with or without deep supervision.
        term: loss of (logits, target), a mean over the voxels that count (and over the heads, for regions); None keeps
            only the Dice.
        num_heads: number of segmentation heads.

    Returns:
        The loss to train with. `base` is changed.

    Raises:
        TypeError: if `base` has no such cross-entropy.
    """

    def replaced(base: Any) -> nn.Module:
        _expect(base, DC_and_CE_loss | DC_and_BCE_loss, "cross-entropy")
        weight, base.weight_ce, base.ce = base.weight_ce, 0, NoTerm()
        if isinstance(base, DC_and_BCE_loss) and base.use_ignore_label:
            weight *= num_heads
        return base if term is None else LossWithTerm(base, term, weight)

    return _changed_inside(base, replaced)


def replace_dice(base: Callable[..., Tensor], make_term: Callable[..., nn.Module]) -> nn.Module:
    """Put a term in the place of the Dice of nnU-Net's Dice + CE loss; the other term stays as it is.

    Args:
        base: what an nnU-Net trainer's `_build_loss()` returned, with or without deep supervision.
        make_term: called with the settings of nnU-Net's Dice: `smooth`, whether the `background` counts, and `pool`,
            which is "batch" for a batch Dice and else "image"; returns a loss of (logits, target).

    Returns:
        The loss to train with. `base` is changed.

    Raises:
        TypeError: if there is no such Dice in `base`.
    """

    def replaced(base: Any) -> nn.Module:
        _expect(base, DC_and_CE_loss | DC_and_BCE_loss | DC_and_topk_loss, "Dice")
        dice = _dice_of(base)
        pool = "batch" if dice.batch_dice else "image"
        term = make_term(smooth=dice.smooth, background=dice.do_bg, pool=pool)
        weight, base.weight_dice, base.dc = base.weight_dice, 0, NoDice()
        return LossWithTerm(base, term, weight)

    return _changed_inside(base, replaced)


def _changed_inside(base: Any, change: Callable[[Any], nn.Module]) -> nn.Module:
    """Apply `change` to the loss below deep supervision and added terms, and return the whole."""
    if isinstance(base, DeepSupervisionWrapper):
        base.loss = _changed_inside(base.loss, change)
        wrapper: nn.Module = base
        return wrapper
    if isinstance(base, LossWithTerm):
        base.base = _changed_inside(base.base, change)
        return base
    return change(base)


def _expect(base: Any, kinds: Any, part: str) -> None:
    """Raise TypeError unless a loss is one of nnU-Net's with the part to be replaced."""
    if not isinstance(base, kinds):
        raise TypeError(
            f"expected nnU-Net's Dice + cross-entropy loss, whose {part} is to be replaced, got {_name(base)}: use a "
            f"trainer that keeps nnU-Net's own loss, or another calibration loss"
        )

"""The Module form of a loss function, which keeps its options, shows them and passes them on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from nnunet_calib.losses.joined import JoinedLoss


def check_options(**options: tuple[object, tuple[object, ...]]) -> None:
    """Raise ValueError unless each option, given as (value, allowed values), has one of its allowed values."""
    for name, (value, allowed) in options.items():
        if value not in allowed:
            raise ValueError(f"expected {name} to be one of {', '.join(map(repr, allowed))}, got {value!r}")


class FunctionalLoss(nn.Module):
    """A loss function with its options bound; `loss(logits, target)` calls it.

    A subclass checks the options in its constructor, so that the function need not do so in every step.
    """

    def __init__(self, function: Callable[..., Tensor], **options: Any) -> None:
        super().__init__()
        self.function = function
        self.options = options

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the unweighted loss, a scalar."""
        return self.function(logits, target, **self.options)

    def join(self, joined: JoinedLoss, weight: float) -> bool:
        """Add weight * this loss to a joined loss and return True, or return False if it cannot share the work."""
        return False

    def fits(self, joined: JoinedLoss) -> bool:
        """Return whether the joined loss has the same kind of labels; of regions, a channel marks ignored voxels."""
        regions, ignore_label, base = self.options["regions"], self.options["ignore_label"], joined.base
        if regions and base.regions:
            return (ignore_label is None) == (base.ignore_label is None)
        return (regions, ignore_label) == (base.regions, base.ignore_label)

    def extra_repr(self) -> str:
        """Return the options, which nnU-Net's debug.json then records."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())

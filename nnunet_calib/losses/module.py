"""The Module form of a loss function: options kept, shown and handed on."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


def check_options(**options: tuple[object, tuple[object, ...]]) -> None:
    """Raise ValueError unless each option, given as (value, allowed values), has one of its allowed values."""
    for name, (value, allowed) in options.items():
        if value not in allowed:
            raise ValueError(f"expected {name} to be one of {', '.join(map(repr, allowed))}, got {value!r}")


class FunctionalLoss(nn.Module):
    """A loss function with its options bound; `loss(logits, target)` calls it."""

    def __init__(self, function: Callable[..., Tensor], **options: object) -> None:
        super().__init__()
        self.function = function
        self.options = options

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """The unweighted loss, a scalar."""
        return self.function(logits, target, **self.options)

    def extra_repr(self) -> str:
        """The options, which nnU-Net's debug.json then records."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())

"""Autocast switched off for a function's forward and backward passes on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def without_autocast(function: Callable[P, R]) -> Callable[P, R]:
    """Return the function such that it computes in the types of its arguments, also where it is called under autocast.

    `torch.amp.custom_fwd` does this too, but has no types, and PyTorch before 2.4 has none for a CPU.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.autocast("cpu", enabled=False):
            return function(*args, **kwargs)

    return call

"""PyTorch's `custom_fwd` and `custom_bwd`, with what they do on a CPU for PyTorch before 2.4, which has none for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import torch

try:
    from torch.amp import custom_bwd, custom_fwd
except ImportError:

    def custom_fwd(  # type: ignore[misc]
        forward: Callable[..., Any] | None = None, *, device_type: str, cast_inputs: torch.dtype | None = None
    ) -> Any:
        """Under autocast, call `forward` without it, with floating-point tensors cast to `cast_inputs`, if given."""
        if forward is None:
            return partial(custom_fwd, device_type=device_type, cast_inputs=cast_inputs)

        @wraps(forward)
        def cast(ctx: Any, *args: Any) -> Any:
            if cast_inputs is None or not torch.is_autocast_cpu_enabled():
                return forward(ctx, *args)
            with torch.autocast(device_type, enabled=False):
                return forward(ctx, *(a.to(cast_inputs) if _is_floating_point(a) else a for a in args))

        return cast

    def custom_bwd(backward: Callable[..., Any] | None = None, *, device_type: str) -> Any:  # type: ignore[misc]
        """Nothing: PyTorch runs backward passes outside of autocast."""
        return partial(custom_bwd, device_type=device_type) if backward is None else backward

    def _is_floating_point(value: Any) -> bool:
        return isinstance(value, torch.Tensor) and value.is_floating_point()


__all__ = ["custom_bwd", "custom_fwd"]

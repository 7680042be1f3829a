"""The cost of a loss on a GPU, counted without one on fake tensors that say that they lie on it, under autocast.

The autograd engine wants a driver for nodes on a GPU, so `backward` walks the graph in its place, and forgets each node
as soon as it ran, as the engine does; `test_cost.py` holds its peaks to the engine's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.losses.counting import Count


def _users(root: Any) -> Counter[Any]:
    """Return how many gradients each node of a graph waits for."""
    waiting, stack, seen = Counter[Any](), [root], {root}
    while stack:
        for node, _ in stack.pop().next_functions:
            if node is not None:
                waiting[node] += 1
                if node not in seen:
                    seen.add(node)
                    stack.append(node)
    return waiting


def _call(node: Any, gradients: dict[int, Tensor]) -> tuple[Tensor | None, ...]:
    """Run a node with what has arrived."""
    given: list[Tensor | None] = [gradients.get(i) for i in range(len(node._input_metadata))]
    if isinstance(node, torch.autograd.function.BackwardCFunction):
        if getattr(node, "materialize_grads", True):
            given = [
                torch.zeros(tuple(m.shape), dtype=m.dtype, device=m.device) if g is None else g
                for g, m in zip(given, node._input_metadata, strict=True)
            ]
        result = node.apply(*given)
    else:
        result = node(*given)
    return result if isinstance(result, tuple) else (result,)


def backward(loss: list[Tensor]) -> None:
    """Differentiate the loss in a list, which is emptied, as the autograd engine does, the newest node first."""
    value = loss.pop()
    root = value.grad_fn
    waiting = _users(root)
    arrived: dict[Any, dict[int, Tensor]] = {root: {0: torch.ones_like(value)}}
    ready = [root]
    del value, root
    with torch.no_grad():
        while ready:
            ready.sort(key=lambda node: node._sequence_nr())
            node = ready.pop()
            waiting.pop(node, None)
            gradients = arrived.pop(node, {})
            if hasattr(node, "variable"):
                leaf, gradient = node.variable, gradients[0]
                leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient
                del node, gradients, gradient
                continue
            results = list(_call(node, gradients))
            edges = node.next_functions
            del node, gradients
            for (following, slot), gradient in zip(edges, results, strict=False):
                if following is None:
                    continue
                waiting[following] -= 1
                slots = arrived.setdefault(following, {})
                if gradient is not None:
                    gradient = gradient.to(following._input_metadata[slot].dtype)
                    # a gradient that nobody else holds is added to in place
                    slots[slot] = slots[slot].add_(gradient) if slot in slots else gradient
                if not waiting[following]:
                    ready.append(following)
            results.clear()
            gradient = None


@contextmanager
def _half_precision() -> Iterator[None]:
    """Autocast as a training has it; the context manager itself would look for the device."""
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.float16)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)


def cost_of(
    loss: Callable[[Tensor, Tensor], Tensor],
    shape: tuple[int, ...],
    *,
    regions: bool = False,
    ignore: bool = False,
    dtype: torch.dtype = torch.float16,
) -> Count:
    """Return the cost of both passes of a loss of fake logits (B, C, *spatial) and nnU-Net's target."""
    images, heads, *spatial = shape
    with FakeTensorMode():
        channels, kind = (heads + ignore, torch.bool) if regions else (1, torch.int16)
        logits = torch.empty(images, heads, *spatial, device="cuda", dtype=dtype, requires_grad=True)
        target = torch.empty(images, channels, *spatial, device="cuda", dtype=kind)
        counted = Count(logits, target)
        with counted:
            with _half_precision():
                value = [loss(logits, target)]
            backward(value)
        assert logits.grad is not None
        assert logits.grad.dtype == dtype
    return counted

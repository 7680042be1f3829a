"""What a loss costs on an accelerator, counted without one: memory, kernel launches and what would wait for the device.

Fake tensors have a shape and a type but no data, so that a volume of any size costs nothing. A loss and PyTorch's own
backward pass run on them; a dispatch mode sees every operator, its results and when their memory is freed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operators that wait for the device, because the shape or the value of their result is needed on the host.
WAITING = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "equal",
    "is_nonzero",
    "bincount",
    "repeat_interleave",
}
# Operators that start no kernel: views, and memory that nobody fills.
FREE = {
    "detach",
    "view",
    "_unsafe_view",
    "alias",
    "expand",
    "slice",
    "select",
    "unsqueeze",
    "squeeze",
    "permute",
    "transpose",
    "t",
    "as_strided",
    "unbind",
    "split",
    "split_with_sizes",
    "view_as",
    "lift_fresh",
    "empty",
    "empty_like",
    "new_empty",
    "empty_strided",
    "new_empty_strided",
    "_reshape_alias",
    "diagonal",
    "unfold",
    "is_same_size",
    "narrow",
    "_assert_scalar",
}


# Operators that add to places that may coincide; of floats the result depends on who comes first.
ADDING = {"scatter_add", "scatter_add_", "index_add", "index_add_", "index_put_", "_index_put_impl_", "scatter_reduce"}


class Count(TorchDispatchMode):
    """Bytes that live at once beside the inputs, launches, operators that wait, and floats added by index."""

    def __init__(self, *inputs: Tensor) -> None:
        super().__init__()
        self.inputs = {x.untyped_storage()._cdata for x in inputs}
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = self.launches = self.float_additions = 0
        self.waiting: list[str] = []
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        masks = tree_leaves(args[1]) if name in ("index", "index_put", "index_put_") else []
        if name in WAITING or any(isinstance(x, Tensor) and x.dtype == torch.bool for x in masks):
            self.waiting.append(name)
        result = func(*args, **(kwargs or {}))
        results = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        if name in ADDING and args[0].is_floating_point():
            self.float_additions += args[-1].numel()
        if name == "_to_copy" and args[0].device != result.device:
            self.waiting.append(f"{name} from {args[0].device} to {result.device}")
        free = func.namespace == "prim" or name in FREE or name.rstrip("_") in FREE
        if not free and (not results or any(x.numel() for x in results)):
            self.launches += 1
        for x in results:
            self.types.add(x.dtype)
        self.see(*results)
        return result

    def see(self, *tensors: Tensor) -> None:
        """Take note of memory that has been freed, and of new tensors."""
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
        for x in tensors:
            storage = x.untyped_storage()
            if storage._cdata not in self.inputs and storage._cdata not in self.alive:
                self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, sum(size for _, size in self.alive.values()))

    def launch(self, kernel: Any, grid: Any, *arguments: Any, **constants: Any) -> None:
        """Stand in for the start of a kernel of this package."""
        self.launches += 1
        self.see()


def fake_batch(heads: int, size: int, *, regions: bool = False, ignore: bool = False) -> tuple[Tensor, Tensor]:
    """Return half-precision logits of two volumes and their target; to be called within `FakeTensorMode`."""
    logits = torch.empty((2, heads, size, size, size), dtype=torch.float16, requires_grad=True)
    channels, dtype = (heads + ignore, torch.bool) if regions else (1, torch.int16)
    return logits, torch.empty((2, channels, size, size, size), dtype=dtype)


def count(
    loss: Callable[[Any, Any], Tensor],
    heads: int,
    *,
    size: int = 128,
    outputs: int = 1,
    before: Callable[[Count], None] = lambda _: None,
    **options: bool,
) -> tuple[Count, float]:
    """Count a loss and its gradient.

    Args:
        loss: of logits and target, or of lists of them for several outputs, each half as long as the one before.
        heads: classes or regions.
        size: edge length of the volumes.
        outputs: how many.
        before: what is done with the count before the loss runs.
        options: of `fake_batch`.

    Returns:
        The count, and its peak in units of the bytes of the first logits in float32.
    """
    with FakeTensorMode():
        pairs = [fake_batch(heads, max(size >> k, 1), **options) for k in range(outputs)]
        logits, targets = (list(column) for column in zip(*pairs, strict=True))
        counted = Count(*logits, *targets)
        before(counted)
        with counted:
            (loss(logits, targets) if outputs > 1 else loss(logits[0], targets[0])).backward()
        counted.see()
        return counted, counted.peak / (4 * logits[0].numel())

"""Search for the terms that a loss consists of, however it is built.

A term may lie in modules, in attributes, lists and dictionaries, behind `functools.partial` and torch.compile, in the
variables that a function or method has captured, or in the trainer whose method is the loss. The search calls nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn

# large attributes of a trainer that hold no loss
_NO_LOSS = ("network", "optimizer", "lr_scheduler", "logger", "dataloader_train", "dataloader_val")


def parts(loss: Any) -> Iterator[Any]:
    """Yield a loss and all objects it holds, each once."""
    seen: dict[int, Any] = {}
    pending = [loss]
    while pending:
        part = pending.pop()
        if id(part) not in seen:
            seen[id(part)] = part
            yield part
            pending.extend(_held_by(part))


def _held_by(part: Any) -> Iterable[Any]:
    """Return the objects that an object holds directly."""
    kind = type(part)  # isinstance would ask a proxy for its __class__
    if issubclass(kind, dict):
        return [*part.values()]
    if issubclass(kind, list | tuple | set | frozenset):
        return [*part]
    if issubclass(kind, CellType):
        return () if part == CellType() else (part.cell_contents,)
    if issubclass(kind, MethodType):
        return part.__func__, part.__self__
    if issubclass(kind, partial):
        return part.func, part.args, part.keywords, vars(part)
    if issubclass(kind, FunctionType):
        return part.__closure__, part.__defaults__, part.__kwdefaults__, vars(part)
    if issubclass(kind, Tensor | type):
        return ()
    attributes = object.__getattribute__(part, "__dict__") if kind.__dictoffset__ else {}
    if issubclass(kind, nnUNetTrainer):
        return [value for name, value in attributes.items() if name not in _NO_LOSS]
    return *attributes.values(), *_of_class(part)


def _of_class(part: Any) -> Iterator[Any]:
    """Yield the content of an object's slots, and the variables that its class's methods have captured."""
    for cls in type(part).__mro__:
        for value in vars(cls).values():
            if isinstance(value, FunctionType):
                yield value.__closure__
            elif isinstance(value, nn.Module):
                yield value
        slots = vars(cls).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            with suppress(AttributeError):  # raised for an empty slot
                yield object.__getattribute__(part, name)


def missing_terms(loss: Any, promised: Sequence[type[nn.Module]]) -> list[type[nn.Module]]:
    """Return the promised classes of which a loss holds no instance."""
    found = {type(part) for part in parts(loss)}
    return [term for term in promised if not any(issubclass(cls, term) for cls in found)]

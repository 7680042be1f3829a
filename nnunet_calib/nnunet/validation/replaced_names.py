"""Replacement of names in nnU-Net's modules while one of its validations runs.

nnU-Net's validation checks its export workers while it predicts, and finally waits for the last results: forever (2.8)
if the system has meanwhile killed a worker for its memory. `Watched` stands in for `multiprocessing` and raises then.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

EXPORT_NAME = "export_prediction_from_logits"
_METHOD = "perform_actual_validation"
_SECONDS = 0.5  # between two looks at the workers
_Method = TypeVar("_Method", bound=Callable[..., Any])


def only_measures(method: _Method) -> _Method:
    """Mark a `perform_actual_validation` that calls the next class's method and exports nothing itself."""
    method.only_measures = True  # type: ignore[attr-defined]
    return method


def validates_as_nnunet(trainer: Any) -> bool:
    """Return whether only nnU-Net's own validation exports the cases of a trainer."""
    return all(
        cls is nnUNetTrainer or getattr(vars(cls)[_METHOD], "only_measures", False)
        for cls in _validating_classes(trainer)
    )


@contextmanager
def replaced(trainer: Any, **names: Any) -> Iterator[None]:
    """Replace the objects behind names that the validation of a trainer uses, while the context lasts.

    They are replaced in the module of every class that defines a validation: nnU-Net looks them up there in each call.
    """
    own = {name: nnUNetTrainer.perform_actual_validation.__globals__[name] for name in names}
    functions = [inspect.unwrap(vars(cls)[_METHOD]) for cls in _validating_classes(trainer)]
    spaces = [getattr(function, "__globals__", {}) for function in functions]
    found = [(space, name) for space in spaces for name in names if space.get(name) is own[name]]
    for space, name in found:
        space[name] = names[name]
    try:
        yield
    finally:
        for space, name in found:
            space[name] = own[name]


def watched_workers() -> dict[str, Watched]:
    """Return the replacement with which a validation raises when one of its workers has died."""
    name = "multiprocessing"
    own = nnUNetTrainer.perform_actual_validation.__globals__.get(name)
    return {} if own is None else {name: Watched(own)}


def _validating_classes(trainer: Any) -> list[type]:
    """Return the classes of a trainer that define a validation."""
    return [cls for cls in type(trainer).__mro__ if _METHOD in vars(cls)]


class Watched:
    """Stand-in for `multiprocessing` or a context of it; results of its pools raise RuntimeError for a dead worker.

    Only `starmap_async` is watched, which nnU-Net's validation uses.
    """

    def __init__(self, own: Any) -> None:
        self._own = own

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def get_context(self, method: str | None = None) -> Watched:
        """Return multiprocessing's context, watched."""
        return Watched(self._own.get_context(method))

    def Pool(self, *args: Any, **options: Any) -> Any:
        """Return multiprocessing's pool, watched."""
        pool = self._own.Pool(*args, **options)
        workers, submit = [*pool._pool], pool.starmap_async
        pool.starmap_async = lambda *a, **o: _raising(submit(*a, **o), workers)
        return pool


def _raising(result: Any, workers: list[Any]) -> Any:
    """Let a result's `get` raise once one of the pool's first workers has died, which the pool would replace."""
    own = result.get

    def get(timeout: float | None = None) -> Any:
        while timeout is None and not result.ready():
            result.wait(_SECONDS)
            if not result.ready() and not all(worker.is_alive() for worker in workers):
                raise RuntimeError("Some background workers are no longer alive")  # nnU-Net's own words
        return own(timeout)

    result.get = get
    return result

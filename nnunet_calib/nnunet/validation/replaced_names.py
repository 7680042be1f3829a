"""multiprocessing, but no result is waited for that a dead worker should have brought.

nnU-Net's validation looks after its export workers while it predicts, and in the end waits for the last results: for
ever (2.8), if the system has killed a worker for its memory in the meantime.
"""

from __future__ import annotations

from typing import Any

_SECONDS = 0.5


class Watched:
    """Stands for `multiprocessing` or one of its contexts: results of its pools raise RuntimeError for a dead worker.

    Only `starmap_async`, which nnU-Net's validation uses, is watched.
    """

    def __init__(self, own: Any) -> None:
        self._own = own

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def get_context(self, method: str | None = None) -> Watched:
        """multiprocessing's, watched."""
        return Watched(self._own.get_context(method))

    def Pool(self, *args: Any, **options: Any) -> Any:
        """multiprocessing's, watched."""
        pool = self._own.Pool(*args, **options)
        workers, submit = [*pool._pool], pool.starmap_async
        pool.starmap_async = lambda *a, **o: _raising(submit(*a, **o), workers)
        return pool


def _raising(result: Any, workers: list[Any]) -> Any:
    """The same result, whose `get` raises once one of the pool's first workers is gone: others take their place."""
    own = result.get

    def get(timeout: float | None = None) -> Any:
        while timeout is None and not result.ready():
            result.wait(_SECONDS)
            if not result.ready() and not all(worker.is_alive() for worker in workers):
                raise RuntimeError("Some background workers are no longer alive")  # nnU-Net's own words
        return own(timeout)

    result.get = get
    return result

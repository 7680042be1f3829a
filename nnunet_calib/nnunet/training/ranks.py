"""The one process of a distributed training that writes the files of all."""

from __future__ import annotations

from typing import Any


def is_first_process(trainer: Any) -> bool:
    """Return whether this process is the first of a training, on whichever node.

    nnU-Net's `local_rank` counts the processes of all nodes. A trainer for several nodes has a `global_rank` for that,
    and its `local_rank` is 0 once on every node.
    """
    rank: int = getattr(trainer, "global_rank", trainer.local_rank)
    return rank == 0

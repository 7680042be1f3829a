"""What nnU-Net's export workers are given in place of nnU-Net's functions: they do the same, and die after a case."""

import inspect
import os
import signal
from collections.abc import Callable
from typing import Any

from nnunetv2.inference.export_prediction import export_prediction_from_logits

from nnunet_calib.nnunet.validation import predict_cases as predicting

LAST = "case.4"
convert_only = predicting.convert_only


def _die_after(export: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    export(*arguments)
    # as the system kills a process that has taken too much memory: ours runs in it after the export
    if os.path.basename(arguments[5]) == LAST:
        os.kill(os.getpid(), signal.SIGKILL)


def export_and_die(*arguments: Any) -> None:
    """nnU-Net's export."""
    _die_after(export_prediction_from_logits, arguments)


def convert_and_die(*arguments: Any) -> None:
    """What `nnunet_calib validate` does instead."""
    _die_after(convert_only, arguments)


for _function, _own in ((export_and_die, export_prediction_from_logits), (convert_and_die, convert_only)):
    _function.__signature__ = inspect.signature(_own)  # type: ignore[attr-defined]


def die(*arguments: Any) -> None:
    """At once."""
    os.kill(os.getpid(), signal.SIGKILL)

"""Where and how large the measurements are, and how a step is timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import Any

import torch

from nnunet_calib.losses import backends, ml1_ace_loss, use


@dataclass(frozen=True)
class Setting:
    """A device and sizes.

    Attributes:
        device: what is measured on.
        classes: numbers of classes, or regions, of the losses.
        size: edge length of their volumes.
        patch: edge length of the training's.
        rounds: steps that are timed, after two that are not.
        scaler_steps: steps with a gradient scaler.
    """

    device: torch.device
    classes: tuple[int, ...]
    size: int
    patch: int
    rounds: int
    scaler_steps: int

    @classmethod
    def tiny(cls) -> Setting:
        """Return what runs on a CPU in a minute."""
        return cls(torch.device("cpu"), (3,), 8, 16, 1, 3)

    @classmethod
    def of_gpu(cls, size: int, classes: tuple[int, ...]) -> Setting:
        """Return what a GPU can do in ten minutes."""
        return cls(torch.device("cuda"), classes, size, 128, 10, 200)

    @property
    def on_gpu(self) -> bool:
        """Whether times and memory mean something."""
        return self.device.type == "cuda"

    @property
    def device_name(self) -> str:
        """The GPU's name."""
        return torch.cuda.get_device_name() if self.on_gpu else "CPU"

    @property
    def backends(self) -> list[str]:
        """The formulas, and the backends that run here."""
        return backends_on(self.device)

    def autocast(self) -> Any:
        """Return nnU-Net's autocast."""
        return torch.autocast("cuda", enabled=True) if self.on_gpu else nullcontext()

    def time(self, step: Callable[[], Any]) -> tuple[float, float]:
        """Return the median milliseconds of a step, and the largest memory that it takes beyond what is there."""
        for _ in range(2):
            step()
        if not self.on_gpu:
            return 0.0, 0.0
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before, times = torch.cuda.memory_allocated(), []
        for _ in range(self.rounds):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            step()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end))
        return median(times), float(torch.cuda.max_memory_allocated() - before)


@cache
def backends_on(device: torch.device) -> list[str]:
    """Return "reference" and the backends that compute labels on a device; print why others cannot."""
    found = ["reference"]
    logits = torch.zeros((1, 2, 4, 4), device=device)
    for name in backends.NAMES:
        try:
            with use(name):
                ml1_ace_loss(logits, logits[:, :1].short())
        except ValueError as error:
            print(f"not measured: {error}")
        else:
            found.append(name)
    return found


@contextmanager
def waiting_is_an_error(setting: Setting) -> Iterator[None]:
    """Raise RuntimeError wherever the host waits for the device."""
    if setting.on_gpu:
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if setting.on_gpu:
            torch.cuda.set_sync_debug_mode("default")

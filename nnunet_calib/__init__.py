"""Calibrated probabilities for nnU-Net: losses, measuring and temperature scaling."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnunet_calib.measuring.case_statistics import CaseStatistics
    from nnunet_calib.metrics.errors import calibration_errors
    from nnunet_calib.posthoc.temperature import TemperatureFit, apply_temperature, fit_temperature

__version__ = "0.2.0"

__all__ = ["CaseStatistics", "TemperatureFit", "apply_temperature", "calibration_errors", "fit_temperature"]

_HOMES = {
    "CaseStatistics": "measuring.case_statistics",
    "TemperatureFit": "posthoc.temperature",
    "apply_temperature": "posthoc.temperature",
    "calibration_errors": "metrics.errors",
    "fit_temperature": "posthoc.temperature",
}


def __getattr__(name: str) -> Any:
    # Importing PyTorch takes seconds, and users call `nnunet_calib trainers --path` in their shell profiles.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

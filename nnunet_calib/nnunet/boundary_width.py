"""Width of the boundary scope: the same for all cases that are measured together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nnunet_calib.measuring.scopes import check_boundary_mm, default_boundary_mm

_SPACING = "original_median_spacing_after_transp"  # the same in all configurations of the plans


def spacing_of_plans(plans: Mapping[str, Any]) -> Sequence[float] | None:
    """Return the median voxel size of the training images from nnU-Net's plans, or None if they lack it."""
    spacing = plans.get(_SPACING)
    known = isinstance(spacing, list) and all(isinstance(mm, int | float) for mm in spacing)
    return spacing if known else None


def width_of_trainer(trainer: Any) -> float:
    """Return a trainer's own `boundary_mm`, or the default for its plans."""
    width = getattr(trainer, "boundary_mm", None)
    if width is not None:
        return check_boundary_mm(width)
    return default_boundary_mm(spacing_of_plans(trainer.plans_manager.plans))

"""Schedule of the weight of a loss term over the epochs."""

from __future__ import annotations

from typing import Literal

Schedule = Literal["constant", "add", "multiply", "step"]


def scheduled_weight(
    weight: float, epoch: int, *, schedule: Schedule, rate: float, every: int, maximum: float
) -> float:
    r"""Return the weight in an epoch (from 0), which depends on nothing else, so that continued trainings agree.

    .. math::
        \text{constant: } \lambda, \quad \text{add: } \lambda + r e, \quad \text{multiply: } \lambda r^e, \quad
        \text{step: } \lambda r^{\lfloor e / n \rfloor}

    each but the first capped at the maximum, which also replaces an overflow.

    Args:
        weight: lambda, the weight in epoch 0.
        epoch: e.
        schedule: name of the schedule.
        rate: r.
        every: n, for "step".
        maximum: the cap.

    Raises:
        ValueError: for an unknown schedule, or for "step" with n < 1.
    """
    if schedule == "constant":
        return weight
    try:
        if schedule == "add":
            return min(weight + rate * epoch, maximum)
        if schedule == "multiply":
            return min(weight * float(rate) ** epoch, maximum)
        if schedule == "step" and every >= 1:
            return min(weight * float(rate) ** (epoch // every), maximum)
    except OverflowError:  # possible late in a long training
        return maximum if weight > 0 else weight
    raise ValueError(
        f"expected the schedule to be constant, add, multiply or step (with at least one epoch a step), got "
        f"{schedule!r} with {every}"
    )


def warmed_up(weight: float, epoch: int, *, warmup_epochs: int, num_epochs: int) -> float:
    r"""Return the weight in an epoch (from 0) of a term with a linear warm-up.

    .. math:: \lambda \min(1, e / w), \quad w = \min(n_\text{warm-up}, \lfloor n_\text{all} / 2 \rfloor)

    So a training shorter than its warm-up still runs half of its epochs with the full weight.

    Args:
        weight: lambda, the scheduled weight.
        epoch: e.
        warmup_epochs: number of epochs until the full weight; 0 means no warm-up.
        num_epochs: number of epochs of the training.
    """
    epochs = min(warmup_epochs, num_epochs // 2)
    return weight * min(1.0, epoch / epochs) if epochs > 0 else weight

"""Backends: the same numbers computed in other ways, and the one place where a way is chosen.

The formulas in `nacl`, `svls` and `ml1_ace` are the reference: any device, any option, whole C-channel maps. A backend
is a module that has, under the names of `Backend`, faster or smaller ways to compute what these losses and nnU-Net's
own have in common. Three operations are enough:

- `voxel_sums`: all that Dice, cross-entropy and mL1-ACE need of the voxels, a few sums over each image;
- `nacl`: the NACL loss;
- `label_smoothing`: what SVLS adds to the cross-entropy, which is linear in the logits.

An operation returns None where an option is beyond it; then the next backend is asked, and at last the formulas. The
last two hand the logits on: what is computed from the logits that they return brings a gradient of full size, to which
theirs is added in place, so that a loss with many terms needs one gradient only.

What holds for every backend: logits of any float type, computed in at least float32 (float64 stays float64), the
gradient in the logits' type; voxels to be ignored neither count nor get a gradient, even where their logits are NaN; a
NaN that counts makes the loss NaN; no input is written to; a retained graph gives the same gradient again, and a second
derivative is refused (`once_differentiable`); autocast changes nothing; shapes have been checked by the caller. On an
accelerator nothing waits for the device, and results are the same from run to run.
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any, Literal, NamedTuple, Protocol, overload

from torch import Tensor

from nnunet_calib.losses.bin_errors import ErrorOfBins, error_of_sums
from nnunet_calib.losses.neighbourhood import KernelSize

Binning = Literal["hard", "soft"]

VARIABLE = "NNUNET_CALIB_LOSSES"


class VoxelSums(NamedTuple):
    """Sums over the voxels that count, in float64 (float32 on a device without it), for B images, C heads and M bins.

    p is the softmax or, for regions, the sigmoid of each head; y = c means that the voxel's label is c, or that it lies
    in region c. Gradients flow through `nll`, `total`, `of_true` and `probability`, with soft bins also through
    `weight` and `positive`.
    """

    nll: Tensor  # (), of -log p_y; for regions of the binary cross-entropy, over the heads too
    total: Tensor  # (B, C), of p_c
    of_true: Tensor  # (B, C), of p_c where y = c
    number: Tensor  # (B, C), voxels with y = c
    voxels: Tensor  # (), voxels that count, of all images together
    weight: Tensor  # (B, C, M), voxels whose p_c is in a bin, or with soft bins their shares; (B, C, 0) for M = 0
    probability: Tensor  # (B, C, M), of p_c, or p_c times the share
    positive: Tensor  # (B, C, M), those with y = c
    error_of_bins: ErrorOfBins = error_of_sums  # how the error of the bins is computed from the last three


class Backend(Protocol):
    """What a backend's module holds. Targets are nnU-Net's, see `targets.encode_target`; tensors share a device.

    `bin_index` of the exact product p M says which bin is meant (in float64, or from the remainder of the product).
    """

    def why_missing(self) -> str | None:
        """Return why this machine cannot run the backend, as the end of "...: <reason>", or None if it can."""

    def why_not(self, logits: Tensor, *, regions: bool) -> str | None:
        """Return why the backend cannot take these logits (B, C, *spatial), or None if it can; called every step."""

    def voxel_sums(
        self,
        logits: Tensor,
        target: Tensor,
        *,
        num_bins: int,
        binning: Binning,
        regions: bool,
        ignore_label: int | None,
    ) -> VoxelSums | None:
        """Return the sums over voxels, or None for options beyond this backend. M = 0 leaves out the bins."""

    def nacl(  # noqa: PLR0913
        self,
        logits: Tensor,
        target: Tensor,
        *,
        kernel_size: KernelSize,
        prior: str,
        penalty: str,
        on: str,
        sigma: float,
        regions: bool,
        ignore_label: int | None,
    ) -> tuple[Tensor, Tensor] | None:
        """Return the logits to compute other losses from, and `nacl_loss`; or None for options beyond this backend."""

    def label_smoothing(
        self,
        logits: Tensor,
        target: Tensor,
        *,
        kernel_size: KernelSize,
        sigma: float,
        regions: bool,
        ignore_label: int | None,
    ) -> tuple[Tensor, Tensor] | None:
        r"""Return the logits to compute the cross-entropy from, and what SVLS adds to it; or None.

        .. math:: \frac{1}{N} \sum_i \sum_c (y_{i,c} - \tilde y_{i,c}) z_{i,c}

        over the N voxels that count (for regions divided by the number of heads too); 0 where none does.
        """


def _load(name: str) -> Backend:
    """Import a backend, when it is first wanted."""
    if name == "cpu":
        from nnunet_calib.losses import cpu

        return cpu
    if name == "triton":
        from nnunet_calib.losses import gpu

        return gpu
    from nnunet_calib.losses import chunked

    return chunked


NAMES = ("cpu", "chunked", "triton")  # the backends that there are
# Those that are tried on a device, in this order, unless one is chosen.
AUTOMATIC: dict[str, tuple[str, ...]] = {"cpu": ("cpu", "chunked"), "cuda": ("triton", "chunked")}
ELSEWHERE = ("chunked",)

_chosen: str | None = None


class use:
    """Choose how the losses are computed, until another choice or, as a context manager, to the end of the block.

    "auto" (the default) takes what suits the device, "reference" the formulas as they are written; "cpu", "chunked" and
    "triton" are backends. What a backend does not know an option of is computed by the formulas. The environment
    variable NNUNET_CALIB_LOSSES has the same choices, for a training by nnU-Net's own command.

    Raises:
        ValueError: for a choice that there is not, or that this machine cannot run.
    """

    def __init__(self, choice: str) -> None:
        global _chosen
        _check(choice, "nnunet_calib.losses.use")
        self._previous, _chosen = _chosen, choice

    def __enter__(self) -> None:
        """The choice was made when this was called."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        global _chosen
        _chosen = self._previous


def _check(choice: str, source: str) -> None:
    """Raise ValueError for a choice that there is not, or that cannot be run here."""
    choices = ("auto", "reference", *NAMES)
    if choice not in choices:
        raise ValueError(f"expected {source} to be one of {', '.join(choices)}, got {choice!r}")
    if choice in NAMES and (reason := _load(choice).why_missing()) is not None:
        raise ValueError(f"expected losses that can be computed here, got {choice!r} from {source}: {reason}")


def choice() -> str:
    """Return the choice that is in force; ValueError where the environment variable has none that can be run."""
    if _chosen is not None:
        return _chosen
    named = os.environ.get(VARIABLE) or "auto"
    if named != "auto":
        _check(named, f"the environment variable {VARIABLE}")
    return named


@overload
def compute(
    operation: Literal["voxel_sums"], logits: Tensor, target: Tensor, *, regions: bool, **options: Any
) -> VoxelSums | None: ...
@overload
def compute(
    operation: Literal["nacl", "label_smoothing"], logits: Tensor, target: Tensor, *, regions: bool, **options: Any
) -> tuple[Tensor, Tensor] | None: ...
def compute(
    operation: str, logits: Tensor, target: Tensor, *, regions: bool, **options: Any
) -> VoxelSums | tuple[Tensor, Tensor] | None:
    """Return what the chosen backend, or the first that suits the logits, computes; None leaves it to the formulas.

    Args:
        operation: of `Backend`.
        logits: (B, C, *spatial).
        target: of a shape that goes with them.
        regions: whether heads are regions.
        options: the operation's others.

    Raises:
        ValueError: if a backend was chosen that cannot take these logits.
    """
    chosen = choice()
    if chosen == "reference":
        return None
    names = AUTOMATIC.get(logits.device.type, ELSEWHERE) if chosen == "auto" else (chosen,)
    for name in names:
        backend = _load(name)
        reason = backend.why_not(logits, regions=regions)
        if reason is None:
            result: VoxelSums | tuple[Tensor, Tensor] | None
            result = getattr(backend, operation)(logits, target, regions=regions, **options)
            if result is not None:
                return result
        elif chosen != "auto":
            raise ValueError(f"expected logits that the losses' backend {chosen!r} can take: {reason}")
    return None

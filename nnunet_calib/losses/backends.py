"""Backends: the same numbers computed in other ways, and the one place where a way is chosen.

The formulas in `nacl`, `svls`, `ml1_ace` and `pointwise` are the reference: any device, any option, whole C-channel
maps. A backend is a module that has, under the names of `Backend`, faster or smaller ways to compute what these losses
and nnU-Net's own have in common. It has four operations:

- `voxel_sums`: the few sums over each image that Dice, cross-entropy and mL1-ACE are computed from;
- `nacl`: the NACL loss;
- `label_smoothing`: the term that SVLS adds to the cross-entropy, which is linear in the logits;
- `pointwise`: the sums of a `Formula`, whose terms depend on one voxel each.

An operation returns None for options that it does not support; then the next backend is tried, and finally the
formulas. All but `voxel_sums` also return the logits. Other losses are computed from these: their gradient
passes through the operation, which adds its own in place. So a loss with many terms needs only one gradient of full
size.

Every backend takes logits of any float type, computes in at least float32 (float64 stays float64) and returns the
gradient in the logits' type. Ignored voxels neither count nor get a gradient, even where their logits are NaN; a NaN
that counts makes the loss NaN. No input is written to. A retained graph gives the same gradient again, and a second
derivative is refused (`once_differentiable`). Autocast changes nothing. The caller has checked the shapes. On an
accelerator nothing waits for the device, and results are the same from run to run.
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, overload

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


class Formula(Protocol):
    """Terms of a voxel's logits and label, whose sums by image and head make a loss, and their derivative.

    z are logits (b, C, n) of n voxels in at least float32, y their one-hot labels or binary maps of the same type.

    Attributes:
        number: K, the number of terms.
    """

    number: ClassVar[int]

    def terms(self, z: Tensor, y: Tensor, regions: bool) -> tuple[Tensor, ...]:
        """Return the K terms (b, C, n), computed by operations that autograd can differentiate."""

    def slope(self, z: Tensor, y: Tensor, regions: bool, *weights: Tensor) -> Tensor:
        """Return the derivative (b, C, n) with respect to z of the sum of the terms, each times a weight (b, C, 1)."""


class Backend(Protocol):
    """The functions of a backend's module. Targets are nnU-Net's, see `targets.encode_target`; tensors share a device.

    The bin of p is `bin_index` of the exact product p M (in float64, or corrected by the remainder of the product).
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
        """Return the sums over voxels, or None for unsupported options. M = 0 leaves out the bins."""

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
        """Return the logits to compute other losses from, and `nacl_loss`; or None for unsupported options."""

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
        r"""Return the logits to compute the cross-entropy from, and the term that SVLS adds to it; or None.

        .. math:: \frac{1}{N} \sum_i \sum_c (y_{i,c} - \tilde y_{i,c}) z_{i,c}

        over the N voxels that count (for regions divided by the number of heads too); 0 where none does.
        """

    def pointwise(
        self, logits: Tensor, target: Tensor, *, formula: Formula, regions: bool, ignore_label: int | None
    ) -> tuple[Tensor, Tensor] | None:
        """Return the logits to compute other losses from, and the sums (K, B, C) over the voxels that count; or None.

        The sums are in float64 (float32 on a device without it).
        """


def _load(name: str) -> Backend:
    """Import a backend at its first use."""
    if name == "cpu":
        from nnunet_calib.losses import cpu

        return cpu
    if name == "triton":
        from nnunet_calib.losses import gpu

        return gpu
    from nnunet_calib.losses import chunked

    return chunked


NAMES = ("cpu", "chunked", "triton")
# The backends tried on each type of device, in this order, unless one is chosen.
AUTOMATIC: dict[str, tuple[str, ...]] = {"cpu": ("cpu", "chunked"), "cuda": ("triton", "chunked")}
ELSEWHERE = ("chunked",)

_chosen: str | None = None


class use:
    """Choice of how the losses are computed, until the next one or, as a context manager, to the end of the block.

    "auto" (the default) picks the backend for the device, "reference" the formulas as they are written; "cpu",
    "chunked" and "triton" name a backend. The formulas compute options that a backend does not support. The environment
    variable NNUNET_CALIB_LOSSES takes the same values, for trainings by nnU-Net's own command.

    Raises:
        ValueError: for an unknown choice, or one that this machine cannot run.
    """

    def __init__(self, choice: str) -> None:
        global _chosen
        _check(choice, "nnunet_calib.losses.use")
        self._previous, _chosen = _chosen, choice

    def __enter__(self) -> None:
        """Do nothing: the constructor has made the choice."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        global _chosen
        _chosen = self._previous


def _check(choice: str, source: str) -> None:
    """Raise ValueError for an unknown choice, or one that cannot run here."""
    choices = ("auto", "reference", *NAMES)
    if choice not in choices:
        raise ValueError(f"expected {source} to be one of {', '.join(choices)}, got {choice!r}")
    if choice in NAMES and (reason := _load(choice).why_missing()) is not None:
        raise ValueError(f"expected losses that can be computed here, got {choice!r} from {source}: {reason}")


def choice() -> str:
    """Return the current choice; raise ValueError if the environment variable holds none that can run."""
    if _chosen is not None:
        return _chosen
    named = os.environ.get(VARIABLE) or "auto"
    if named != "auto":
        _check(named, f"the environment variable {VARIABLE}")
    return named


def backend_of(device: str) -> str:
    """Return the name of the backend that is tried first on a type of device, such as "cuda", where it can run."""
    return next(name for name in AUTOMATIC.get(device, ELSEWHERE) if _load(name).why_missing() is None)


@overload
def compute(
    operation: Literal["voxel_sums"], logits: Tensor, target: Tensor, *, regions: bool, **options: Any
) -> VoxelSums | None: ...
@overload
def compute(
    operation: Literal["nacl", "label_smoothing", "pointwise"],
    logits: Tensor,
    target: Tensor,
    *,
    regions: bool,
    **options: Any,
) -> tuple[Tensor, Tensor] | None: ...
def compute(
    operation: str, logits: Tensor, target: Tensor, *, regions: bool, **options: Any
) -> VoxelSums | tuple[Tensor, Tensor] | None:
    """Return the result of the chosen backend, or of the first that supports the logits and options; else None.

    Args:
        operation: name of an operation of `Backend`.
        logits: (B, C, *spatial).
        target: of the matching shape.
        regions: whether heads are regions.
        options: the operation's other options.

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

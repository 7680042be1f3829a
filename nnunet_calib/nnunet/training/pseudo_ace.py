"""The pseudo ACE and the logits of every epoch, of the validation patches, beside nnU-Net's pseudo Dice.

nnU-Net's validation step returns neither the network's output nor the target, but its loss gets both. A forward hook on
the loss, registered only during a validation step, sees them. This needs no second forward pass and repeats none of
nnU-Net's code. A loss that is not a module, or is not called, cannot be watched and has no value.

Like the pseudo Dice, the pseudo ACE pools the voxels of patches, and nnU-Net centres some of these on foreground. It
shows the course of a training; it is not the ACE of the cases, which follows after the training.

A failure to measure never ends a training: the first one is logged, its epoch gets NaN, and nnU-Net continues.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn

from nnunet_calib.binning import bin_index
from nnunet_calib.metrics.errors import NUM_BINS
from nnunet_calib.nnunet.training.logit_sums import QUANTILES, LogitSums, logit_quantiles
from nnunet_calib.nnunet.training.ranks import is_first_process
from nnunet_calib.results.heads import Heads

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer as Trainer
else:
    Trainer = object

MEAN, PER_CLASS = "mean_fg_pseudo_ace", "pseudo_ace_per_class_or_region"
LOGITS = "pseudo_logit_quantiles"

# One of this many voxels is measured, which keeps the cost near 1 % of a validation step on a CPU. It is a prime, and
# the first voxel changes in each step, so that no plane of the patches is preferred.
STRIDE = 17
LOGIT_STRIDE = 4  # of these, the logits of one in four are counted, which has a histogram for every class

# The figure of the logits, which takes seconds, is drawn after so many epochs each, and after each of the first ones.
_EVERY = 10


class UnwatchedLoss(Exception):
    """A loss whose output and target cannot be observed."""


class PatchSums:
    """Sums over the validation patches of an epoch, on their device; adding never waits for the device.

    Attributes:
        sums: (2, C, 2 M), number of voxels and sum of probabilities of each foreground class or region; the first M
            bins hold the voxels outside it, the others those inside.
        logits: histograms of the logits of some of the same voxels.
    """

    def __init__(self, num_heads: int, regions: bool, ignore_label: int | None, device: torch.device) -> None:
        self.first = 0 if regions else 1  # the pseudo Dice leaves out the background too
        self.regions, self.ignore_label = regions, ignore_label
        self.labels = torch.arange(num_heads, device=device)[:, None]
        dtype = torch.float32 if device.type == "mps" else torch.float64  # MPS has no float64
        self.sums = torch.zeros(2, num_heads - self.first, 2 * NUM_BINS, dtype=dtype, device=device)
        self.logits = LogitSums(num_heads, regions, device, dtype)
        self.steps = 0

    @torch.no_grad()
    def add(self, logits: Tensor, target: Tensor) -> None:
        """Add every 17th voxel: logits (B, C, *spatial) in any precision, target as in nnU-Net's losses."""
        voxels = slice(self.steps % STRIDE, None, STRIDE)
        some = slice(self.steps // STRIDE % LOGIT_STRIDE, None, LOGIT_STRIDE)
        self.steps += 1
        logits, target = logits.flatten(2)[..., voxels].float(), target.flatten(2)[..., voxels]
        if self.regions:
            probabilities, inside = torch.sigmoid(logits), target[:, : len(self.labels)] != 0
            counts = None if self.ignore_label is None else target[:, -1:] == 0
        else:
            probabilities, inside = torch.softmax(logits, 1)[:, self.first :], target == self.labels
            counts = None if self.ignore_label is None else target != self.ignore_label
        p = probabilities.to(self.sums.dtype)
        index = bin_index(p, NUM_BINS) + NUM_BINS * inside[:, self.first :]
        weight = torch.ones_like(p)
        if counts is not None:
            p, weight = (torch.where(counts, x, 0) for x in (p, weight))
        self.logits.add(logits[..., some], inside[..., some], weight[:, :1, some])
        values = torch.stack([weight, p]).transpose(1, 2).flatten(2)
        self.sums.scatter_add_(2, index.transpose(0, 1).flatten(1).expand(2, -1, -1), values)


def pseudo_ace(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    r"""Return the average calibration error of each class over the voxels counted in `PatchSums.sums`.

    .. math:: \frac{1}{|\{m : n_m > 0\}|} \sum_{n_m > 0} |o_m - e_m|

    with n_m voxels in bin m, e_m their mean probability and o_m the observed frequency.

    Args:
        sums: (2, C, 2 M), summed over devices.

    Returns:
        (C,) in [0, 1]; NaN for a class without a voxel, like nnU-Net's pseudo Dice.
    """
    counts, probability = sums.reshape(2, -1, 2, NUM_BINS)
    voxels, positives = counts.sum(1), counts[:, 1]
    gap = np.abs(positives - probability.sum(1)) / np.maximum(voxels, 1)
    error = gap.sum(1) / np.maximum((voxels > 0).sum(1), 1)
    return np.where(positives.sum(1) > 0, error, np.nan)


def _unknown_logits(heads: int) -> list[Any]:
    """Return the quantiles of an epoch that was not measured."""
    return [*np.full((heads + 1, 2, len(QUANTILES)), np.nan).tolist()]


class PseudoACEMixin(Trainer):
    """Trainer mixin that measures pseudo ACE and logits in every epoch, for nnU-Net's loggers and two figures.

    Attributes:
        measure_pseudo_ace: whether both are measured; if not, the trainer validates exactly as without this class.
        draw_pseudo_ace: function called after every epoch with nnU-Net's output folder, the means of all epochs, the
            values of each class by epoch, and the names of the classes; None draws nothing.
        draw_logits: function called after every epoch with nnU-Net's output folder, the quantiles of the logits of all
            epochs (see `logit_quantiles`), and the names of all classes; None draws nothing.
    """

    measure_pseudo_ace = True
    draw_pseudo_ace: Callable[[Path, list[float], list[list[float]], list[str]], None] | None = None
    draw_logits: Callable[[Path, list[Any], list[str]], None] | None = None
    _patch_sums: PatchSums | None = None
    _pseudo_ace_failure = ""
    _pseudo_ace_failure_logged = False

    def on_validation_epoch_start(self) -> None:
        """Start the validation of an epoch as nnU-Net does, with new sums."""
        super().on_validation_epoch_start()
        self._patch_sums, self._pseudo_ace_failure = None, ""
        if self.measure_pseudo_ace:
            with self._failure_kept():
                manager = self.label_manager
                self._patch_sums = PatchSums(
                    manager.num_segmentation_heads, manager.has_regions, manager.ignore_label, self.device
                )

    def validation_step(self, *arguments: Any, **named: Any) -> dict[str, Any]:
        """Run nnU-Net's validation step while a hook observes the arguments of the loss."""
        hook = None
        if self._patch_sums is not None:
            with self._failure_kept():
                if not isinstance(self.loss, nn.Module):
                    raise UnwatchedLoss(f"the loss is a {type(self.loss).__name__}, and only a module can be watched")
                hook = self.loss.register_forward_hook(self._add_patches, with_kwargs=True)
        try:
            outputs: dict[str, Any] = super().validation_step(*arguments, **named)
        finally:
            if hook is not None:
                hook.remove()
        return outputs

    def _add_patches(self, loss: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], value: Any) -> None:
        with self._failure_kept():
            assert self._patch_sums is not None
            given = (*arguments, *named.values())[:2]
            # with deep supervision lists, from the full resolution down
            self._patch_sums.add(*(x[0] if isinstance(x, list | tuple) else x for x in given))

    def on_validation_epoch_end(self, *arguments: Any, **named: Any) -> None:
        """End the validation of an epoch as nnU-Net does, and log its pseudo ACE."""
        super().on_validation_epoch_end(*arguments, **named)
        with self._failure_kept():
            if self.measure_pseudo_ace:
                self._log_pseudo_ace(*self._gathered_pseudo_ace())
            else:
                # a checkpoint may hold some: progress.png ends with the shortest list
                for key in (MEAN, PER_CLASS, LOGITS):
                    self._logged_lists().pop(key, None)
        self._log_failure()

    def on_epoch_end(self) -> None:
        """End an epoch as nnU-Net does, and draw the figures."""
        super().on_epoch_end()
        if self.measure_pseudo_ace and is_first_process(self):
            with self._failure_kept():
                folder, names = Path(self.output_folder), Heads.of(self.label_manager).names
                if self.draw_pseudo_ace is not None:
                    mean, per_class = (self.logger.get_value(key, step=None) for key in (MEAN, PER_CLASS))
                    self.draw_pseudo_ace(folder, mean, per_class, list(names[-len(per_class[-1]) :]))
                if self.draw_logits is not None and self._is_due():
                    self.draw_logits(folder, self._logged_lists()[LOGITS], list(names))
            self._log_failure()

    def _is_due(self) -> bool:
        """Return whether the figure of the logits is drawn after the epoch that has just ended."""
        done = self.current_epoch
        return LOGITS in self._logged_lists() and (done <= _EVERY or done % _EVERY == 0 or done >= self.num_epochs)

    def _gathered_pseudo_ace(self) -> tuple[list[float], list[Any]]:
        """Return pseudo ACE and quantiles of the logits of all ranks' voxels together, or NaN if a rank failed."""
        mine: Any = None
        with self._failure_kept():
            assert self._patch_sums is not None
            if self._patch_sums.steps == 0:
                raise UnwatchedLoss("no validation step has called the loss")
            mine = [sums.cpu().numpy() for sums in (self._patch_sums.sums, self._patch_sums.logits.counts)]
        found = [self._pseudo_ace_failure or mine]
        if self.is_ddp:  # as nnU-Net gathers its Dice; a rank that failed must take part too
            found *= distributed.get_world_size()
            distributed.all_gather_object(found, self._pseudo_ace_failure or mine)
        for failure in (x for x in found if isinstance(x, str)):
            self._pseudo_ace_failure = failure
            heads = self.label_manager.num_segmentation_heads
            return [math.nan] * (heads - (not self.label_manager.has_regions)), _unknown_logits(heads)
        sums, counts = (np.sum(of_ranks, axis=0) for of_ranks in zip(*found, strict=True))
        return [float(error) for error in pseudo_ace(sums)], logit_quantiles(counts).tolist()

    def _logged_lists(self) -> dict[str, list[Any]]:
        """Return the lists of nnU-Net's logger with a value for every epoch; empty for another logger."""
        lists: dict[str, list[Any]] = getattr(getattr(self.logger, "local_logger", None), "my_fantastic_logging", {})
        return lists

    def _log_pseudo_ace(self, per_class: list[float], quantiles: list[Any]) -> None:
        defined = [value for value in per_class if not math.isnan(value)]
        values = {MEAN: sum(defined) / len(defined) if defined else math.nan, PER_CLASS: per_class}
        lists = self._logged_lists()
        unknown = _unknown_logits(len(quantiles) - 1)
        for key, missing in ((MEAN, math.nan), (PER_CLASS, [math.nan] * len(per_class)), (LOGITS, unknown)):
            # nnU-Net expects one value an epoch; the checkpoint of a training without this mixin has none
            logged = lists.setdefault(key, [])
            logged.extend([missing] * (self.current_epoch - len(logged)))
        self.print_to_log_file("Pseudo ACE", [round(value, 4) for value in per_class])
        try:
            for key, value in values.items():
                self.logger.log(key, value, self.current_epoch)
        finally:  # another logger may fail before a list has its value: progress.png ends with the shortest list
            for key, value in (values | {LOGITS: quantiles}).items():  # the quantiles are for our figure alone
                lists[key][self.current_epoch :] = [value]

    @contextmanager
    def _failure_kept(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            told = str(error) if isinstance(error, UnwatchedLoss) else f"\n{traceback.format_exc()}"
            # within an epoch, the first failure causes the others
            self._pseudo_ace_failure = self._pseudo_ace_failure or told

    def _log_failure(self) -> None:
        if self._pseudo_ace_failure and not self._pseudo_ace_failure_logged:
            self._pseudo_ace_failure_logged = True
            with suppress(Exception):  # logging may fail too
                self.print_to_log_file(
                    f"The pseudo ACE could not be measured, logged or drawn; training continues. Reason (reported "
                    f"once): {self._pseudo_ace_failure}"
                )

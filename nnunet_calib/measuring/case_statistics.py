"""CaseStatistics: a small, additive summary of a case from which every metric and figure is computed.

Sums first, ratios last: a case becomes fine histograms of its probabilities and a sample of its voxels. The statistics
of cases add up to those of a fold, and no calibration error needs the images again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial, reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_calib.measuring.case_file import MAX_BYTES, Content, read, write
from nnunet_calib.measuring.file_budget import room_for_sample, slice_in_room
from nnunet_calib.measuring.histograms import Histograms
from nnunet_calib.measuring.picture_slice import RepresentativeSlice, representative_slice
from nnunet_calib.measuring.raters import label_maps, number_of_raters
from nnunet_calib.measuring.scopes import check_boundary_mm, default_boundary_mm, scope_bits
from nnunet_calib.measuring.volume import Probabilities, Volume, region_members
from nnunet_calib.measuring.voxel_sample import STRATA, VoxelSample
from nnunet_calib.posthoc.calibrator import Calibrator
from nnunet_calib.threads import one_thread

MAX_VOXELS = 150_000


@dataclass(frozen=True)
class CaseStatistics:
    """Calibration statistics of one case, or of several that were added.

    Attributes:
        histograms: exact sums over all voxels.
        sample: voxels for fitting a temperature, and for errors after calibration.
        regions: whether the heads are overlapping regions rather than exclusive classes.
        boundary_mm: half width of the boundary scope.
        cases: names of the cases.
        model: identity of the model that made the predictions, as JSON values.
        shown: a slice for pictures, before any calibration; None for several cases, and for a case without a slice.
    """

    histograms: Histograms
    sample: VoxelSample
    regions: bool
    boundary_mm: float
    cases: tuple[str, ...]
    model: dict[str, Any] = field(default_factory=dict)
    shown: RepresentativeSlice | None = None

    @property
    def num_heads(self) -> int:
        """Number of classes or regions."""
        return int(self.histograms.counts.shape[1]) - 1

    @classmethod
    def from_probabilities(
        cls,
        probabilities: Probabilities,
        labels: NDArray[Any],
        *,
        regions: Sequence[tuple[int, ...]] | None = None,
        ignore_label: int | None = None,
        raters: int | None = None,
        spacing: Sequence[float] | None = None,
        max_voxels: int = MAX_VOXELS,
        boundary_mm: float | None = None,
        crop: tuple[slice, ...] | None = None,
        case: str = "",
        model: dict[str, Any] | None = None,
        image: NDArray[Any] | None = None,
    ) -> CaseStatistics:
        """Measure one case.

        Args:
            probabilities: (C, *spatial) in [0, 1], float16 to float64: softmax over the classes, or a sigmoid per
                region. A NumPy array, a CPU tensor, or any object with a shape and their indexing by slices along the
                first spatial axis and by arrays of positions for each axis.
            labels: ground truth (*spatial), integers, 2D or 3D; or frequencies of the labels 0, 1, ... among several
                raters, floating-point (labels, *spatial): see `of_raters`.
            regions: label values of each head, in channel order, for region-based models; None for the classes 0 to
                C - 1.
            ignore_label: label of voxels that are excluded everywhere.
            raters: number of raters behind frequencies, the same for all cases that are put together, for which each
                voxel counts so often; None means the smallest number that can have the frequencies of this case.
            spacing: voxel size in mm along each axis of `labels`, for the boundary scope; None means 1.
            max_voxels: size of the voxel sample, at least 34; a case with fewer voxels is kept whole. The
                sample is smaller where a file would exceed 4 MB.
            boundary_mm: half width of the boundary scope, at least 0; None means `scopes.default_boundary_mm` of the
                spacing.
            crop: the part of `labels` that the probabilities cover, if not all of it. Voxels outside count with
                p(class 0) = 1, for regions with p = 0, as in nnU-Net's export.
            case: name of the case.
            model: identity of the model, as JSON values.
            image: (channels, *spatial); the slice for pictures is cut from it.

        Returns:
            The statistics; all zero where every voxel is ignored.

        Raises:
            ValueError: if the shapes differ, if a probability is NaN or outside [0, 1], if the probabilities of classes
                do not sum to 1 (within .01), if a label has no head, or for an invalid width.
        """
        boundary_mm = check_boundary_mm(default_boundary_mm(spacing) if boundary_mm is None else boundary_mm)
        labels = np.asarray(labels)
        if labels.ndim == len(probabilities.shape) and labels.dtype.kind == "f":
            raters = number_of_raters(labels) if raters is None else raters
            measure = partial(
                cls.from_probabilities,
                probabilities,
                regions=regions,
                ignore_label=ignore_label,
                spacing=spacing,
                max_voxels=voxels_of_rater(max_voxels, raters),
                boundary_mm=boundary_mm,
                crop=crop,
                case=case,
                model=model,
                image=image,
            )
            return cls.of_raters(measure(labels=one) for one in label_maps(labels, raters))
        if isinstance(probabilities, np.ndarray):  # PyTorch supports the native byte order alone
            probabilities = probabilities.astype(probabilities.dtype.newbyteorder("="), copy=False)
        crop = (slice(None),) * labels.ndim if crop is None else crop
        crop = tuple(slice(*s.indices(n)[:2]) for s, n in zip(crop, labels.shape, strict=True))
        valid = None if ignore_label is None else labels != ignore_label
        _check(probabilities, labels if valid is None else labels[valid], crop, regions)
        labels = _smallest(labels)
        members = None if regions is None else region_members(regions, int(labels.max(initial=0)))
        foreground = labels > 0
        if regions is not None:
            foreground = reduce(np.logical_or, (labels == value for region in regions for value in region))
            outside = labels[~foreground & (labels > 0) & (True if valid is None else valid)]
            if outside.size:
                raise ValueError(
                    f"expected labels of the regions, or 0, got {outside[0]}: check the labels in dataset.json against "
                    f"the label map"
                )
        bits = scope_bits(labels, foreground=foreground, valid=valid, spacing_mm=spacing, boundary_mm=boundary_mm)
        volume = Volume(probabilities, labels, valid, bits, crop, members)
        strata = np.empty(labels.shape, np.uint8)
        histograms = volume.histograms(strata)
        shown = representative_slice(
            labels,
            volume.slab,
            foreground=foreground,
            valid=valid,
            spacing=spacing,
            image=image,
            regions=regions is not None,
        )
        sample = volume.sample(strata, max_voxels, room_for_sample(histograms, shown))
        shown = slice_in_room(shown, histograms, sample)
        return cls(histograms, sample, regions is not None, boundary_mm, (case,), model or {}, shown)

    @classmethod
    def of_raters(cls, parts: Iterable[CaseStatistics]) -> CaseStatistics:
        """Return the statistics of a case whose probabilities were measured against the labels of several raters.

        Each voxel counts once for each rater, so that the observed frequency of a class in a bin is the mean of the
        raters' frequencies, NLL and Brier score are means over raters, and a temperature is fitted to the frequencies.
        For each rater a voxel is in the scopes of that rater's labels. The slice for pictures is that of the first one.

        Args:
            parts: one per rater, of the same probabilities.

        Raises:
            ValueError: if there is no part, or if parts differ in heads, scopes or case.
        """
        found = [*parts]
        merged = cls.merge(found)
        if {*merged.cases} != {*found[0].cases}:
            raise ValueError(f"expected raters of one case, got those of {', '.join(merged.cases)}")
        return replace(merged, cases=found[0].cases, shown=found[0].shown)

    @classmethod
    def merge(cls, parts: Iterable[CaseStatistics]) -> CaseStatistics:
        """Return the statistics of all parts' cases, as if measured together; `a + b` is the same for two.

        Parts are consumed one by one: of those that a generator makes, only the voxel samples stay in memory.

        Raises:
            ValueError: if there is no part, or if parts differ in heads or scopes.
        """
        first: CaseStatistics | None = None
        samples: list[VoxelSample] = []
        cases: list[str] = []
        for number, part in enumerate(parts):
            if first is None:
                first, histograms, model = part, part.histograms, part.model
            else:
                _check_alike(first, part)
                if number == 1 or part.histograms.counts.dtype != histograms.counts.dtype:
                    histograms = histograms + part.histograms  # new arrays, of the common type
                else:
                    histograms.add(part.histograms)
                model = model if part.model == model else {}
            samples.append(part.sample)
            cases += part.cases
        if first is None:
            raise ValueError("expected at least one case's statistics to merge, got none")
        return replace(
            first,
            histograms=histograms,
            sample=VoxelSample.merge(samples),
            cases=tuple(cases),
            model=model,
            shown=first.shown if len(samples) == 1 else None,
        )

    def __add__(self, other: CaseStatistics) -> CaseStatistics:
        """See `merge`."""
        return CaseStatistics.merge([self, other])

    @one_thread()
    def with_temperature(self, temperature: Calibrator | float) -> CaseStatistics:
        """Return the statistics with histograms after calibration, from the voxel sample: exact if it has all voxels.

        The sample keeps the network's log-probabilities.

        Args:
            temperature: T > 0, or a calibrator of any kind.
        """
        return replace(self, histograms=self.sample.histograms(temperature))

    def without_voxels(self) -> CaseStatistics:
        """Return the histograms alone: less memory, and enough for errors and diagrams without a new calibration."""
        sample = VoxelSample(*(getattr(self.sample, f.name)[:0].copy() for f in fields(VoxelSample)))
        return replace(self, sample=sample, shown=None)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an .npz without pickles; it appears under its name only when it is complete."""
        write(Content(**{f.name: getattr(self, f.name) for f in fields(self)}), path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> CaseStatistics:
        """Read a file that `save` made.

        Args:
            path: the file.
            max_bytes: limit on the memory of its arrays; a larger one is needed for hundreds of large cases only.

        Raises:
            ValueError: if the file has other content, is damaged, of another format or too large, or if its sums
                contradict each other.
            FileNotFoundError: if there is no such file.
        """
        return cls(**read(path, max_bytes=max_bytes)._asdict())


def voxels_of_rater(max_voxels: int, raters: int) -> int:
    """Return the size of the voxel sample of one of several raters, which together have the size of one."""
    return max(max_voxels // raters, STRATA)


def _check_alike(first: CaseStatistics, part: CaseStatistics) -> None:
    ours, theirs = ((s.num_heads, s.regions, s.boundary_mm) for s in (first, part))
    if ours != theirs:
        raise ValueError(
            f"expected statistics of the same heads and boundary width, got (heads, regions, boundary_mm) = "
            f"{ours} for {', '.join(first.cases)} and {theirs} for {', '.join(part.cases)}"
        )


def _smallest(labels: NDArray[Any]) -> NDArray[Any]:
    """Return labels in the smaller of one and two bytes that holds them."""
    one = not labels.size or (labels.min() >= 0 and labels.max() < 256)
    return labels.astype(np.uint8 if one else np.uint16, copy=False)


def _check(probabilities: Probabilities, labels: NDArray[Any], crop: tuple[slice, ...], regions: object) -> None:
    inside = tuple(s.stop - s.start for s in crop)
    if tuple(probabilities.shape[1:]) != inside:
        raise ValueError(
            f"expected probabilities (C, *spatial) on the grid of the labels, {inside}, got "
            f"{tuple(probabilities.shape)}: are they of the same case?"
        )
    if labels.dtype.kind == "f" and (wrong := ~np.isfinite(labels) | (labels != np.floor(labels))).any():
        raise ValueError(f"expected whole numbers as labels, got {labels[wrong][0]}: check the label map")
    heads = probabilities.shape[0]
    if regions is None and labels.size and not (labels.min() >= 0 and labels.max() < heads):
        raise ValueError(
            f"expected labels from 0 to {heads - 1}, got values from {labels.min()} to {labels.max()}: check the "
            f"labels in dataset.json against the label map"
        )

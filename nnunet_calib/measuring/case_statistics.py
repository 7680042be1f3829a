"""CaseStatistics: everything that is kept of a case, small, additive, and enough for every metric and figure.

Sums first, ratios last: a case becomes fine histograms of its probabilities and a sample of its voxels. Statistics of
cases add up to statistics of a fold, and every calibration error is computed from them, without the images.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnunet_calib.measuring.case_file import MAX_BYTES, Content, read, write
from nnunet_calib.measuring.class_lumps import room_for_sample
from nnunet_calib.measuring.histograms import Histograms
from nnunet_calib.measuring.picture_slice import RepresentativeSlice, representative_slice
from nnunet_calib.measuring.scopes import check_boundary_mm, default_boundary_mm, scope_bits
from nnunet_calib.measuring.volume import Probabilities, Volume, region_members
from nnunet_calib.measuring.voxel_sample import VoxelSample
from nnunet_calib.posthoc.calibrator import Calibrator
from nnunet_calib.threads import one_thread

MAX_VOXELS = 150_000


@dataclass(frozen=True)
class CaseStatistics:
    """Calibration statistics of one case, or of several that were added.

    Attributes:
        histograms: exact, over all voxels.
        sample: voxels for fitting a temperature and for errors after it.
        regions: whether the heads are overlapping regions rather than exclusive classes.
        boundary_mm: half width of the boundary scope.
        cases: names of the cases.
        model: what identifies the model that made the predictions, as JSON values.
        shown: one slice for pictures, before any temperature; None for several cases, each of which has its own,
            and where there is no slice.
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
                region. A NumPy array, a CPU tensor, or anything with a shape that is indexed like them: with slices
                along the first spatial axis, and with an array of positions for each axis.
            labels: ground truth (*spatial), integers, 2D or 3D.
            regions: the label values of each head, in channel order, for region-based models; None for the classes 0 to
                C - 1.
            ignore_label: label of voxels that are left out everywhere.
            spacing: voxel size in mm along each axis of `labels`, for the boundary scope; None means 1.
            max_voxels: size of the voxel sample, at least 34; a case with fewer voxels is kept whole. Of
                more than 8 heads fewer are kept where a file would be larger than 4 MB.
            boundary_mm: half width of the boundary scope, at least 0; None means `scopes.default_boundary_mm` of the
                spacing.
            crop: where in `labels` the probabilities lie, if they cover only a part of it. The voxels around count
                with p(class 0) = 1, for regions with p = 0: what nnU-Net exports there.
            case: its name.
            model: what identifies the model, as JSON values.
            image: (channels, *spatial), of which the slice for pictures is kept.

        Returns:
            The statistics; all zero where every voxel is ignored.

        Raises:
            ValueError: if the shapes differ, if a probability is NaN or outside [0, 1], if those of classes do not sum
                to 1 (within .01), if a label has no head, or if a width is none.
        """
        boundary_mm = check_boundary_mm(default_boundary_mm(spacing) if boundary_mm is None else boundary_mm)
        labels = np.asarray(labels)
        if isinstance(probabilities, np.ndarray):  # PyTorch knows no other order of bytes
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
        sample = volume.sample(strata, max_voxels, room_for_sample(histograms.counts))
        shown = representative_slice(
            labels,
            volume.slab,
            foreground=foreground,
            valid=valid,
            spacing=spacing,
            image=image,
            regions=regions is not None,
        )
        return cls(histograms, sample, regions is not None, boundary_mm, (case,), model or {}, shown)

    @classmethod
    def merge(cls, parts: Iterable[CaseStatistics]) -> CaseStatistics:
        """Statistics of the cases of all parts, as if measured together; `a + b` is the same for two.

        Parts are taken one after the other: of those that a generator makes, only the voxel samples stay in memory.

        Raises:
            ValueError: if there is none, or if they describe different heads or scopes.
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
                    histograms = histograms + part.histograms  # arrays of their own, of the type of both
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
        """Return the histograms after calibration, from the voxel sample: exact where it holds all voxels.

        The sample stays that of the network.

        Args:
            temperature: T > 0, or a calibrator of any kind.
        """
        return replace(self, histograms=self.sample.histograms(temperature))

    def without_voxels(self) -> CaseStatistics:
        """The histograms alone, which take less memory: enough for errors and diagrams of the same temperature."""
        sample = VoxelSample(*(getattr(self.sample, f.name)[:0].copy() for f in fields(VoxelSample)))
        return replace(self, sample=sample, shown=None)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an .npz without pickles. It appears under its name only when it is complete."""
        write(Content(**{f.name: getattr(self, f.name) for f in fields(self)}), path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> CaseStatistics:
        """Read what `save` wrote.

        Args:
            path: of the file.
            max_bytes: of memory that its arrays may take; more only for statistics of hundreds of large cases.

        Raises:
            ValueError: if the file is none of ours, damaged, or of another format, if its sums contradict each other,
                or if it takes more memory.
            FileNotFoundError: if there is none.
        """
        return cls(**read(path, max_bytes=max_bytes)._asdict())


def _check_alike(first: CaseStatistics, part: CaseStatistics) -> None:
    ours, theirs = ((s.num_heads, s.regions, s.boundary_mm) for s in (first, part))
    if ours != theirs:
        raise ValueError(
            f"expected statistics of the same heads and boundary width, got (heads, regions, boundary_mm) = "
            f"{ours} for {', '.join(first.cases)} and {theirs} for {', '.join(part.cases)}"
        )


def _smallest(labels: NDArray[Any]) -> NDArray[Any]:
    """The same labels in one or two bytes."""
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

"""Predictions of nnU-Net with probabilities, measured in parallel."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from nnunet_calib.io.processes import workers_end_with_us
from nnunet_calib.io.wording import last_line
from nnunet_calib.measuring.case_statistics import MAX_VOXELS, CaseStatistics, voxels_of_rater
from nnunet_calib.measuring.raters import common_number, number_of_raters
from nnunet_calib.measuring.scopes import BOUNDARY_MM
from nnunet_calib.nnunet.measured_case import measure_case, read_frequencies
from nnunet_calib.nnunet.pickled_properties import image_spacing
from nnunet_calib.nnunet.saved_probabilities import SavedProbabilities
from nnunet_calib.results.heads import Heads
from nnunet_calib.results.layout import case_file
from nnunet_calib.threads import one_thread

Result = TypeVar("Result")


@dataclass(frozen=True)
class Predictions:
    """Predicted cases that can be measured.

    Attributes:
        folder: folder with an .npz for each case.
        labels_folder: folder with a label map for each case.
        file_ending: file ending of the label maps.
        reader: nnU-Net's reader for the label maps.
        heads: heads of the model.
        model: identity of the model, as JSON values.
        cases: names of the cases, sorted.
        missing: names of the cases that lack an .npz or a label map, sorted.
        boundary_mm: half width of the boundary scope.
        further_raters: folders with the label maps of more raters, each of whom counts as much as the first.
        frequency_folders: names of the folders in `labels_folder` that have the frequencies of the labels 1, 2, ...
            among raters, in the place of label maps.
        frequency_raters: number of raters behind the frequencies of all cases, from `with_raters_counted`; with None
            each case has its own.
    """

    folder: Path
    labels_folder: Path
    file_ending: str
    reader: Any
    heads: Heads
    model: dict[str, Any]
    cases: tuple[str, ...]
    missing: tuple[str, ...] = ()
    boundary_mm: float = BOUNDARY_MM
    further_raters: tuple[Path, ...] = ()
    frequency_folders: tuple[str, ...] = ()
    frequency_raters: int | None = None

    def with_raters_counted(self, processes: int | None = None) -> Predictions:
        """Return the predictions with the number of raters behind the frequencies, for whom voxels of all cases count.

        It takes a pass over the frequencies; without these nothing changes.

        Args:
            processes: as for `save_all`.

        Raises:
            ValueError: as for `measure`, or if cases have frequencies among too many different numbers of raters.
            OSError: if a process ran out of memory.
        """
        if not self.frequency_folders:
            return self
        number = common_number(for_each_case(self._number_of_raters, self.cases, processes, "counting raters"))
        return replace(self, frequency_raters=number, model=self.model | ({"raters": number} if number > 1 else {}))

    def _number_of_raters(self, case: str) -> int:
        files = self._frequency_files(case)
        with self._named(case, files):
            return number_of_raters(read_frequencies(files, self.reader)[0])

    def _frequency_files(self, case: str) -> list[Path]:
        return [self.labels_folder / folder / f"{case}{self.file_ending}" for folder in self.frequency_folders]

    def measure(self, case: str) -> CaseStatistics:
        """Return the statistics of one case; its probabilities are in memory once, at full resolution.

        Raises:
            ValueError: if its files are damaged or do not belong together; the message names the case.
        """
        probabilities = SavedProbabilities(self.folder / f"{case}.npz", regions=self.heads.regions is not None)
        name = f"{case}{self.file_ending}"
        raters: list[Path | list[Path]] = [folder / name for folder in (self.labels_folder, *self.further_raters)]
        if self.frequency_folders:
            raters = [self._frequency_files(case)]
        return CaseStatistics.of_raters(
            self._measure_rater(case, probabilities, file, voxels_of_rater(MAX_VOXELS, len(raters))) for file in raters
        )

    def _measure_rater(
        self, case: str, probabilities: SavedProbabilities, labels_file: Path | Sequence[Path], max_voxels: int
    ) -> CaseStatistics:
        spacing = image_spacing(self.folder / f"{case}.npz")
        with self._named(case, [labels_file] if isinstance(labels_file, Path) else labels_file):
            return measure_case(
                probabilities,
                labels_file,
                self.reader,
                self.heads,
                case=case,
                model=self.model,
                spacing=spacing,
                boundary_mm=self.boundary_mm,
                max_voxels=max_voxels,
                raters=self.frequency_raters,
            )

    @contextmanager
    def _named(self, case: str, labels_files: Sequence[Path]) -> Iterator[None]:
        """Let errors name the case and its files."""
        shown, npz = ", ".join(map(str, labels_files)), self.folder / f"{case}.npz"
        try:
            yield
        except MemoryError:
            raise
        except ValueError as error:
            raise ValueError(f"case {case} ({npz} and {shown}): {error}") from error
        except Exception as error:
            raise ValueError(
                f"case {case}: expected a label map that nnU-Net's {type(self.reader).__name__} can read, found "
                f"{shown} unreadable ({last_line(error)})"
            ) from error

    def save(self, calibration_folder: Path, case: str) -> None:
        """Measure one case and write its case file; errors as for `measure`."""
        self.measure(case).save(case_file(calibration_folder, case))

    def save_all(self, calibration_folder: Path, processes: int | None = None) -> None:
        """Write the case files, each as soon as the case is measured, with a progress bar.

        Args:
            calibration_folder: folder that holds the folder of case files.
            processes: number of processes, each with the probabilities of one case in memory; None means nnU-Net's
                default.

        Raises:
            ValueError: as for `measure`, for the first case that fails.
            OSError: if a process ran out of memory, or a file cannot be written.
        """
        for_each_case(partial(self.save, calibration_folder), self.cases, processes, "measuring")


def for_each_case(
    work: Callable[[str], Result], cases: Sequence[str], processes: int | None, doing: str
) -> list[Result]:
    """Call a picklable function for each case and return the results in order; otherwise as `Predictions.save_all`."""
    if processes is None:
        from nnunetv2.configuration import default_num_processes

        processes = default_num_processes
    processes = min(processes, len(cases))

    def collect(results: Iterable[Result]) -> list[Result]:
        return list(tqdm(results, desc=doing, total=len(cases), unit="case", file=sys.stderr))

    try:
        if processes == 1:
            with one_thread():  # like the workers, so that -np changes no digit
                return collect(map(work, cases))
        # with fork, PyTorch's threads can lock up
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, context, initializer=_start_worker) as pool, workers_end_with_us():
            pending = [pool.submit(work, case) for case in cases]
            try:
                return collect(future.result() for future in pending)
            except Exception:  # not after an interrupt: its workers are gone, and cancelling would confuse the pool
                for future in pending:
                    future.cancel()
                raise
    except (BrokenProcessPool, MemoryError) as error:
        raise OSError(
            f"expected memory for the probabilities of {processes} cases at once, ran out of it or lost a process: "
            f"use fewer processes with -np"
        ) from error


def _start_worker() -> None:
    """Send the prints of nnU-Net's readers to stderr, and use one thread per process."""
    sys.stdout = sys.stderr
    torch.set_num_threads(1)

"""What takes nnU-Net long on tiny data, done quickly and with the same result, or with one that no test looks at."""

from __future__ import annotations

import os
from multiprocessing.pool import ThreadPool
from typing import Any

from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.utilities import find_class_by_name, utils

INTENSITIES = 10_000  # of a case, as by default; the extractor asks for ten million and more

collect = DatasetFingerprintExtractor.collect_foreground_intensities


def originates_from(module: object, path: str) -> bool:
    """Tell whether a module lies in a folder, by comparing strings.

    A look-up of a trainer asks for each of some thousand modules, several times, and with an absolute path.
    """
    file = getattr(module, "__file__", None)
    places = getattr(module, "__path__", None) or () if file is None else (file,)
    inside = path + os.sep
    return any((place if place[:1] == "/" else os.path.abspath(place)).startswith(inside) for place in places)


def collect_few(segmentation: Any, images: Any, seed: int = 1234, num_samples: int = 0) -> Any:
    """Draw as many intensities as statistics of a tiny case need."""
    return collect(segmentation, images, seed, INTENSITIES)


def make_quick() -> None:
    """Let nnU-Net in this process look up trainers and plan quickly, and compute in one thread.

    On a CPU it takes a thread per core, so that processes that run at once wait for each other.
    """
    os.cpu_count = lambda: 1
    find_class_by_name._module_originates_from_path = originates_from
    DatasetFingerprintExtractor.collect_foreground_intensities = staticmethod(collect_few)


def list_in_threads() -> None:
    """Let nnU-Net list a folder's files in this process instead of twelve copies of it, each time."""
    utils.Pool = ThreadPool

"""The calibration errors of this package and of other libraries, from probabilities and labels in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from ct_case import SPACING, grid, network_logits, true_labels

BINS = 20


def make_organs(folder: Path, size: tuple[int, ...], classes: int) -> None:
    """Return probabilities and labels at the image's spacing."""
    from scipy.special import softmax

    size_mm, axes = np.multiply(size, SPACING), grid(size, SPACING, np.zeros(3))
    np.save(folder / "p.npy", softmax(network_logits(size_mm, classes, axes), axis=0))
    np.save(folder / "y.npy", true_labels(size_mm, classes, axes))


def make_background(folder: Path, size: tuple[int, ...], classes: int) -> None:
    """Return p, below 1 / 100 outside background in 98 % of the voxels, and labels drawn from p / 2."""
    rng = np.random.default_rng(0)
    p = np.empty((classes, *size), np.float32)
    rng.random(dtype=np.float32, out=p[1])
    p[1] *= np.where(rng.random(size, dtype=np.float32) < 0.98, np.float32(0.01), np.float32(1))
    np.save(folder / "y.npy", (2 * rng.random(size, dtype=np.float32) < p[1]).astype(np.uint8))
    p[1:] = p[1] / (classes - 1)
    np.subtract(1, p[1:].sum(0), out=p[0])
    np.save(folder / "p.npy", p)


CASES = {"organs": make_organs, "background": make_background}


def exact_ece(p: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Compute the errors of each class voxel by voxel, in float64 and integers."""
    errors = []
    for c, row in enumerate(p.reshape(len(p), -1)):
        row = row.astype(np.float64)
        gaps = np.bincount(np.minimum((row * BINS).astype(int), BINS - 1), row - (y.ravel() == c), BINS)
        errors.append(np.abs(gaps).sum() / row.size)
    return np.array(errors)


Measurement = Callable[[], Any]  # returns the ECE of each class, or nothing that could be compared


def ours(p: np.ndarray, y: np.ndarray) -> Measurement:
    """Compute a case's statistics: three scopes, scores, the voxel sample."""
    from nnunet_calib import CaseStatistics, calibration_errors

    return lambda: calibration_errors(CaseStatistics.from_probabilities(p, y, spacing=SPACING), BINS)["ece"]


def our_binning(p: np.ndarray, y: np.ndarray) -> Measurement:
    """Compute the histograms and scores alone, of all classes and of the top label."""
    from nnunet_calib.measuring.volume import Volume

    volume = Volume(p, y, None, np.zeros_like(y), tuple(slice(0, n) for n in y.shape), None)

    def measure() -> np.ndarray:
        histograms = volume.histograms().scope("image")
        gaps = (histograms.probability - histograms.positives).reshape(len(p) + 1, BINS, -1).sum(2)
        return np.abs(gaps).sum(1)[:-1] / histograms.voxels

    return measure


def monai(p: np.ndarray, y: np.ndarray) -> Measurement:
    """Call MONAI's metric on one-hot labels made beforehand."""
    import torch
    from monai.metrics import CalibrationErrorMetric

    one_hot = np.zeros_like(p)
    np.put_along_axis(one_hot, y[None], 1, 0)
    inputs = torch.from_numpy(p)[None], torch.from_numpy(one_hot)[None]
    return lambda: CalibrationErrorMetric(BINS, metric_reduction="none")(*inputs)[0].numpy()


def monai_from_labels(p: np.ndarray, y: np.ndarray) -> Measurement:
    """Call MONAI's metric on a label map, with the one-hot encoding of its example."""
    import torch
    from monai.metrics import CalibrationErrorMetric
    from monai.transforms import AsDiscrete

    probabilities, labels = torch.from_numpy(p)[None], torch.from_numpy(y)[None]

    def measure() -> np.ndarray:
        one_hot = AsDiscrete(to_onehot=len(p))(labels)[None]
        return CalibrationErrorMetric(BINS, metric_reduction="none")(probabilities, one_hot)[0].numpy()

    return measure


def torchmetrics(p: np.ndarray, y: np.ndarray) -> Measurement:
    """Compute the error of the top label only."""
    import torch
    from torchmetrics.functional.classification import multiclass_calibration_error

    inputs = torch.from_numpy(p.reshape(1, len(p), -1)), torch.from_numpy(y.reshape(1, -1).astype(np.int64))
    return lambda: multiclass_calibration_error(*inputs, num_classes=len(p), n_bins=BINS) and None


def netcal(p: np.ndarray, y: np.ndarray) -> Measurement:
    """Compute the error of the top label only."""
    from netcal.metrics import ECE

    inputs = np.ascontiguousarray(p.reshape(len(p), -1).T), y.ravel()
    return lambda: ECE(BINS).measure(*inputs) and None


METRICS = {f.__name__: f for f in (our_binning, ours, monai, monai_from_labels, torchmetrics, netcal)}

"""Cost of measuring calibration: in nnU-Net's export of a CT-sized case, and beside other libraries' metrics.

    python benchmarks/measuring.py                                  # 512 x 512 x 200, 14 classes: 15 GB of memory
    python benchmarks/measuring.py --size 100 256 256               # an eighth of it
    python benchmarks/measuring.py metrics --size 100 320 312 --classes 4

`export` runs nnU-Net's own `export_prediction_from_logits` on float32 logits at the network's spacing: alone, with
`--npz`, and with the measuring that nnunet_calib adds. `metrics` measures probabilities that lie in memory, and also
uses torchmetrics and netcal where they are installed. Each run is a process of its own. Its peak memory (Linux only) is
what it takes beyond the Python it starts with, or, for metrics, beyond its inputs. Metrics run three times in it; the
median counts.
"""

from __future__ import annotations

import argparse
import json
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

SPACING, NETWORK_SPACING = (2.0, 0.8, 0.8), (1.5, 1.5, 1.5)  # mm, slices first
CASE = "case"
BINS, ROUNDS = 20, 3


def organs(size_mm: np.ndarray, number: int) -> list[dict[str, np.ndarray]]:
    """Bumpy ellipsoids: centres, radii and bumps in mm."""
    rng = np.random.default_rng(number)
    return [
        {
            "centre": size_mm * rng.uniform(0.2, 0.8, 3), "radii": size_mm.min() * rng.uniform(0.04, 0.15, 3),
            "waves": rng.normal(0, 1 / 5, (6, 3)), "phases": rng.uniform(0, 2 * np.pi, 6),
        }
        for _ in range(number)
    ]  # fmt: skip


def depth_mm(organ: dict[str, np.ndarray], axes: list[np.ndarray], waves: slice) -> np.ndarray:
    """Roughly how deep in an organ each point of a grid lies, negative outside."""
    centre, radii = organ["centre"], organ["radii"]
    squares = [np.square((x - c) / r).astype(np.float32) for x, c, r in zip(axes, centre, radii, strict=True)]
    z, y, x = np.ix_(*squares)
    depth = (1 - np.sqrt(z + y + x)) * np.float32(radii.min())
    for wave, phase in zip(organ["waves"][waves], organ["phases"][waves], strict=True):
        z, y, x = np.ix_(*(np.exp(1j * k * a).astype(np.complex64) for k, a in zip(wave, axes, strict=True)))
        depth += ((z * y) * np.complex64(np.exp(1j * phase)) * x).real
    return depth


def network_logits(size_mm: np.ndarray, classes: int, axes: list[np.ndarray]) -> np.ndarray:
    """Those of a network that knows all but the borders: probabilities go from .01 to .99 within about 3 mm."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((classes, *map(len, axes)), dtype=np.float32)
    logits *= 0.7
    deepest = np.full(logits.shape[1:], -np.inf, np.float32)
    for organ, channel in zip(organs(size_mm, classes - 1), logits[1:], strict=True):
        depth = depth_mm(organ, axes, slice(0, 3))
        np.maximum(deepest, depth, out=deepest)
        channel += np.clip(1.5 * depth, -12, 10)
    logits[0] += np.clip(-1.5 * deepest, -12, 10)
    return logits


def true_labels(size_mm: np.ndarray, classes: int, axes: list[np.ndarray]) -> np.ndarray:
    """The same organs with other bumps."""
    labels, deepest = np.zeros([len(a) for a in axes], np.uint8), np.zeros([len(a) for a in axes], np.float32)
    for c, organ in enumerate(organs(size_mm, classes - 1), 1):
        depth = depth_mm(organ, axes, slice(3, 6))
        labels[depth > deepest] = c
        np.maximum(deepest, depth, out=deepest)
    return labels


def grid(shape: tuple[int, ...], spacing: tuple[float, ...], start_mm: np.ndarray) -> list[np.ndarray]:
    """Coordinates of voxel centres along each axis, in mm."""
    return [(np.arange(n) + 0.5) * s + t for n, s, t in zip(shape, spacing, start_mm, strict=True)]


def make_export(folder: Path, size: tuple[int, ...], classes: int) -> None:
    """Logits, ground truth and nnU-Net's files; the crop leaves out a tenth of the image in the plane."""
    import SimpleITK as sitk

    size_mm = np.multiply(size, SPACING)
    box = [[0, size[0]], *([n // 20, n - n // 20] for n in size[1:])]
    cropped = tuple(b - a for a, b in box)
    coarse = tuple(round(n * s / t) for n, s, t in zip(cropped, SPACING, NETWORK_SPACING, strict=True))
    start_mm = np.multiply([a for a, _ in box], SPACING)
    np.save(folder / "logits.npy", network_logits(size_mm, classes, grid(coarse, NETWORK_SPACING, start_mm)))
    image = sitk.GetImageFromArray(true_labels(size_mm, classes, grid(size, SPACING, np.zeros(3))))
    image.SetSpacing(SPACING[::-1])
    (folder / "labels").mkdir()
    sitk.WriteImage(image, folder / "labels" / f"{CASE}.nii.gz")
    probabilities = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    plans = {
        "dataset_name": "Dataset001_Benchmark", "plans_name": "nnUNetPlans", "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": {
            "spacing": NETWORK_SPACING, "architecture": {}, "resampling_fn_probabilities_kwargs": probabilities,
            "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        }},
    }  # fmt: skip
    labels = {"background": 0} | {f"organ {c}": c for c in range(1, classes)}
    dataset = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz", "numTraining": 1}
    properties = {
        "spacing": list(SPACING), "shape_before_cropping": size, "bbox_used_for_cropping": box,
        "shape_after_cropping_and_before_resampling": cropped,
        "sitk_stuff": {f: getattr(image, f"Get{f.title()}")() for f in ("spacing", "origin", "direction")},
    }  # fmt: skip
    (folder / "case.pkl").write_bytes(pickle.dumps((plans, dataset, properties)))


def run_export(folder: Path, what: str) -> dict[str, Any]:
    """One export, as nnU-Net's worker does it, in a fresh process."""
    from nnunetv2.inference.export_prediction import export_prediction_from_logits
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_calib.integration.export import ExportAndMeasure, failure_file
    from nnunet_calib.integration.folds import case_file
    from nnunet_calib.integration.labels import Heads

    plans, dataset, properties = pickle.loads((folder / "case.pkl").read_bytes())
    manager = PlansManager(plans)
    export, output = export_prediction_from_logits, folder / what
    case_file(output, CASE).parent.mkdir(parents=True)
    if what == "measured":
        heads = Heads.of(manager.get_label_manager(dataset))
        export = ExportAndMeasure(export_prediction_from_logits, output, folder / "labels", heads, {})
    before = reset_peak()
    logits = np.load(folder / "logits.npy")
    start = time.perf_counter()
    export(
        logits, properties, manager.get_configuration("3d_fullres"), manager, dataset, str(output / CASE),
        save_probabilities=what == "npz",
    )  # fmt: skip
    seconds = time.perf_counter() - start
    if failure_file(case_file(output, CASE)).exists():
        raise RuntimeError(failure_file(case_file(output, CASE)).read_text())
    written = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    return {"seconds": seconds, "peak": peak_memory() - before, "written": written}


def make_metrics(folder: Path, size: tuple[int, ...], classes: int) -> None:
    """Probabilities and labels at the image's spacing."""
    from scipy.special import softmax

    size_mm, axes = np.multiply(size, SPACING), grid(size, SPACING, np.zeros(3))
    np.save(folder / "p.npy", softmax(network_logits(size_mm, classes, axes), axis=0))
    np.save(folder / "y.npy", true_labels(size_mm, classes, axes))


def exact_ece(p: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of each class, in float64 and integers, voxel by voxel."""
    errors = []
    for c, row in enumerate(p.reshape(len(p), -1)):
        row = row.astype(np.float64)
        gaps = np.bincount(np.minimum((row * BINS).astype(int), BINS - 1), row - (y.ravel() == c), BINS)
        errors.append(np.abs(gaps).sum() / row.size)
    return np.array(errors)


Measurement = Callable[[], Any]  # returns the ECE of each class, or nothing that could be compared


def ours(p: np.ndarray, y: np.ndarray) -> Measurement:
    """All that is kept of a case: three scopes, scores, the voxel sample."""
    from nnunet_calib import CaseStatistics, calibration_errors

    return lambda: calibration_errors(CaseStatistics.from_probabilities(p, y, spacing=SPACING), BINS)["ece"]


def our_binning(p: np.ndarray, y: np.ndarray) -> Measurement:
    """The histograms and scores alone, of all classes and of the top label."""
    from nnunet_calib.case_pass import Volume

    volume = Volume(p, y, None, np.zeros_like(y), tuple(slice(0, n) for n in y.shape), None)

    def measure() -> np.ndarray:
        histograms = volume.histograms().scope("image")
        gaps = (histograms.probability - histograms.positives).reshape(len(p) + 1, BINS, -1).sum(2)
        return np.abs(gaps).sum(1)[:-1] / histograms.voxels

    return measure


def monai(p: np.ndarray, y: np.ndarray) -> Measurement:
    """The one-hot labels that it takes are made beforehand."""
    import torch
    from monai.metrics import CalibrationErrorMetric

    one_hot = np.zeros_like(p)
    np.put_along_axis(one_hot, y[None], 1, 0)
    inputs = torch.from_numpy(p)[None], torch.from_numpy(one_hot)[None]
    return lambda: CalibrationErrorMetric(BINS, metric_reduction="none")(*inputs)[0].numpy()


def monai_from_labels(p: np.ndarray, y: np.ndarray) -> Measurement:
    """The same from a label map, with the one-hot encoding that MONAI's example shows."""
    import torch
    from monai.metrics import CalibrationErrorMetric
    from monai.transforms import AsDiscrete

    probabilities, labels = torch.from_numpy(p)[None], torch.from_numpy(y)[None]

    def measure() -> np.ndarray:
        one_hot = AsDiscrete(to_onehot=len(p))(labels)[None]
        return CalibrationErrorMetric(BINS, metric_reduction="none")(probabilities, one_hot)[0].numpy()

    return measure


def torchmetrics(p: np.ndarray, y: np.ndarray) -> Measurement:
    """Of the top label only."""
    import torch
    from torchmetrics.functional.classification import multiclass_calibration_error

    inputs = torch.from_numpy(p.reshape(1, len(p), -1)), torch.from_numpy(y.reshape(1, -1).astype(np.int64))
    return lambda: multiclass_calibration_error(*inputs, num_classes=len(p), n_bins=BINS) and None


def netcal(p: np.ndarray, y: np.ndarray) -> Measurement:
    """Of the top label only."""
    from netcal.metrics import ECE

    inputs = np.ascontiguousarray(p.reshape(len(p), -1).T), y.ravel()
    return lambda: ECE(BINS).measure(*inputs) and None


METRICS = {f.__name__: f for f in (our_binning, ours, monai, monai_from_labels, torchmetrics, netcal)}
EXPORTS = ("alone", "npz", "measured")


def run_metric(folder: Path, what: str) -> dict[str, Any]:
    """One metric in a fresh process."""
    p, y = np.load(folder / "p.npy"), np.load(folder / "y.npy")
    measure = METRICS[what](p, y)
    before, times = reset_peak(), []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        ece = measure()
        times.append(time.perf_counter() - start)
    seconds, peak = median(times), peak_memory() - before
    error = None if ece is None else float(np.abs(ece / exact_ece(p, y) - 1).max())
    return {"seconds": seconds, "peak": peak, "error": error}


def status_bytes(field: str) -> int:
    """Of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def reset_peak() -> int:
    """Forget the largest memory so far; returns the present one."""
    Path("/proc/self/clear_refs").write_text("5")
    return status_bytes("VmRSS")


def peak_memory() -> int:
    """The largest memory since `reset_peak`."""
    return status_bytes("VmHWM")


def in_fresh_process(step: str, folder: Path, options: argparse.Namespace, classes: int) -> dict[str, Any]:
    """What a run prints as its last line, or why there is none."""
    command = [sys.executable, __file__, options.what, "--step", step, "--folder", str(folder)]
    command += ["--classes", str(classes), "--size", *map(str, options.size)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        return {"failed": result.stderr.strip().splitlines()[-1] if result.stderr.strip() else "killed"}
    return json.loads(result.stdout.splitlines()[-1])


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("export", "metrics"), default="export")
    parser.add_argument("--size", type=int, nargs=3, default=[200, 512, 512], help="slices first")
    parser.add_argument("--classes", type=int, nargs="+", default=[14])
    parser.add_argument("--only", nargs="+", choices=(*EXPORTS, *METRICS), help="some of the runs")
    parser.add_argument("--folder", type=Path, help="where the files of a run go; a temporary folder by default")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step == "make":
        make = make_export if options.what == "export" else make_metrics
        make(options.folder, tuple(options.size), options.classes[0])
        print("{}")
    elif options.step:
        print(json.dumps((run_export if options.what == "export" else run_metric)(options.folder, options.step)))
    else:
        for classes in options.classes:
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                compare(Path(folder), options, classes)


def compare(folder: Path, options: argparse.Namespace, classes: int) -> None:
    """Print the table of one case."""
    if failed := in_fresh_process("make", folder, options, classes).get("failed"):
        raise RuntimeError(failed)
    print(f"\n{' x '.join(map(str, options.size))}, {classes} classes\n")
    columns = ("seconds", "peak", "written") if options.what == "export" else ("seconds", "peak", "error")
    print(f"| {options.what} | " + " | ".join(columns) + " |\n" + "|---" * (1 + len(columns)) + "|", flush=True)
    for step in EXPORTS if options.what == "export" else METRICS:
        if options.only and step not in options.only:
            continue
        result = in_fresh_process(step, folder, options, classes)
        cells = [result["failed"]] if "failed" in result else [readable(name, result[name]) for name in columns]
        print(f"| {step} | " + " | ".join(cells) + " |", flush=True)


def readable(name: str, value: float | None) -> str:
    """A number of a table."""
    if value is None:
        return ""
    return {"seconds": f"{value:.2f} s", "error": f"{value:.1e}"}.get(name, f"{value / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()

"""Cost of measuring calibration: in nnU-Net's export of a CT-sized case, and beside other libraries' metrics.

    python benchmarks/measuring.py                                  # 512 x 512 x 200, 14 classes: 15 GB of memory
    python benchmarks/measuring.py --size 100 256 256               # an eighth of it
    python benchmarks/measuring.py metrics --size 100 320 312 --classes 4 14
    python benchmarks/measuring.py metrics --size 300 320 312 --classes 2 --case background

`export` runs nnU-Net's own `export_prediction_from_logits` on float32 logits at the network's spacing: alone, with
`--npz`, and with the measuring that nnunet_calib adds. `metrics` measures probabilities that lie in memory, and also
uses torchmetrics and netcal where they are installed. Each run is a process of its own. Its peak memory (Linux only) is
what it takes beyond the Python it starts with, or, for metrics, beyond its inputs.
"""

from __future__ import annotations

import argparse
import json
import pickle
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from ct_case import NETWORK_SPACING, SPACING, grid, network_logits, true_labels
from metrics import CASES, METRICS, exact_ece

CASE = "case"


def make_export(folder: Path, size: tuple[int, ...], classes: int) -> None:
    """Write logits, ground truth and nnU-Net's files; the crop leaves out a tenth of the image in the plane."""
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
        "dataset_name": "Dataset001_Benchmark",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {
            "3d_fullres": {
                "spacing": NETWORK_SPACING,
                "architecture": {},
                "resampling_fn_probabilities_kwargs": probabilities,
                "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
            }
        },
    }
    labels = {"background": 0} | {f"organ {c}": c for c in range(1, classes)}
    dataset = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz", "numTraining": 1}
    properties = {
        "spacing": list(SPACING),
        "shape_before_cropping": size,
        "bbox_used_for_cropping": box,
        "shape_after_cropping_and_before_resampling": cropped,
        "sitk_stuff": {f: getattr(image, f"Get{f.title()}")() for f in ("spacing", "origin", "direction")},
    }
    (folder / "case.pkl").write_bytes(pickle.dumps((plans, dataset, properties)))


def run_export(folder: Path, what: str) -> dict[str, Any]:
    """Run one export, as nnU-Net's worker does, in a fresh process."""
    from nnunetv2.inference.export_prediction import export_prediction_from_logits
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnunet_calib.nnunet.validation.export_worker import ExportAndMeasure
    from nnunet_calib.results.heads import Heads
    from nnunet_calib.results.layout import case_file, failure_file

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
        logits,
        properties,
        manager.get_configuration("3d_fullres"),
        manager,
        dataset,
        str(output / CASE),
        save_probabilities=what == "npz",
    )
    seconds = time.perf_counter() - start
    if failure_file(case_file(output, CASE)).exists():
        raise RuntimeError(failure_file(case_file(output, CASE)).read_text())
    written = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    return {"seconds": seconds, "peak": peak_memory() - before, "written": written}


EXPORTS = ("alone", "npz", "measured")


def run_metric(folder: Path, what: str, rounds: int) -> dict[str, Any]:
    """Run one metric in a fresh process."""
    p, y = np.load(folder / "p.npy"), np.load(folder / "y.npy")
    measure = METRICS[what](p, y)
    before, times = reset_peak(), []
    for _ in range(rounds):
        start = time.perf_counter()
        ece = measure()
        times.append(time.perf_counter() - start)
    seconds, peak = median(times), peak_memory() - before
    error = None if ece is None else float(np.abs(ece / exact_ece(p, y) - 1).max())
    return {"seconds": seconds, "peak": peak, "error": error}


def status_bytes(field: str) -> int:
    """Return a value of this process's status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def reset_peak() -> int:
    """Reset the peak memory, and return the current one."""
    Path("/proc/self/clear_refs").write_text("5")
    return status_bytes("VmRSS")


def peak_memory() -> int:
    """Return the peak memory since `reset_peak`."""
    return status_bytes("VmHWM")


def in_fresh_process(step: str, folder: Path, options: argparse.Namespace, classes: int) -> dict[str, Any]:
    """Return the last line that a run prints, or the reason for its failure."""
    command = [sys.executable, __file__, options.what, "--step", step, "--folder", str(folder)]
    command += ["--classes", str(classes), "--size", *map(str, options.size)]
    command += ["--case", options.case, "--rounds", str(options.rounds)]
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
    parser.add_argument("--case", choices=CASES, default="organs", help="of metrics: background puts 98 %% in one bin")
    parser.add_argument("--rounds", type=int, default=3, help="of each metric; the median counts")
    parser.add_argument("--only", nargs="+", choices=(*EXPORTS, *METRICS), help="some of the runs")
    parser.add_argument("--folder", type=Path, help="where the files of a run go; a temporary folder by default")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step == "make":
        make = make_export if options.what == "export" else CASES[options.case]
        make(options.folder, tuple(options.size), options.classes[0])
        print("{}")
    elif options.step:
        metrics = options.what == "metrics"
        print(
            json.dumps(
                run_metric(options.folder, options.step, options.rounds)
                if metrics
                else run_export(options.folder, options.step)
            )
        )
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
    """Format a value for the table."""
    if value is None:
        return ""
    return {"seconds": f"{value:.2f} s", "error": f"{value:.1e}"}.get(name, f"{value / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()

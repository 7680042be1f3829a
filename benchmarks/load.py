"""Cost of a large cross-validation: 300 cases of 5 million voxels and 15 classes, and a merge of 100,000 cases.

    python benchmarks/load.py make /tmp/load        # the statistics of 300 cases in five folds, 1 GB
    python benchmarks/load.py run /tmp/load         # crossval and report of them, each a process of its own
    python benchmarks/load.py merge /tmp/load       # 100,000 cases, one after the other

What crossval and report cost depends on the statistics that are kept of the cases, not on their images. So a few cases
are measured, and the others are copies of theirs under other names. Peak memory is that of the whole process (Linux).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from ct_case import SPACING, grid, network_logits, true_labels
from scipy.special import softmax

from nnunet_calib import CaseStatistics, calibration_errors
from nnunet_calib.results.fold_summary import FORMAT_VERSION
from nnunet_calib.results.heads import Heads
from nnunet_calib.results.layout import ModelFolder, case_file

DATASET, TRAINER, PLANS, CONFIGURATION = "Dataset001_Load", "nnUNetTrainerCalib", "nnUNetPlans", "3d_fullres"
SIZE = (128, 208, 192)
CLASSES, FOLDS, DISTINCT = 15, 5, 10


def model_folder(root: Path) -> ModelFolder:
    """Return the model folder."""
    return ModelFolder.below(root / "results", DATASET, TRAINER, PLANS, CONFIGURATION)


def measured(number: int, size: tuple[int, ...]) -> CaseStatistics:
    """Return the statistics of a case; each has another view, and higher confidence than the one before."""
    size_mm = np.multiply(size, SPACING)
    axes = grid(size, SPACING, np.zeros(3))
    labels = np.roll(true_labels(size_mm, CLASSES, axes), number % 3, number % 2)
    logits = network_logits(size_mm, CLASSES, axes) * np.float32(1 + number / 20)
    return CaseStatistics.from_probabilities(softmax(logits, axis=0), labels, spacing=SPACING)


def make(root: Path, cases: int, size: tuple[int, ...]) -> None:
    """Write the folds as the validation hook leaves them."""
    folder = model_folder(root)
    names = tuple(str(c) for c in range(CLASSES))
    heads = asdict(Heads(names, ("background", *(f"organ {c}" for c in names[1:])), None, None))
    models = [{**folder.identity, "fold": fold, "weights_sha256": f"weights {fold}"} for fold in range(FOLDS)]
    for fold in range(FOLDS):
        (folder.calibration(fold) / "cases").mkdir(parents=True, exist_ok=True)
    for number in range(DISTINCT):
        statistics = measured(number, size)
        for case in range(number, cases, DISTINCT):
            name, model = f"case_{case:06}", models[case % FOLDS]
            path = case_file(folder.calibration(case % FOLDS), name)
            replace(statistics, cases=(name,), model=model).save(path)
        print(f"{number + 1} of {DISTINCT} cases measured and copied", flush=True)
    for fold, model in enumerate(models):
        rows = [{"case": f"case_{case:06}"} for case in range(fold, cases, FOLDS)]
        summary = {"format_version": FORMAT_VERSION, "model": model, "heads": heads, "missing_cases": []}
        (folder.calibration(fold) / "summary.json").write_text(json.dumps(summary | {"metric_per_case": rows}))


def run(root: Path) -> None:
    """Run the two commands, and print their wall time, CPU time and peak memory."""
    arguments = ["-d", DATASET, "-c", CONFIGURATION, "-tr", TRAINER, "-f", *map(str, range(FOLDS))]
    environment = os.environ | {"nnUNet_results": str(root / "results")}
    environment = {name: value for name, value in environment.items() if name not in ("nnUNet_raw",)}
    print("| command | wall time | CPU time | peak memory |\n|---|---|---|---|")
    for command in ("crossval", "report"):
        call = [sys.executable, "-m", "nnunet_calib.cli", command, *arguments]
        start = time.perf_counter()
        process = subprocess.Popen(call, env=environment, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)  # of this child alone
        if status:
            raise RuntimeError(f"{command} failed")
        wall, cpu = time.perf_counter() - start, usage.ru_utime + usage.ru_stime
        print(f"| {command} | {wall:.0f} s | {cpu:.0f} s | {usage.ru_maxrss / 1024:.0f} MiB |", flush=True)


def merge(root: Path, cases: int) -> None:
    """Merge the histograms of very many cases, one at a time, as a study over many sites would."""
    paths = sorted(model_folder(root).glob("fold_*/validation/calibration/cases/*.npz"))[: 4 * DISTINCT]
    start = time.perf_counter()
    loaded = [CaseStatistics.load(path).without_voxels() for path in paths]
    print(f"reading: {1000 * (time.perf_counter() - start) / len(paths):.1f} ms per case")

    def arriving() -> Iterator[CaseStatistics]:
        for number in range(cases):
            yield replace(loaded[number % len(loaded)], cases=(f"case_{number:06}",))

    before, start = _peak_mib(), time.perf_counter()
    merged = CaseStatistics.merge(arriving())
    seconds = time.perf_counter() - start
    print(
        f"merging {cases} cases: {seconds:.1f} s, {1e6 * seconds / cases:.0f} us per case, peak memory "
        f"{_peak_mib():.0f} MiB, {_peak_mib() - before:.0f} MiB more than before"
    )
    rounds, rest = divmod(cases, len(loaded))
    voxels = sum(int(s.histograms.voxels.sum()) * (rounds + (i < rest)) for i, s in enumerate(loaded))
    if int(merged.histograms.voxels.sum()) != voxels or len(merged.cases) != cases:
        raise RuntimeError("voxels or cases were lost")
    print(f"{voxels} voxels, top-label ECE {float(calibration_errors(merged)['top_label_ece']):.6f}")


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Parse arguments, then make, run or merge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["make", "run", "merge"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cases", type=int, help="default: 300 are made, 100,000 merged")
    parser.add_argument("--size", type=int, nargs=3, default=SIZE, help="voxels along each axis of a case")
    args = parser.parse_args()
    if args.action == "make":
        make(args.folder, args.cases or 300, tuple(args.size))
    elif args.action == "run":
        run(args.folder)
    else:
        merge(args.folder, args.cases or 100_000)


if __name__ == "__main__":
    main()

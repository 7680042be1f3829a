"""Cost of maps: `nnunet_calib predict` beside `nnUNetv2_predict`, with and without --save_probabilities.

    python benchmarks/predicting.py -i images -d 4 -c 3d_fullres -tr nnUNetTrainerNACL -f 0
    python benchmarks/predicting.py -i images -d 4 -c 3d_fullres -tr nnUNetTrainerNACL -f 0 --cases 1 --size 160 256 256

All predict the same images (.nii.gz) with the same checkpoints on the CPU, taking turns, from the start of Python to
its end. CPU time is that of all processes of a command, memory the largest sum over them (proportional set size, so
that what they share counts once), looked up 20 times a second; Linux only. The segmentations are checked to be equal.
"""

from __future__ import annotations

import argparse
import json
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import SimpleITK as sitk

MAPS = ["--maps", "probabilities", "entropy", "confidence"]
STOCK = [str(Path(sys.executable).with_name("nnUNetv2_predict"))]
OURS = [sys.executable, "-m", "nnunet_calib.cli", "predict"]
COMMANDS = {
    "nnUNetv2_predict": STOCK,
    "nnUNetv2_predict --save_probabilities": [*STOCK, "--save_probabilities"],
    "nnunet_calib predict": [*OURS, *MAPS],
    "nnunet_calib predict --temperature folds": [*OURS, *MAPS, "--temperature", "folds"],
    "nnunet_calib predict --average probabilities": [*OURS, *MAPS, "--average", "probabilities"],
}


def family(pid: int) -> list[int]:
    """Return the ids of a process and of its descendants."""
    try:
        tasks = [*Path(f"/proc/{pid}/task").iterdir()]
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:  # it has ended
        return []
    return [pid, *(descendant for child in children for descendant in family(child))]


def memory_mib(pid: int) -> float:
    """Return the current memory of a process and its descendants."""
    total = 0
    for member in family(pid):
        try:
            lines = Path(f"/proc/{member}/smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        except (OSError, StopIteration):
            continue
    return total / 1024


def run(command: list[str]) -> dict[str, float]:
    """Return seconds, CPU seconds and MiB of a command, which must succeed."""
    with tempfile.TemporaryFile() as told:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=told, stderr=subprocess.STDOUT)
        peak = 0.0
        while process.poll() is None:
            peak = max(peak, memory_mib(process.pid))
            time.sleep(0.05)
        seconds = time.perf_counter() - start
        told.seek(0)
        if process.returncode:
            raise RuntimeError(f"{shlex.join(command)} failed:\n{told.read().decode()[-3000:]}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {"seconds": seconds, "cpu": used.ru_utime + used.ru_stime, "mib": peak}


def enlarged(images: Path, size: list[int], folder: Path) -> Path:
    """Write the images, repeated in all directions up to a size (z, y, x)."""
    folder.mkdir()
    for path in sorted(images.glob("*.nii.gz")):
        image = sitk.ReadImage(str(path))
        array = sitk.GetArrayFromImage(image)
        repeats = [-(-n // old) for n, old in zip(size, array.shape, strict=True)]
        larger = sitk.GetImageFromArray(np.tile(array, repeats)[tuple(slice(n) for n in size)])
        larger.SetSpacing(image.GetSpacing())
        sitk.WriteImage(larger, str(folder / path.name))
    return folder


def main() -> None:
    """Run the benchmark."""
    if sys.argv[1] == "one":
        print(json.dumps(run(sys.argv[2:])))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-i", dest="images", type=Path, required=True)
    parser.add_argument("--size", type=int, nargs=3, metavar=("Z", "Y", "X"), help="repeat images up to this size")
    parser.add_argument("--cases", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--commands", type=int, nargs="+", default=[0, 1, 2], help=f"of {', '.join(COMMANDS)}; from 0")
    parser.add_argument("--prefix", default="", help="what runs each command, such as taskset -c 0,1")
    parser.epilog = "All other options are those of the model, as for nnUNetv2_predict."
    args, model = parser.parse_known_args()
    chosen = [list(COMMANDS)[i] for i in args.commands]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in chosen}
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder, "images")
        images.mkdir()
        for path in sorted(args.images.glob("*_0000.nii.gz"))[: args.cases]:
            (images / path.name).symlink_to(path.resolve())
        if args.size:
            images = enlarged(images, args.size, Path(folder, "enlarged"))
        for turn in range(args.rounds):
            for name in chosen[turn % len(chosen) :] + chosen[: turn % len(chosen)]:
                output = Path(folder, f"{turn}_{chosen.index(name)}")
                command = [*COMMANDS[name], "-i", str(images), "-o", str(output), "-device", "cpu", *model]
                told = subprocess.run(
                    [*shlex.split(args.prefix), sys.executable, __file__, "one", *command],
                    check=True,
                    stdout=subprocess.PIPE,
                    text=True,
                ).stdout
                files = [path for path in output.rglob("*") if path.is_file()]
                found[name].append(json.loads(told) | {"written": sum(p.stat().st_size for p in files) / 2**20})
                print(turn, name, found[name][-1], file=sys.stderr, flush=True)
                for path in Path(folder, "0_0").glob("*.nii.gz"):
                    assert (output / path.name).read_bytes() == path.read_bytes(), f"another segmentation, {name}"
    print("| | wall time | CPU time | peak memory | written |\n|---|---|---|---|---|")
    for name, runs in found.items():
        seconds, cpu, mib, written = (median(r[key] for r in runs) for key in ("seconds", "cpu", "mib", "written"))
        print(f"| `{name}` | {seconds:.1f} s | {cpu:.1f} s | {mib:.0f} MiB | {written:.1f} MiB |")


if __name__ == "__main__":
    main()

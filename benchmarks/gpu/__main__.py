"""Measure on a GPU, in under ten minutes, all that is otherwise only counted or estimated.

    python -m benchmarks.gpu [--parts correctness losses training scaler ranks] [--classes 2 4 15 62]
    python -m benchmarks.gpu --cpu      # everything at tiny sizes, to see that it runs

Prints tables in Markdown for docs/performance.md. Status 1 if a backend disagrees with the formulas, a step waits for
the device, or a calibration loss makes the gradient scaler skip more steps than nnU-Net's own loss.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import torch

from benchmarks.gpu import losses, ranks, training
from benchmarks.gpu.setting import Setting

PARTS: dict[str, Callable[[Setting], bool]] = {
    "correctness": losses.correctness,
    "losses": losses.costs,
    "training": training.steps,
    "scaler": training.scaler,
    "ranks": ranks.compare,
}


def main(arguments: list[str] | None = None) -> int:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description="Measure the losses on a GPU.")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--classes", type=int, nargs="+", default=[2, 4, 15, 62])
    parser.add_argument("--size", type=int, default=128, help="edge length of the volumes of the losses")
    parser.add_argument("--cpu", action="store_true", help="tiny sizes on the CPU; its times mean nothing")
    options = parser.parse_args(arguments)
    if not options.cpu and not torch.cuda.is_available():
        print("expected a GPU that PyTorch can use, found none: run with --cpu to try the code", file=sys.stderr)
        return 2
    setting = Setting.tiny() if options.cpu else Setting.of_gpu(options.size, tuple(options.classes))
    print(f"PyTorch {torch.__version__}, {setting.device_name}, backends: {', '.join(setting.backends)}")
    good = True
    for name in options.parts:
        started = time.perf_counter()
        print(f"\n## {name}\n", flush=True)
        good = PARTS[name](setting) and good
        print(f"\n({time.perf_counter() - started:.0f} s)", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

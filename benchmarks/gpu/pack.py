"""Pack the measurements for a machine with a GPU and PyTorch, but without a network.

    python -m benchmarks.gpu.pack gpu_kit

Run it with the Python version of that machine, on the same system and processor. Copy the folder there, and run
`bash gpu_kit/run.sh`. Of nnU-Net's dependencies only those are packed that are small and rarely installed.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LARGEST = 64 * 2**20  # bytes

# Some of these are published as source only, and `pip wheel` builds them. Left out: PyTorch, NumPy, SciPy and what
# usually comes with them; imagecodecs, which is large and reads no format of ours; SimpleITK, see below.
PACKAGES = (
    "nnunetv2",
    "acvl-utils",
    "dynamic-network-architectures",
    "batchgenerators",
    "batchgeneratorsv2",
    "nibabel",
    "blosc2",
    "ndindex",
    "numexpr",
    "connected-components-3d",
    "fft-conv-pytorch",
    "future",
    "graphviz",
    "yacs",
)
STUB = '"""Empty: nnU-Net imports SimpleITK wherever it reads images, and here none is read."""\n'
RUN = """#!/usr/bin/env bash
# Install the packed wheels beside this file and measure; arguments go on to `python -m benchmarks.gpu`.
set -euo pipefail
cd "$(dirname "$0")"
python=${PYTHON:-python3}
if [ ! -d packages ]; then
    "$python" -m pip install --quiet --no-index --no-deps --target unpacked wheels/*.whl
    cp -n stubs/*.py unpacked/
    mv unpacked packages
fi
PYTHONPATH="$PWD/packages:$PWD" exec "$python" -m benchmarks.gpu "$@"
"""


def installed(name: str) -> str | None:
    """Return a requirement of the version that is here, or None: not every version of nnU-Net needs each of them."""
    try:
        return f"{name}=={version(name)}"
    except PackageNotFoundError:
        return None


def pack(folder: Path, packages: tuple[str, ...] = PACKAGES) -> int:
    """Write the kit into a new folder; return its bytes."""
    folder.mkdir(parents=True)
    wanted = [pinned for name in packages if (pinned := installed(name))]
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder / "wheels")]
    subprocess.run([*pip, *wanted, str(ROOT)], check=True)
    source = Path("benchmarks", "gpu")
    shutil.copytree(ROOT / source, folder / source, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "stubs").mkdir()
    (folder / "stubs" / "SimpleITK.py").write_text(STUB)
    (folder / "run.sh").write_text(RUN)
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def main(arguments: list[str] | None = None) -> int:
    """Pack, and say how large it is."""
    parser = argparse.ArgumentParser(description="Pack the measurements for a machine with a GPU.")
    parser.add_argument("folder", type=Path, help="a folder that does not exist yet")
    options = parser.parse_args(arguments)
    if options.folder.exists():
        print(f"expected a folder that does not exist yet, got {options.folder}: give another", file=sys.stderr)
        return 2
    size = pack(options.folder)
    print(f"{options.folder}: {size / 2**20:.1f} MiB; copy it and run `bash {options.folder.name}/run.sh` there")
    if size > LARGEST:
        print(f"expected at most {LARGEST / 2**20:.0f} MiB, got {size / 2**20:.1f}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

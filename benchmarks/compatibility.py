"""Run the tests with chosen versions of Python and of libraries, and print a row for docs/compatibility.md.

    python benchmarks/compatibility.py --python python3.10 nnunetv2==2.8.0 torch==2.1.2 "numpy<2"
    python benchmarks/compatibility.py --python python3.13 nnunetv2==2.8.1 -- -m "slow or not slow" tests/nnunet

A virtual environment (about 6 GB) is made and removed in the end. --folder keeps it there, and is used as it is where
there is one already. pytest gets what follows `--`; its output goes to stderr. Where MONAI, the oracle of a test, does
not go with the versions, the test is left out.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = """
import platform
from importlib.metadata import version
print(platform.python_version(), *map(version, ["nnunetv2", "torch", "numpy"]), sep=" | ")
"""


def install(python: Path, constraints: Path) -> None:
    """Install this checkout, its requirements and pytest, and MONAI if it is available."""
    pip = [python, "-m", "pip", "install", "--quiet", "--constraint", constraints]
    subprocess.run([*pip, "--editable", ROOT, "pytest>=8", "pytest-xdist>=3.6"], check=True, stdout=sys.stderr)
    subprocess.run([*pip, "monai>=1.6"], check=False, stdout=sys.stderr)


def outcome(python: Path, options: list[str]) -> str:
    """Return the last line of pytest without the time."""
    path = os.pathsep.join([str(python.parent), os.environ["PATH"]])  # of the commands that tests run
    found = subprocess.run(
        [python, "-m", "pytest", "-q", *options],
        cwd=ROOT,
        env=os.environ | {"PATH": path},
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    print(found, file=sys.stderr)
    return re.sub(r" in [\d.]+s.*", "", found.strip().splitlines()[-1])


def main() -> None:
    """Make an environment, run the tests, print a row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="the interpreter (default: this one)")
    parser.add_argument("--folder", type=Path, help="of the environment (default: one that is removed in the end)")
    parser.add_argument("versions", nargs="*", help="as for pip, such as torch==2.6.0")
    given = [*sys.argv[1:], "--"]
    end = given.index("--")
    args, options = parser.parse_args(given[:end]), given[end + 1 : -1]
    folder = args.folder or Path(tempfile.mkdtemp(prefix="nnunet_calib_"))
    python = folder / "bin" / "python"
    try:
        if not python.exists():
            subprocess.run([args.python, "-m", "venv", folder], check=True)
            constraints = folder / "constraints.txt"
            constraints.write_text("\n".join(args.versions))
            install(python, constraints)
        versions = subprocess.run([python, "-c", VERSIONS], check=True, stdout=subprocess.PIPE, text=True).stdout
        print(f"| {versions.strip()} | {outcome(python, options)} |")
    finally:
        if args.folder is None:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()

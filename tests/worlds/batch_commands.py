"""The commands as batch scripts and workflows find them, in a folder for PATH."""

import os
import sys
from pathlib import Path

# figures take most of the time of crossval and report; their own tests draw them
NNUNET_CALIB = f"""#!{sys.executable}
import sys

from nnunet_calib.figures import fold_figures

fold_figures.FIGURES = ()
from nnunet_calib.cli import main

if __name__ == "__main__":  # and not in its worker processes
    sys.exit(main())
"""


def write_command(folder: Path, name: str, content: str) -> None:
    """Write an executable file."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(content)
    (folder / name).chmod(0o755)


def batch_path(folder: Path) -> str:
    """PATH with `nnunet_calib` without figures, and with what is beside this Python."""
    write_command(folder, "nnunet_calib", NNUNET_CALIB)
    return os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])

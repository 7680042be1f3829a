"""The notebooks of docs/notebooks, run; `python -m tests.worlds.notebooks` stores the outputs of a full run."""

from __future__ import annotations

import base64
import io
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "notebooks"
NAMES = ("calibrate", "threshold")  # the second needs what the first measures


def path_of(name: str) -> Path:
    """Return the file of a notebook."""
    return FOLDER / f"{name}.ipynb"


def run(name: str, folder: Path, sizes: Mapping[str, Any]) -> Any:
    """Return a notebook with the outputs of a run in a folder, which shows nothing of this machine.

    Args:
        name: of the notebook.
        folder: where it runs.
        sizes: constants of `nnunet_calib.demo`, by name.
    """
    notebook = nbformat.read(path_of(name), as_version=4)
    start = folder / ".ipython" / "profile_default" / "startup" / "prepare.py"
    start.parent.mkdir(parents=True, exist_ok=True)
    start.write_text(f"from tests.worlds.notebook_kernel import prepare\n\nprepare({dict(sizes)!r})\n")
    own = {"IPYTHONDIR": str(folder / ".ipython"), "JUPYTER_RUNTIME_DIR": str(folder / ".jupyter")}
    own |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "nnUNet_n_proc_DA": "0", "nnUNet_def_n_proc": "1"}
    client = NotebookClient(
        notebook,
        timeout=1200,
        startup_timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    # the kernel chooses how figures are shown
    client.execute(env={k: v for k, v in os.environ.items() if k != "MPLBACKEND"} | own)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.metadata.pop("execution", None)
            cell.outputs = _shown(cell.outputs, folder)
    return notebook


def texts(notebook: Any) -> str:
    """Return all text outputs."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "\n".join(output.get("text", "") for output in outputs)


def _shown(outputs: Sequence[Any], folder: Path) -> list[Any]:
    """Return the outputs without progress bars and messages, paths of this machine, and counts of executions."""
    shown: list[Any] = []
    for output in outputs:
        if output.output_type == "stream":
            if output.name == "stderr":
                continue
            output.text = output.text.replace(f"{folder.resolve()}/", "")
            if shown and shown[-1].output_type == "stream":
                shown[-1].text += output.text
                continue
        elif "image/png" in output.data:
            output.data = {"image/png": _with_few_colours(output.data["image/png"])}
        shown.append(output)
    return shown


def _with_few_colours(png: str) -> str:
    """Return a PNG of a third of the size."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").quantize(256).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def main() -> None:
    """Run both notebooks in a folder, by default a new one, and store their outputs."""
    given = sys.argv[1:]
    folder = Path(given[0] if given else tempfile.mkdtemp())
    for name in NAMES:
        nbformat.write(run(name, folder, {}), path_of(name))


if __name__ == "__main__":
    main()

"""The notebooks: run at a tiny size, linked, and stored with small outputs."""

import csv
import json
import re
from pathlib import Path

import pytest

from nnunet_calib import demo
from tests.worlds import notebooks

ROOT = Path(__file__).resolve().parents[1]
# a recall of .9 needs nine cases in the other folds, an interval of a volume 19 in all
SIZES = {"MODEL_CASES": 20, "EPOCHS": 1, "ITERATIONS": 10, "SHAPE": (4, 32, 32)}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of nnU-Net and Jupyter
def test_run(tmp_path):
    """Both run, one after the other in one folder, as a reader would run them."""
    check_calibrate(notebooks.run("calibrate", tmp_path, SIZES), tmp_path)
    check_threshold(notebooks.run("threshold", tmp_path, SIZES), tmp_path)


def check_calibrate(done, folder):
    """The model is measured, merged, predicted with and baked; each figure is shown."""
    said = notebooks.texts(done)
    assert "nnunet_calib: " not in said
    assert re.search(r"^T = \d+\.\d\d, standard error \d+\.\d\d, 20 cases$", said, re.MULTILINE)
    assert pictures(done) == 2
    assert len([*folder.glob("predictions/maps/probabilities/bright/*.nii.gz")]) == demo.NEW_CASES
    assert len([*folder.rglob("checkpoint_calibrated.pth")]) == 5


def check_threshold(done, folder):
    """The masks of both levels are predicted and drawn, and the volumes have intervals."""
    said = notebooks.texts(done)
    assert "nnunet_calib: " not in said
    assert len(re.findall(r"promised to miss at most (?:20|10)%, missed \d+\.\d%", said)) == 4
    assert pictures(done) == 1
    assert len([*folder.glob("contours/masks/recall_0.9/*/*.nii.gz")]) == 2 * demo.NEW_CASES
    rows = [*csv.DictReader((folder / "contours" / "maps" / "cases.csv").open(newline=""))]
    assert len(rows) == 2 * demo.NEW_CASES
    for row in rows:
        assert f"{float(row['low_ml']):5.1f} to {float(row['high_ml']):5.1f}" in said


def pictures(notebook):
    """How many figures are shown."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return sum("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)


@pytest.mark.parametrize("name", notebooks.NAMES)
def test_stored(name):
    """A notebook is small, has the outputs of a complete run without a trace of a machine, and is linked."""
    content = notebooks.path_of(name).read_text(encoding="utf-8")
    assert len(content) < 150_000
    cells = [cell for cell in json.loads(content)["cells"] if cell["cell_type"] == "code"]
    shown = "".join("".join(output.get("text", "")) for cell in cells for output in cell["outputs"])
    assert "nnunet_calib: " not in shown
    assert not re.search(r"/(?:home|root|tmp|Users)/", content)
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell["outputs"])
    assert {output["output_type"] for cell in cells for output in cell["outputs"]} <= {"stream", "display_data"}
    assert f"](notebooks/{name}.ipynb)" in (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert f"](docs/notebooks/{name}.ipynb)" in (ROOT / "README.md").read_text(encoding="utf-8")

"""What the commands write, and what a short training leaves, compared with `golden.json`.

A change of the layout of the code must leave all of it alone. Where a change of the output is meant, look at what
differs and record it again: NNUNET_CALIB_RECORD_GOLDEN=1 pytest -m slow tests/nnunet/test_golden.py
"""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from nnunet_calib import cli
from tests.nnunet.golden import differences, digest, environment
from tests.worlds import predicted_folder as predicted
from tests.worlds.compared_folds import COMPARE, TRAINER, two_models
from tests.worlds.measured_folds import CROSSVAL

RECORD = Path(__file__).with_name("golden.json")
MODEL = ["-d", "4", "-c", "3d_fullres", "-tr", TRAINER]

pytestmark = [
    pytest.mark.slow,
    # nnU-Net's own, on tiny data
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning", "ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def check(name: str, folder: Path, names: dict[str, str], tolerance: float = 1e-5, *, by_value: bool = False) -> None:
    """Hold every file of a folder to the record, by its bytes where that can be, or record it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    found = {path.relative_to(folder).as_posix(): digest(path, names) for path in files}
    record = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
    if os.environ.get("NNUNET_CALIB_RECORD_GOLDEN"):
        record |= {"environment": environment(), name: found}
        RECORD.write_text(json.dumps(record).replace("}, ", "},\n") + "\n")
        pytest.skip(f"recorded {len(found)} files")
    exact = record["environment"] == environment() and not by_value
    assert differences(found, record[name], exact=exact, tolerance=tolerance) == []


def run(*arguments: str) -> None:
    """Run a command that must succeed."""
    assert cli.main([*arguments]) == 0


@pytest.mark.parametrize("mode", ["labels", "regions_ignore"])
def test_predictions(tmp_path, mode):
    """`evaluate`, `fit` and `export` of a folder of predictions."""
    predicted.write_world(tmp_path, mode)
    pred = tmp_path / "pred"
    run(*predicted.arguments(tmp_path))
    shutil.move(pred / "calibration", tmp_path / "out" / "evaluate")
    run(*predicted.arguments(tmp_path, "fit"))
    shutil.move(pred / "calibration", tmp_path / "out" / "fit")
    temperature = tmp_path / "out" / "fit" / "temperature.json"
    maps = tmp_path / "out" / "export"
    run("export", "-i", str(pred), "-o", str(maps), "--temperature", str(temperature), "-np", "1")
    check(f"predictions {mode}", tmp_path / "out", {str(tmp_path): "FOLDER"})


def test_folds(tmp_path, monkeypatch):
    """`crossval`, `compare` and `report` of two measured models."""
    for name, value in two_models(tmp_path)[0].environment().items():
        monkeypatch.setenv(name, value)
    run(*CROSSVAL, "-f", "0", "1")
    run(*COMPARE, "-f", "0", "1")
    run("report", *MODEL, "-f", "0", "1")
    check("folds", tmp_path / "results", {str(tmp_path): "FOLDER"})


def test_bake(untrained, tmp_path):
    """A baked checkpoint's weights."""
    trainer = untrained("2d").make()
    run("bake", *untrained("2d").arguments, "-f", "0", "--temperature", "1.7")
    file = Path(trainer.output_folder) / "checkpoint_calibrated.pth"
    (tmp_path / "out").mkdir()
    shutil.copy(file, tmp_path / "out")
    check("bake", tmp_path / "out", {})


@pytest.mark.parametrize("name", ["NACL", "SVLS", "ML1ACE", "SoftML1ACE", "DiceML1ACE", "NACLML1ACE"])
@pytest.mark.parametrize("world", ["labels", "regions_ignore"], indirect=True)
def test_training(world, tmp_path, name, request):
    """The weights after two steps on made batches."""
    torch.manual_seed(0)
    trainer = world.trainer(f"nnUNetTrainer{name}", "3d_fullres")
    trainer.initialize()
    trainer.set_deep_supervision_enabled(True)
    heads = trainer.label_manager.num_segmentation_heads
    patch = trainer.configuration_manager.patch_size
    scales = trainer._get_deep_supervision_scales()
    for _ in range(2):
        data = torch.randn(2, 1, *patch)
        shapes = [[round(size * scale) for size, scale in zip(patch, scales_, strict=True)] for scales_ in scales]
        if trainer.label_manager.has_regions:
            target = [(torch.rand(2, heads + 1, *shape) < 0.4).float() for shape in shapes]
        else:
            target = [torch.randint(0, heads, (2, 1, *shape)).float() for shape in shapes]
        trainer.train_step({"data": data, "target": target})
    (tmp_path / "out").mkdir()
    torch.save({"network_weights": trainer.network.state_dict()}, tmp_path / "out" / "weights.pth")
    mode = request.node.callspec.params["world"]
    check(f"training {name} {mode}", tmp_path / "out", {}, tolerance=1e-4, by_value=True)


def test_the_check_fails(tmp_path):
    """A digest sees another word, another number, an exchange of numbers and, where bytes count, a last digit."""

    def of(text: str) -> dict:
        (tmp_path / "file.json").write_text(text)
        return {"file": digest(tmp_path / "file.json", {str(tmp_path): "FOLDER"})}

    before = of('{"ace": 0.25, "mce": 0.5}')
    assert differences(before, before, exact=True) == []
    assert differences(of('{"ece": 0.25, "mce": 0.5}'), before, exact=False) == ["file: another text or form"]
    assert differences(of('{"ace": 0.26, "mce": 0.5}'), before, exact=False) == ["file: other numbers"]
    assert differences(of('{"ace": 0.5, "mce": 0.25}'), before, exact=False) == ["file: other numbers"]
    assert differences(of('{"ace": 0.2500000001, "mce": 0.5}'), before, exact=True) == ["file: other bytes"]
    assert differences(of('{"ace": 0.2500000001, "mce": 0.5}'), before, exact=False) == []
    assert differences({}, before, exact=False) == ["file: only expected"]

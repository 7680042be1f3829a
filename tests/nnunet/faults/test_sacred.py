"""Whatever fails in our part of nnUNetv2_train, nnU-Net's own files are complete, and those of a run without it."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_calib.nnunet.training.pseudo_ace import PatchSums
from nnunet_calib.nnunet.validation import hook as validation
from nnunet_calib.nnunet.validation.export_worker import ExportAndMeasure
from nnunet_calib.trainers import nnUNetTrainerCalib
from tests.nnunet.faults.disks import full_disk, read_only_disk
from tests.nnunet.faults.processes import half_written, killed, needs_fork, one_figure, visible
from tests.nnunet.faults.training import (
    check_same_files,
    killed_training,
    log_of,
    nnunet_files,
    train,
    validate,
    validation_files,
)

pytestmark = [
    pytest.mark.slow,
    # nnU-Net's own, on tiny data
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning", "ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def fail(*arguments, **options):
    raise RuntimeError("out of order")


@pytest.fixture
def trained(make_trained):
    """The fold with labels, of a trainer that draws its figures."""
    return make_trained(trainer="nnUNetTrainerCalib_drawn")


@pytest.fixture
def again(trained, in_threads, monkeypatch):
    """Validates the fold once more, from nothing; checks nnU-Net's files, and returns what its log says since."""
    expected = nnunet_files(trained)
    assert len([name for name in expected if name.endswith((".nii.gz", ".npz", ".pkl"))]) == 15

    def run() -> str:
        before = log_of(trained)
        for name in validation_files(trained.fold):
            (trained.fold / "validation" / name).unlink()
        validate(trained)
        check_same_files(nnunet_files(trained), expected)
        return log_of(trained).removeprefix(before)

    with one_figure(monkeypatch):
        yield run


def test_cases(again, trained, monkeypatch):
    """Too much memory, NaN, a case that cannot be saved, figures that fail: all told, and the other cases measured."""
    own = ExportAndMeasure.measure

    def measure(self, case, logits, arguments):
        if case == "case.0":
            raise MemoryError
        if case == "case.1":
            logits = torch.as_tensor(logits) * np.nan
        return own(self, case, logits, arguments)

    monkeypatch.setattr(ExportAndMeasure, "measure", measure)
    monkeypatch.setattr(nnUNetTrainerCalib, "draw_figures", staticmethod(fail))
    trained.case_file(2).unlink()
    trained.case_file(2).mkdir()
    text = again()
    assert "case case.0:\nTraceback" in text
    assert "MemoryError" in text
    assert "expected probabilities in [0, 1], got values from nan to nan" in text
    assert "case case.2:\nTraceback" in text
    assert "RuntimeError: out of order" in text
    assert f"To measure again: nnunet_calib validate -d {trained.dataset} -c 3d_fullres" in text
    assert {path.name for path in trained.calibration.glob("cases/*.npz") if path.is_file()} == {
        "case.3.npz",
        "case.4.npz",
    }


def test_full_disk(again, trained):
    """Our folder takes no file: told, and no part of one is left."""
    with full_disk(trained.calibration) as without_mount:
        if without_mount is not None:
            pytest.skip("no disk can be mounted here, and a limit of the process would stop nnU-Net too")
        assert "Calibration was not measured" in again()
        assert not visible(trained.calibration)
        assert not half_written(trained.calibration)


def test_read_only_disk(again, trained):
    """Our folder only reads: told, and what was there is as it was."""
    hook = trained.results()
    with read_only_disk(trained.calibration):
        text = again()
    assert "Calibration was not measured" in text
    assert "Read-only file system" in text or "Permission denied" in text
    assert trained.results() == hook


@pytest.mark.parametrize("what", ["prepare", "merge"])
def test_telling_fails_too(again, monkeypatch, what):
    """Neither measuring nor telling works, as where nnU-Net has changed and its log takes no letter of a name."""
    monkeypatch.setattr(validation, "replaced" if what == "prepare" else "write_fold", fail)
    own = nnUNetTrainerCalib.print_to_log_file

    def no_text(self, *arguments, **options):
        if "Calibration was not" in str(arguments[0]):
            raise UnicodeEncodeError("ascii", "ü", 0, 1, "ordinal not in range")
        own(self, *arguments, **options)

    monkeypatch.setattr(nnUNetTrainerCalib, "print_to_log_file", no_text)
    assert "Calibration" not in again()


@needs_fork
def test_killed(again, trained):
    """While a case, the temperature, the summary or a figure is written; run again, everything is there."""
    hook = trained.results()
    for write in (1, 5 + 1, 5 + 2, 5 + 3):
        trained.without_results(npz=True)
        assert killed(lambda: validate(trained), write)
        assert half_written(trained.calibration)
        found = {name: content for name, content in trained.results().items() if ".tmp." not in name}
        assert {*found} <= {*hook}
        assert len(found) == min(write - 1, len(hook))
    again()
    ours = {name for name in trained.results() if ".tmp." not in name}
    assert ours == {*hook}


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_same_training(world, tmp_path, in_threads, monkeypatch):
    """With the same random numbers the same weights, in every checkpoint, though nothing of ours works in the epochs.

    And so they are after a kill in the middle of our figure of the first epoch.
    """
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    stock = train(world.dataset, "nnUNetTrainer_short", tmp_path)
    with one_figure(monkeypatch):
        assert killed_training(world.dataset, "nnUNetTrainerCalib_drawn", tmp_path, 2)  # after the split
        ours = tmp_path / world.dataset / "nnUNetTrainerCalib_drawn__nnUNetPlans__2d" / "fold_0"
        assert half_written(ours)[0].endswith("progress_calibration.png")
        assert not (ours / "progress_calibration.png").exists()
        with monkeypatch.context() as patch:
            patch.setattr(PatchSums, "add", fail)
            patch.setattr(nnUNetTrainerCalib, "draw_pseudo_ace", staticmethod(fail))
            train(world.dataset, "nnUNetTrainerCalib_drawn", tmp_path)
        check_same(stock, ours)
        train(world.dataset, "nnUNetTrainerCalib_drawn", tmp_path)
        check_same(stock, ours)
        assert (ours / "progress_calibration.png").is_file()


def check_same(stock: Path, ours: Path) -> None:
    """Checkpoints, but for the trainer's name and our own entries of the log, and the validation."""
    names = sorted(path.name for path in stock.glob("*.pth"))
    assert names == sorted(path.name for path in ours.glob("*.pth")) == ["checkpoint_best.pth", "checkpoint_final.pth"]
    for name in names:
        a, b = (torch.load(fold / name, weights_only=False) for fold in (stock, ours))
        assert a.keys() == b.keys()
        assert all(torch.equal(x, b["network_weights"][key]) for key, x in a["network_weights"].items())
        assert same(a["optimizer_state"], b["optimizer_state"])
        for key, values in a["logging"].items():
            if "timestamps" not in key:
                np.testing.assert_array_equal(values, b["logging"][key])
    check_same_files(validation_files(stock), validation_files(ours))
    assert os.listdir(ours / "validation" / "calibration" / "cases")


def same(a, b) -> bool:
    """Whether two trees of tensors and numbers are."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if torch.is_tensor(a) else a == b

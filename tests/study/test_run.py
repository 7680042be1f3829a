"""The runner, with a stand-in for nnU-Net's training command."""

import fcntl
import json
import os
import sys
from dataclasses import replace

import pytest

from benchmarks.study import run as runner
from benchmarks.study import settings

SUMMARY = {
    "model": {"hyperparameters": {"weight": 1.0}, "weights_sha256": "abc"},
    "temperature": {"temperature": 1.5, "standard_error": 0.1, "nll_before": 0.2, "nll_after": 0.1, "at_bound": False},
    "metrics": {
        stage: {
            "image": {
                "foreground_mean": {"ace": 0.1},
                "top_label": {"ece": 0.01},
                "nll": 0.2,
                "brier": 0.1,
                "per_class": {},
            }
        }
        for stage in ("uncalibrated", "calibrated")
    },
    "metric_per_case": [{}, {}],
}
DICE = {"foreground_mean": {"Dice": 0.8}, "mean": {"1": {"Dice": 0.85}, "2": {"Dice": 0.75}}}


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study of two runs whose data are preprocessed."""
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    for name in ("nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, "")  # the study sets them; they are restored
    monkeypatch.setenv(settings.CHOSEN, "")  # the command sets it; it is restored
    small = replace(settings.STUDIES["lidc"], folds=(0,), methods=("Calib", "NACL"), sweep=())
    monkeypatch.setitem(settings.STUDIES, "lidc", small)
    os.environ[settings.CHOSEN] = "lidc"
    study = runner.Study(tmp_path / "study")
    dataset = study.folder / "preprocessed" / f"Dataset{small.dataset:03d}_Test"
    dataset.mkdir()
    architecture = {"features_per_stage": [8], "n_conv_per_stage": [2], "n_conv_per_stage_decoder": [1]}
    configuration = {
        "patch_size": [8],
        "batch_size": 2,
        "spacing": [1.0],
        "batch_dice": False,
        "architecture": {"network_class_name": "UNet", "arch_kwargs": architecture},
    }
    plans = {"configurations": {small.configuration: configuration}}
    (dataset / f"{settings.SMALL_PLANS}.json").write_text(json.dumps(plans))
    monkeypatch.setattr(runner, "prepare", lambda environment: None)
    monkeypatch.setattr(sys, "argv", ["run", "lidc", str(study.folder)])
    return study


class Training:
    """Stands in for the training command: writes what nnU-Net and the hook would leave, and records the command."""

    returncode = 0

    def __init__(self, study):
        self.study = study
        self.done = []  # trainer, and whether it only validated
        self.continued = []  # trainers that went on from a checkpoint
        self.not_measured = set()

    def __call__(self, command, **_):
        """As subprocess.run."""
        method = command[command.index("-tr") + 1].removeprefix(settings.PREFIX)
        assert command[3:5] == ["516", "2d"]
        assert "--npz" in command
        self.done.append((method, "--val" in command))
        self.continued += [method] if "--c" in command else []
        folder = self.study.fold_folder(method, int(command[5]))
        (folder / "validation" / "calibration").mkdir(parents=True, exist_ok=True)
        (folder / "checkpoint_final.pth").touch()
        (folder / "validation" / "summary.json").write_text(json.dumps(DICE))
        if method not in self.not_measured:
            (folder / "validation" / "calibration" / "summary.json").write_text(json.dumps(SUMMARY))
        return self


@pytest.fixture
def training(study, monkeypatch):
    """Takes the place of the training command."""
    training = Training(study)
    monkeypatch.setattr(runner, "run", training)
    return training


def test_runs_once(study, training):
    """Each run of the queue is trained, its facts are kept, and a second start finds nothing to do."""
    runner.main()
    assert training.done == [("Calib", False), ("NACL", False)]
    facts = json.loads((study.runs / "NACL_fold0.json").read_text())
    assert facts["dice"] == {"foreground_mean": 0.8, "1": 0.85, "2": 0.75}
    assert facts["temperature"]["temperature"] == 1.5
    assert facts["run"]["seed"] == settings.SEED
    assert facts["hyperparameters"] == {"weight": 1.0}
    assert facts["cases"] == 2
    assert facts["settings"]["epochs"] == settings.STUDIES["lidc"].epochs
    assert facts["provenance"]["versions"]["torch"]
    assert "finished, Dice 0.8000, ACE 0.1000, T 1.500" in (study.folder / "STATUS").read_text()
    runner.main()
    assert len(training.done) == 2


def test_only_some(study, training, monkeypatch):
    """They run in the order given; an unknown name is refused before anything runs."""
    command = ["run", "lidc", str(study.folder), "--only"]
    monkeypatch.setattr(sys, "argv", [*command, "NACL_fold0", "Dice_fold0"])
    with pytest.raises(SystemExit, match="runs of the study, got Dice_fold0: it has Calib_fold0, NACL_fold0"):
        runner.main()
    assert not training.done
    monkeypatch.setattr(sys, "argv", [*command, "NACL_fold0", "Calib_fold0"])
    runner.main()
    assert training.done == [("NACL", False), ("Calib", False)]


def test_goes_on(study, training):
    """A training goes on from its checkpoint or begins anew; a validation that was killed is repeated."""
    killed, trained_only = study.fold_folder("Calib", 0), study.fold_folder("NACL", 0)
    for folder in (killed, trained_only):
        folder.mkdir(parents=True)
    (killed / "progress.png").touch()
    (trained_only / "checkpoint_final.pth").touch()
    runner.main()
    assert training.done == [("Calib", False), ("NACL", True)]
    assert not (killed / "progress.png").exists()

    def told(name):
        return json.loads((study.runs / f"{name}_fold0.json").read_text())["run"]

    assert told("NACL")["validation_only"] is True
    assert told("Calib")["continued"] is False
    assert training.continued == []

    (study.runs / "Calib_fold0.json").unlink()
    (killed / "checkpoint_final.pth").rename(killed / "checkpoint_latest.pth")
    runner.main()
    assert training.continued == ["Calib"]
    assert (killed / "checkpoint_latest.pth").exists()
    assert told("Calib")["continued"] is True


def test_a_failed_run_stops_no_other(study, training):
    """It is named in STATUS, has no facts, and is tried again at the next start."""
    training.not_measured.add("Calib")
    with pytest.raises(SystemExit):
        runner.main()
    assert sorted(path.name for path in study.runs.iterdir()) == ["NACL_fold0.json"]
    assert "failed: Calib_fold0" in (study.folder / "STATUS").read_text()
    training.not_measured.clear()
    runner.main()
    assert training.done[-1] == ("Calib", True)
    assert (study.runs / "Calib_fold0.json").is_file()


def test_other_settings_are_refused(study, training, monkeypatch):
    """Runs of other settings do not come into one folder."""
    runner.main()
    longer = replace(settings.STUDIES["lidc"], epochs=999)
    monkeypatch.setitem(settings.STUDIES, "lidc", longer)
    with pytest.raises(SystemExit, match=r"expected the settings of .* got others for epochs: name a new folder"):
        runner.main()


def test_a_second_runner_is_refused(study, training):
    """Two at work in one folder would train the same run."""
    with (study.folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)  # which only one who wants it alone minds
        with pytest.raises(SystemExit, match="expected nobody else at work"):
            runner.main()
    assert training.done == []

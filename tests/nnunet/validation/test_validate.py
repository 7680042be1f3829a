"""Folds that were trained earlier, measured by the command: the numbers of the hook, and nothing else is touched."""

import json
import shutil
from dataclasses import fields, replace

import numpy as np
import pytest

from nnunet_calib import CaseStatistics
from nnunet_calib.nnunet.training.mixins import CalibrationMixin
from nnunet_calib.nnunet.validation import trained_fold as revalidation
from tests.worlds.trained_fold import make_older, snapshot

pytestmark = [
    pytest.mark.slow,
    # nnU-Net's own, on tiny data
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning", "ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.mark.parametrize("mode", ["labels", "regions_ignore"])
def test_same_as_the_hook(make_trained, mode, in_threads):
    """From the checkpoint, every file has the bytes that the hook wrote after the training."""
    trained = make_trained(mode)
    hook = trained.results()
    assert {*hook} == {"summary.json", "temperature.json", *(f"cases/{case}.npz" for case in trained.cases)}
    assert trained.without_results().validate() == 0
    assert trained.results() == hook


def test_stock_trainer(make_trained, monkeypatch, capsys, in_threads):
    """nnU-Net's own trainer, without raw data: the same numbers; nnU-Net's files keep their bytes and times."""
    trained = make_trained(trainer="nnUNetTrainer_short")
    hook = json.loads((trained.calibration / "summary.json").read_text())
    trained.without_results()
    (trained.fold / "wandb").mkdir()  # which nnU-Net removes when a trainer starts anew
    (trained.fold / "wandb" / "run").write_text("of the training")
    monkeypatch.setenv("nnUNet_wandb_enabled", "1")
    before, prepared = snapshot(trained.model), snapshot(trained.preprocessed)
    assert trained.validate() == 0
    assert snapshot(trained.model) == before
    assert snapshot(trained.preprocessed) == prepared

    summary = json.loads((trained.calibration / "summary.json").read_text())
    assert summary["model"]["trainer"] == "nnUNetTrainer_short"
    assert summary["model"]["weights_sha256"] == hook["model"]["weights_sha256"]
    assert summary["metrics"] == hook["metrics"]
    assert summary["metric_per_case"] == hook["metric_per_case"]
    assert summary["temperature"]["in_sample"] is True
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "fold all"
    assert out[-1] == str(trained.calibration / "summary.json")


def test_from_npz(trained, monkeypatch):
    """nnU-Net's .npz give the counts of the logits, and their sums to 1e-6, without a network."""
    before = {number: CaseStatistics.load(trained.case_file(number)) for number in range(5)}
    trained.without_results(npz=True)
    monkeypatch.setattr(revalidation, "predict", None)
    assert trained.validate() == 0
    for number, hook in before.items():
        measured = CaseStatistics.load(trained.case_file(number))
        assert measured.model == hook.model
        for field in fields(hook.histograms):
            ours, theirs = (getattr(s.histograms, field.name) for s in (measured, hook))
            if ours.dtype.kind == "f":
                np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-9)
            else:
                np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(measured.sample.logits, hook.sample.logits)


class Stop(Exception):
    """Instead of predicting."""


@pytest.fixture
def to_predict(monkeypatch):
    """The cases that a call wants to predict."""

    def ask(trained, *options: str) -> list[str]:
        def stop(trainer, weights, cases, *others):
            raise Stop(*cases)

        monkeypatch.setattr(revalidation, "predict", stop)
        with pytest.raises(Stop) as stopped:
            trained.validate(*options)
        return list(stopped.value.args)

    return ask


def test_which_npz(trained, to_predict):
    """Not those that are incomplete, older than the checkpoint, of other heads, integers, or of another checkpoint."""
    trained.without_results(npz=True)
    validation = trained.fold / "validation"
    final = trained.fold / "checkpoint_final.pth"
    (validation / "case.0.npz").write_bytes((validation / "case.0.npz").read_bytes()[:-100])
    make_older(validation / "case.1.npz", than=final)
    np.savez_compressed(validation / "case.3.npz", probabilities=np.zeros((2, 5, 5, 5), np.float32))
    steps = np.rint(np.load(validation / "case.4.npz")["probabilities"] * 255).astype(np.uint8)
    np.savez_compressed(validation / "case.4.npz", probabilities=steps)
    assert to_predict(trained) == ["case.0", "case.1", "case.3", "case.4"]
    shutil.rmtree(trained.calibration)
    assert to_predict(trained, "--no-npz") == trained.cases
    shutil.copy2(final, trained.fold / "checkpoint_best.pth")
    assert to_predict(trained, "-chk", "checkpoint_best.pth") == trained.cases


def test_another_width_is_measured_again(trained, in_threads, monkeypatch, capsys):
    """Of the boundary scope: as asked for, or as the trainer has it; cases of one width are kept."""
    assert trained.validate("--boundary-mm", "1.25") == 0
    summary = json.loads((trained.calibration / "summary.json").read_text())
    assert summary["metrics"]["calibrated"]["boundary"]["definition"]["boundary_mm"] == 1.25
    assert summary["missing_cases"] == []
    assert {CaseStatistics.load(trained.case_file(number)).boundary_mm for number in range(5)} == {1.25}
    capsys.readouterr()
    monkeypatch.setattr(CalibrationMixin, "boundary_mm", 1.25)
    assert trained.validate() == 0
    assert "5 measured before" in capsys.readouterr().err
    assert trained.validate("--calibrator", "classwise") == 0
    assert "ECE T by class" in capsys.readouterr().out


def test_stale_files(trained, in_threads, capsys):
    """Files of other weights or plans, damaged ones and those of another format are measured again; others are kept."""
    hook = trained.results()
    for number, change in ((0, {"weights_sha256": "others"}), (1, {"plans_content_sha256": "others"})):
        case = CaseStatistics.load(trained.case_file(number))
        replace(case, model=case.model | change).save(trained.case_file(number))
    trained.case_file(2).write_bytes(b"PK")
    case = CaseStatistics.load(trained.case_file(3))
    older = {name: value for name, value in case.model.items() if name != "plans_sha256"}
    replace(case, model=older).save(trained.case_file(3))  # as files were before plans were recorded
    kept = {number: trained.case_file(number).stat().st_mtime_ns for number in (3, 4)}
    assert trained.validate("--no-npz") == 0
    assert "5 of 5 cases, 2 measured before, 0 with .npz, 3 to predict" in capsys.readouterr().err
    assert {number: trained.case_file(number).stat().st_mtime_ns for number in (3, 4)} == kept
    assert {name: content for name, content in trained.results().items() if "case.3" not in name} == {
        name: content for name, content in hook.items() if "case.3" not in name
    }


def test_parts(trained, in_threads, capsys):
    """Each part measures its share; the last one merges, and so does a call without parts: the same bytes."""
    hook = trained.results()
    trained.without_results()
    names = {number: f"cases/case.{number}.npz" for number in range(5)}
    assert trained.validate("-num_parts", "2", "-part_id", "1") == 0
    assert {*trained.results()} == {names[1], names[3]}
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "fold all: this part is measured, others are not" in captured.err
    assert trained.validate("-num_parts", "2", "-part_id", "0") == 0
    assert trained.results() == hook
    for name in ("summary.json", "temperature.json"):
        (trained.calibration / name).unlink()
    assert trained.validate() == 0
    assert trained.results() == hook

"""What is not measured, and in which words."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_calib import cli
from nnunet_calib.results.training_split import FILE
from tests.worlds.trained_fold import CONFIGURATION, PLANS, TRAINER, change_json, snapshot

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning", "ignore::ResourceWarning"),
]


@pytest.fixture
def said(trained, capsys):
    """The one sentence of a refusal, which leaves nnU-Net's files alone and measures nothing."""

    def run(*options: str, without_results: bool = True) -> str:
        if without_results:
            trained.without_results()
        before = snapshot(trained.model)
        assert trained.validate(*options) == 2
        assert snapshot(trained.model) == before
        assert not list(trained.calibration.glob("cases/*"))
        captured = capsys.readouterr()
        assert captured.out == ""
        (line,) = (line for line in captured.err.splitlines() if line.startswith("nnunet_calib: "))
        assert captured.err.splitlines()[-1] == line
        return line

    return run


def preprocess(trained) -> str:
    return f"make them again with nnUNetv2_preprocess -d {trained.dataset} -plans_name {PLANS} -c {CONFIGURATION}"


def test_unfinished_training(trained, said):
    """Other checkpoints are named, not taken; without one, how to train."""
    file = trained.fold / "checkpoint_final.pth"
    file.rename(trained.fold / "checkpoint_latest.pth")
    train = f"nnUNetv2_train {trained.dataset} {CONFIGURATION} all -tr {TRAINER} -p {PLANS}"
    others = "checkpoint_best.pth, checkpoint_latest.pth"
    assert (
        f"expected nnU-Net's checkpoint {file}, found none: finish the training with {train} --c, or name one of "
        f"{others} with -chk"
    ) in said("-f", "all")
    assert f"expected a fold with checkpoint_final.pth in {trained.model}, found none: train one, or name" in said()
    for path in trained.fold.glob("*.pth"):
        path.unlink()
    assert f"expected nnU-Net's checkpoint {file}, found none: train the fold with {train}" in said("-f", "all")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("-f", "3"), "{model}/fold_3/checkpoint_final.pth, found none: train the fold with nnUNetv2_train {dataset}"),
        (("-f", "all", "3"), "{model}/fold_3/checkpoint_final.pth, found none"),
        (("-num_parts", "3", "-part_id", "3"), "expected -part_id from 0 to -num_parts - 1 = 2, got 3: parts are"),
        (("-part_id", "-1"), "expected -part_id from 0 to -num_parts - 1 = 0, got -1"),
    ],
)
def test_options(trained, said, options, text):
    """Folds and parts that there are not."""
    assert text.format(model=trained.model, dataset=trained.dataset) in said(*options)


def test_unknown_trainer(trained, said, monkeypatch):
    """That of another package, whose folder nnUNet_extTrainer does not name."""
    monkeypatch.delenv("nnUNet_extTrainer")
    assert (
        f"expected a trainer that nnU-Net finds, got {TRAINER}: set nnUNet_extTrainer (now unset) as it was for the "
        f"training; nnunet_calib trainers --path prints the folder of this package's trainers"
    ) in said()


def test_preprocessed_data(trained, said, monkeypatch):
    """One case of a fold, all of them, and the variable: what to type."""
    images = trained.preprocessed / f"{PLANS}_{CONFIGURATION}"
    split_in_two(trained)
    for path in images.glob("case.2*"):
        path.unlink()
    text = f"expected preprocessed images in {images}, found none of case.2: {preprocess(trained)}"
    assert text in said("-f", "0")
    shutil.rmtree(images)
    assert f"expected preprocessed images in {images}, found none: {preprocess(trained)}" in said()
    monkeypatch.delenv("nnUNet_preprocessed")
    assert "expected nnUNet_preprocessed to name the folder of nnU-Net's preprocessed data, found it unset" in said()


def test_ground_truth(trained, said):
    """By name, with what to type."""
    labels = trained.preprocessed / "gt_segmentations"
    (labels / "case.2.nii.gz").unlink()
    assert (
        f"expected a label map that ends with .nii.gz for each validation case in {labels}, found none of case.2: "
        f"{preprocess(trained)}, or copy those of nnUNet_raw"
    ) in said()


def test_device(said, monkeypatch):
    """No CUDA device, which the command takes by default."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    text = "expected a CUDA device to predict 5 cases with, found none: predict on another with -device cpu or -device"
    assert text in said("-device", "cuda")


def test_other_labels(trained, said, in_threads):
    """A dataset.json, or plans, that are not those of the checkpoint."""
    change_json(trained.model / "dataset.json", labels={"background": 0, "bright": 1})
    assert (
        "expected a checkpoint that fits the plans and the 2 labels or regions of the model's folder, found another "
        "network in it (size mismatch for decoder.seg_layers."
    ) in said()
    change_json(trained.model / "dataset.json", labels={"background": 0, "any": [1, 2], "dark": 2})
    assert "expected dataset.json to give regions_class_order with 2 labels" in said()
    plans = json.loads((trained.model / "plans.json").read_text())
    change_json(trained.model / "plans.json", configurations={"2d": plans["configurations"]["2d"]})
    change_json(trained.model / "dataset.json", labels={"background": 0, "bright": 1, "dark": 2})
    assert f"expected the configuration 3d_fullres in {trained.model / 'plans.json'}, found 2d: restore" in said()
    (trained.model / "plans.json").unlink()
    assert f"expected plans.json of the trained model in {trained.model}, found none: restore it" in said()


def test_label_without_a_head(trained, in_threads, capsys):
    """Told with the reason after all other cases; when it is put right, only this case is measured again."""
    hook = trained.results()
    trained.without_results()
    file = trained.preprocessed / "gt_segmentations" / "case.2.nii.gz"
    right = file.read_bytes()
    volume = sitk.ReadImage(file)
    labels = sitk.GetArrayFromImage(volume)
    labels[5, 5, 5] = 7
    wrong = sitk.GetImageFromArray(labels)
    wrong.CopyInformation(volume)
    sitk.WriteImage(wrong, file)
    assert trained.validate() == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("nnunet_calib: "))
    assert "expected to measure 5 cases, failed for case.2: case.2 (expected labels from 0 to 2, got values " in line
    assert "run the same command again, which keeps the measured cases" in line
    assert {path.name for path in (trained.calibration / "cases").iterdir()} == {
        f"case.{number}.npz" for number in (0, 1, 3, 4)
    }
    file.write_bytes(right)
    assert trained.validate() == 0
    assert "4 measured before, 0 with .npz, 1 to predict" in capsys.readouterr().err
    assert trained.results() == hook


def test_other_fold(trained, said, capsys, in_threads):
    """A checkpoint in another fold's folder, and splits that are no longer those of the training."""
    other = trained.model / "fold_0"
    shutil.copytree(trained.fold, other)
    assert (
        f"expected a checkpoint of fold 0 in {other / 'checkpoint_final.pth'}, found one of fold all: put it back into "
        f"the folder that nnU-Net gave it"
    ) in said("-f", "0")
    make_fold(trained, 0)
    (other / FILE).unlink()
    for path in (other / "validation").glob("*.nii.gz"):
        path.touch()
    assert (
        f"expected the splits that fold 0 was trained with, found its training cases case.1, case.2, case.3, case.4 "
        f"among those validated in {other / 'validation'} after the training: restore splits_final.json in "
        f"{trained.preprocessed}"
    ) in said("-f", "0")


def test_overlapping_splits(trained, in_threads, capsys):
    """A fold trained earlier, one of whose cases is in both lists, over the segmentations of an older training."""
    split_in_two(trained)
    split = {"train": ["case.0", "case.1", "case.3", "case.4"], "val": ["case.0", "case.2"]}
    (trained.preprocessed / "splits_final.json").write_text(json.dumps([split]))
    validation = trained.model / "fold_0" / "validation"
    shutil.copytree(trained.fold / "validation", validation, ignore=shutil.ignore_patterns("calibration"))
    assert (validation / "case.1.nii.gz").stat().st_mtime < (validation.parent / "checkpoint_final.pth").stat().st_mtime
    (validation / "case.0.nii.gz").touch()
    assert trained.validate("-f", "0") == 0
    assert "T was fitted on 1 case that the network was trained on: expect larger errors" in capsys.readouterr().out
    temperature = json.loads((validation / "calibration" / "temperature.json").read_text())
    assert temperature["in_sample"] is True
    assert temperature["seen_in_training"] == ["case.0"]
    assert temperature["cases"] == ["case.0", "case.2"]


def make_fold(trained, fold: int) -> Path:
    """The fold's folder, with a checkpoint of weights of its own."""
    folder = trained.model / f"fold_{fold}"
    folder.mkdir(exist_ok=True)
    checkpoint = torch.load(trained.fold / "checkpoint_final.pth", weights_only=False)
    checkpoint["init_args"]["fold"] = fold
    for tensor in checkpoint["network_weights"].values():
        tensor *= 1 + fold / 100
    torch.save(checkpoint, folder / "checkpoint_final.pth")
    return folder


def split_in_two(trained) -> dict[int, list[str]]:
    """Folds 0 and 1, and the splits that belong to them; returns the cases that they hold out."""
    cases = {fold: [f"case.{fold}", f"case.{fold + 2}"] for fold in (0, 1)}
    splits = [{"train": [case for case in trained.cases if case not in own], "val": own} for own in cases.values()]
    (trained.preprocessed / "splits_final.json").write_text(json.dumps(splits))
    for fold in cases:
        make_fold(trained, fold)
    return cases


def test_folds_for_crossval(trained, in_threads, capsys):
    """Folds without --npz, one after the other, are what crossval merges; a fold of the splits is not in sample."""
    cases = split_in_two(trained)
    assert trained.validate("-f", "0", "1") == 0
    for fold, own in cases.items():
        summary = json.loads((trained.model / f"fold_{fold}/validation/calibration/summary.json").read_text())
        assert [row["case"] for row in summary["metric_per_case"]] == own
        assert summary["temperature"]["in_sample"] is False
        assert summary["model"]["fold"] == fold
    command = ["crossval", "-d", trained.dataset, "-c", CONFIGURATION, "-tr", TRAINER, "-f", "0", "1"]
    assert cli.main(command) == 0
    assert str(trained.model / "crossval_results_folds_0_1" / "calibration") in capsys.readouterr().out


def test_results_in_the_way(trained, said):
    """A file where the results should go."""
    trained.without_results()
    trained.calibration.write_text("precious")
    assert f"got Not a directory for {trained.calibration}" in said(without_results=False)
    assert trained.calibration.read_text() == "precious"


def test_npz_of_another_image(trained, capsys):
    """Complete, of the right number of heads and newer than the checkpoint, but of another size."""
    trained.without_results(npz=True)
    np.savez_compressed(trained.fold / "validation" / "case.1.npz", probabilities=np.zeros((3, 4, 4, 4), np.float32))
    assert trained.validate("-np", "1") == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"nnunet_calib: case case.1 ({trained.fold / 'validation' / 'case.1.npz'} and ")
    assert "got (3, 4, 4, 4): are they of the same case?" in line

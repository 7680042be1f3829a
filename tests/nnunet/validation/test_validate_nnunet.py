"""What nnU-Net itself can do: cascades, file formats, and trainers that validate in their own way."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
import torch
from skimage import io

from nnunet_calib import CaseStatistics
from nnunet_calib.synthetic import synthetic_case
from tests.worlds.nnunet_world import World, plan_and_preprocess
from tests.worlds.trained_fold import PLANS, TRAINER, Trained, change_json, snapshot

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning", "ignore::ResourceWarning"),
    pytest.mark.usefixtures("in_threads"),
]


def save_untrained(trained: Trained) -> None:
    """A checkpoint of a fold that was never trained, and what nnU-Net writes when one is; then its validation."""
    from nnunetv2.run.run_training import get_trainer_from_args

    torch.manual_seed(5)
    trainer = get_trainer_from_args(
        trained.dataset, trained.configuration, "all", trained.trainer, PLANS, device=torch.device("cpu")
    )
    trainer.initialize()
    trainer.inference_allowed_mirroring_axes = (0,)
    trainer.save_checkpoint(str(trained.fold / "checkpoint_final.pth"))
    for name, content in (("plans", trainer.plans_manager.plans), ("dataset", trainer.dataset_json)):
        (trained.model / f"{name}.json").write_text(json.dumps(content))
    trainer.perform_actual_validation()


def test_cascade(trained, capsys):
    """The second stage takes the first one's segmentations where they are; the first one does not write them again."""
    plans = json.loads((trained.preprocessed / f"{PLANS}.json").read_text())
    stages = {
        "3d_lowres": {"inherits_from": "3d_fullres", "next_stage": "3d_cascade_fullres"},
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
    }
    change_json(trained.preprocessed / f"{PLANS}.json", configurations=plans["configurations"] | stages)
    first, second = (replace(trained, configuration=name) for name in stages)
    save_untrained(first)
    segmentations = first.model / "predicted_next_stage" / "3d_cascade_fullres"
    assert {path.stem for path in segmentations.iterdir()} == {*first.cases}
    save_untrained(second)
    for stage in (first, second):
        hook = stage.results()
        assert len(hook) == 7
        before = snapshot(trained.root / "results")
        assert stage.without_results().validate() == 0
        assert stage.results() == hook
        assert snapshot(trained.root / "results") == before

    for path in segmentations.glob("case.4*"):
        path.unlink()
    capsys.readouterr()
    assert second.without_results().validate() == 2
    assert (
        f"expected segmentations of 3d_lowres in {segmentations}, found none of case.4: train all folds of 3d_lowres, "
        f"or write them again with nnUNetv2_train {trained.dataset} 3d_lowres FOLD -tr {TRAINER} -p {PLANS} --val"
    ) in capsys.readouterr().err


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".tif"])
def test_formats(trained, ending):
    """Ground truth in other formats gives the same counts."""
    before = [CaseStatistics.load(trained.case_file(number)) for number in range(5)]
    for file in (trained.preprocessed / "gt_segmentations").glob("*.nii.gz"):
        labels, target = sitk.ReadImage(file), file.with_name(file.name.removesuffix(".nii.gz") + ending)
        if ending == ".tif":
            tifffile.imwrite(target, sitk.GetArrayFromImage(labels))
            target.with_suffix(".json").write_text(json.dumps({"spacing": labels.GetSpacing()[::-1]}))
        else:
            sitk.WriteImage(labels, target)
        file.unlink()
    change_json(trained.model / "dataset.json", file_ending=ending)
    if ending == ".tif":
        change_json(trained.model / "plans.json", image_reader_writer="Tiff3DIO")
    assert trained.without_results().validate() == 0
    for number, hook in enumerate(before):
        measured = CaseStatistics.load(trained.case_file(number))
        np.testing.assert_array_equal(measured.histograms.counts, hook.histograms.counts)
        np.testing.assert_array_equal(measured.histograms.positives, hook.histograms.positives)


def test_png(make_world, tmp_path, monkeypatch):
    """Natural images in 2D, from raw data to the same bytes as the hook's."""
    name = "Dataset910_png"
    raw, world = tmp_path / "raw" / name, make_world("labels")
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder).mkdir(parents=True)
    for seed in range(5):
        case = synthetic_case(seed, (40, 36))
        image = np.clip(case.image * 40 + 100, 0, 255).astype(np.uint8)
        io.imsave(raw / "imagesTr" / f"case.{seed}_0000.png", image, check_contrast=False)
        io.imsave(raw / "labelsTr" / f"case.{seed}.png", case.labels.astype(np.uint8), check_contrast=False)
    labels = {"background": 0, "bright": 1, "dark": 2}
    content = {"channel_names": {"0": "grey"}, "labels": labels, "numTraining": 5, "file_ending": ".png"}
    (raw / "dataset.json").write_text(json.dumps(content))
    (tmp_path / "results").mkdir()
    environment = world.environment() | {
        f"nnUNet_{folder}": str(tmp_path / folder) for folder in ("raw", "preprocessed", "results")
    }
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    plan_and_preprocess(World(tmp_path, 910, name), ("2d",))
    trained = Trained(tmp_path, name, TRAINER, "2d")
    save_untrained(trained)
    shutil.rmtree(raw)
    hook = trained.results()
    assert len(hook) == 7
    assert trained.without_results().validate() == 0
    assert trained.results() == hook


OTHER_TRAINERS = """
from pathlib import Path

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainerReads(nnUNetTrainer):
    def perform_actual_validation(self, save_probabilities=False):
        super().perform_actual_validation(save_probabilities)
        files = {path.name for path in (Path(self.output_folder) / "validation").iterdir()}
        assert files == {"summary.json", *(f"case.{i}.nii.gz" for i in range(5))}


class nnUNetTrainerSilent(nnUNetTrainer):
    def perform_actual_validation(self, save_probabilities=False):
        pass
"""


@pytest.fixture
def make_other(make_trained, tmp_path, monkeypatch):
    """A fold of a trainer with a validation of its own."""

    def make(trainer: str) -> Trained:
        trained = make_trained(trainer=trainer)
        folder = tmp_path / "other trainers"
        folder.mkdir()
        (folder / "other_trainers.py").write_text(OTHER_TRAINERS)
        known = os.environ["nnUNet_extTrainer"]
        monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join([str(folder), known]))
        return trained

    return make


def test_validation_that_reads_its_exports(make_other):
    """It finds them, and nnU-Net's evaluation, but not in the fold's folder."""
    trained = make_other("nnUNetTrainerReads")
    hook = json.loads((trained.calibration / "summary.json").read_text())
    before = snapshot(trained.without_results().model)
    assert trained.validate() == 0
    assert json.loads((trained.calibration / "summary.json").read_text())["metrics"] == hook["metrics"]
    assert snapshot(trained.model) == before


def test_validation_without_exports(make_other, capsys):
    """What a trainer that does not validate as nnU-Net does can be measured with instead."""
    trained = make_other("nnUNetTrainerSilent").without_results()
    assert trained.validate() == 2
    assert (
        "expected the validation of nnUNetTrainerSilent to export each case as nnU-Net's does, found nothing of "
        "case.0, case.1, case.2, case.3, case.4: predict them with nnUNetv2_predict --save_probabilities and use "
        "nnunet_calib evaluate"
    ) in capsys.readouterr().err
    assert not Path(trained.calibration / "summary.json").exists()

"""What nnU-Net alone trains is trained by ours too: other losses, loggers, steps, folders and constructors."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_calib.nnunet.training.mixins import CalibrationMixin
from nnunet_calib.nnunet.training.pseudo_ace import MEAN, PER_CLASS
from nnunet_calib.nnunet.validation import remade_trainer as module
from nnunet_calib.nnunet.validation.remade_trainer import remade_trainer
from nnunet_calib.results.layout import ModelFolder
from nnunet_calib.trainers import ML1ACEMixin, NACLMixin, nnUNetTrainerCalib, nnUNetTrainerNACL
from tests.worlds import own_trainers as own
from tests.worlds.made_trainers import make
from tests.worlds.nnunet_world import PLANS

nnunet = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def trains(world, in_threads, tmp_path, monkeypatch):
    """A training and its validation by a class of these bases, into results of this test: the trainer and its log."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path))

    def run(*bases: type):
        trainer = make(type("Mine", (own.Short, *bases), {}), world, "2d")
        trainer.run_training()
        trainer.perform_actual_validation()
        return trainer, Path(trainer.log_file).read_text()

    return run


def summary(trainer) -> dict:
    return json.loads((Path(trainer.output_folder) / "validation" / "calibration" / "summary.json").read_text())


@pytest.mark.slow
@nnunet
def test_function_as_loss(trains):
    """It trains and is measured; only the pseudo ACE is not there, which one line says."""
    trainer, log = trains(nnUNetTrainerCalib, own.FunctionLoss)
    told = [line for line in log.splitlines() if "could not be" in line]
    assert len(told) == 1
    assert told[0].strip().endswith("Reason (reported once): the loss is a function, and only a module can be watched")
    assert "Traceback" not in log
    assert np.isnan(trainer.logger.get_checkpoint()[MEAN]).tolist() == [True, True]
    assert summary(trainer)["metric_per_case"]


@pytest.mark.slow
@nnunet
@pytest.mark.parametrize("bases", [(own.WrapsInFunction, nnUNetTrainerNACL), (nnUNetTrainerNACL, own.FunctionLoss)])
def test_term_and_function(trains, bases):
    """A term around a function, and in one, is trained with and recorded."""
    trainer, log = trains(*bases)
    assert "Traceback" not in log
    assert summary(trainer)["model"]["hyperparameters"]["nacl_weight"] == nnUNetTrainerNACL.nacl_weight
    if isinstance(trainer, own.FunctionLoss):
        assert np.isfinite(trainer.logger.get_checkpoint()[MEAN]).all()


@pytest.mark.slow
@nnunet
def test_missing_term(trains):
    """Refused before the first epoch; a validation alone is not."""
    with pytest.raises(ValueError, match=re.escape("expected NACLLoss in the loss that Mine trains with")):
        trains(nnUNetTrainerNACL, own.LossInInitialize)
    (folder,) = Path(module.os.environ["nnUNet_results"]).glob("*/Mine__*/fold_0")
    assert not list(folder.glob("*.pth"))
    assert "Epoch 0" not in "".join(path.read_text() for path in folder.glob("training_log*"))


@pytest.mark.slow
@nnunet
def test_validation_alone(world, in_threads, tmp_path, monkeypatch):
    """A model that was trained without the term is validated with nnUNetv2_train --val, and not trained further."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    cls = type("Mine", (own.Short, nnUNetTrainerNACL, own.LossInInitialize), {})
    with monkeypatch.context() as patch:
        patch.setattr(CalibrationMixin, "_check_promised_terms", lambda self: None)
        first = make(cls, world, "2d")
        first.run_training()
    checkpoint = str(Path(first.output_folder) / "checkpoint_final.pth")
    again = make(cls, world, "2d")
    again.load_checkpoint(checkpoint)
    again.perform_actual_validation()
    assert summary(again)["metric_per_case"]
    continued = make(cls, world, "2d")
    continued.num_epochs = 3
    continued.load_checkpoint(checkpoint)
    with pytest.raises(ValueError, match="expected NACLLoss in the loss that Mine trains with"):
        continued.run_training()


@pytest.mark.slow
@nnunet
def test_own_steps(trains):
    """A loss that no step calls is told, in the log, where nnU-Net's other messages are."""
    trainer, log = trains(nnUNetTrainerNACL, own.OwnStep)
    assert summary(trainer)["model"]["hyperparameters"]["not_trained_with"] == ["NACLLoss"]
    assert "This network was trained without NACLLoss" in log  # at its end, with the fold's other notes
    assert log.count("No training step has called the loss with NACLLoss") == 1
    assert summary(trainer)["metric_per_case"]


@pytest.mark.slow
@nnunet
def test_steps_with_more_arguments(trains):
    """Methods that take more than nnU-Net's get it; a validation step without a loss leaves no pseudo ACE."""
    trainer, log = trains(ML1ACEMixin, own.StepWithMore)
    assert log.count("no validation step has called the loss") == 1
    assert np.isnan(trainer.logger.get_checkpoint()[MEAN]).tolist() == [True, True]
    assert summary(trainer)["metric_per_case"]


@pytest.mark.slow
@nnunet
def test_other_logger(trains):
    """Without nnU-Net's lists, and refusing what it does not know: trained, measured, and told."""
    trainer, log = trains(nnUNetTrainerCalib, own.OtherLogger)
    assert "it knows its own keys only" in log
    assert "is complete, but one of the trainer's loggers failed" in log
    assert "Mean Validation Calibration: ACE" in log
    assert {MEAN, PER_CLASS} & {*trainer.seen} == set()
    assert summary(trainer)["metric_per_case"]


@pytest.mark.slow
@nnunet
def test_other_folder(trains):
    """A results folder that is made when the training starts is none that cannot be written."""
    trainer, log = trains(nnUNetTrainerCalib, own.OtherFolder)
    assert Path(trainer.output_folder).name == "fold_0_mine"
    assert "Traceback" not in log
    assert "do_split" in vars(trainer)
    assert summary(trainer)["metric_per_case"]


@pytest.mark.slow
@nnunet
@pytest.mark.parametrize("cls", own.CONSTRUCTORS)
def test_constructors(world, cls):
    """Each argument arrives under its name, whatever the order, and is what a checkpoint keeps."""
    trainer = make(type("Mine", (own.Short, nnUNetTrainerNACL, cls), {}), world, "2d")
    assert (trainer.device, trainer.fold, trainer.configuration_name) == (torch.device("cpu"), 0, "2d")
    assert [*trainer.my_init_kwargs] == ["plans", "configuration", "fold", "dataset_json", "device"]
    assert trainer.my_init_kwargs["device"] == torch.device("cpu")


@pytest.mark.slow
@nnunet
@pytest.mark.parametrize("cls", [own.Reordered, own.KeywordOnly])
def test_made_again(world, cls, tmp_path, monkeypatch):
    """`validate` makes a trainer as nnUNetv2_train does."""
    first = make(cls, world, "2d")
    folder = ModelFolder.below(tmp_path, world.dataset, cls.__name__, PLANS, "2d")
    folder.path.mkdir(parents=True)
    for name, content in (("plans", first.plans_manager.plans), ("dataset", first.dataset_json)):
        (folder.path / f"{name}.json").write_text(json.dumps(content))
    monkeypatch.setattr(module, "find_trainer", lambda name: cls)
    with remade_trainer(folder, 3, torch.device("cpu")) as trainer:
        assert type(trainer) is cls
        assert (trainer.device, trainer.fold, trainer.configuration_name) == (torch.device("cpu"), 3, "2d")


def stub_model(tmp_path: Path) -> ModelFolder:
    """A model's folder with as little as can be."""
    folder = ModelFolder.below(tmp_path, "Dataset001_A", "Stub", PLANS, "2d")
    folder.path.mkdir(parents=True)
    plans = {"dataset_name": folder.dataset, "plans_name": PLANS, "configurations": {"2d": {}}}
    (folder.path / "plans.json").write_text(json.dumps(plans))
    dataset = {"labels": {"background": 0, "a": 1}, "file_ending": ".nii.gz"}
    (folder.path / "dataset.json").write_text(json.dumps(dataset))
    return folder


def test_made_by_name(tmp_path, monkeypatch):
    """Nothing of the order of parameters matters; what a constructor raises is told in one sentence."""

    class Stub:
        folder_with_segs_from_previous_stage = str(tmp_path / "elsewhere" / "predicted_next_stage")

        def __init__(self, *, device, dataset_json, fold, plans, configuration, unpack_dataset=True):
            self.given = (plans["plans_name"], configuration, fold, dataset_json["file_ending"], device.type)

    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    monkeypatch.setattr(module, "find_trainer", lambda name: Stub)
    with remade_trainer(stub_model(tmp_path), 2, torch.device("cpu")) as trainer:
        assert trainer.given == ("nnUNetPlans", "2d", 2, ".nii.gz", "cpu")
        # a trainer's own folder, which is not among the results, is left as it is
        assert trainer.folder_with_segs_from_previous_stage == Stub.folder_with_segs_from_previous_stage


def test_constructor_that_fails(tmp_path, monkeypatch):
    """As of a trainer for another version of nnU-Net."""

    class Stub:
        def __init__(self, plans, configuration, fold, dataset_json, unpack_dataset, device):
            pass

    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    monkeypatch.setattr(module, "find_trainer", lambda name: Stub)
    told = (
        r"expected nnU-Net to construct Stub, got TypeError \(.*missing 1 required .*'unpack_dataset'\): fix its __init"
    )
    with pytest.raises(ValueError, match=told), remade_trainer(stub_model(tmp_path), 2, torch.device("cpu")):
        pass


def test_mixins_pass_names():
    """Whatever comes after them in the order of classes is called by name."""
    given = {}

    class Parent:
        output_folder = "/not/there"

        def __init__(self, device, *, fold, dataset_json, configuration, plans, more=None):
            given.update(vars() | {"self": None})

    arguments = {
        "plans": {},
        "configuration": "2d",
        "fold": 1,
        "dataset_json": {"labels": {"background": 0}},
        "device": "cpu",
    }
    type("Mine", (NACLMixin, Parent), {})(**arguments)
    assert {name: given[name] for name in arguments} == arguments

"""The mixins on nnU-Net's own trainers: put together by inheritance alone, nothing to configure, early refusals."""

import json
import math
from pathlib import Path

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerDA5 import nnUNetTrainerDA5
from nnunetv2.training.nnUNetTrainer.variants.loss.nnUNetTrainerDiceLoss import nnUNetTrainerDiceLoss
from nnunetv2.training.nnUNetTrainer.variants.loss.nnUNetTrainerTopkLoss import nnUNetTrainerTopk10Loss
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerNoDeepSupervision import (
    nnUNetTrainerNoDeepSupervision,
)

from nnunet_calib import trainers
from nnunet_calib.trainers import (
    ML1ACEMixin,
    NACLMixin,
    SVLSMixin,
    nnUNetTrainerML1ACE,
    nnUNetTrainerNACL,
    nnUNetTrainerSVLS,
)
from tests.worlds.made_trainers import NoDeepSupervision, make

pytestmark = [
    pytest.mark.slow,
    # nnU-Net's own, on tiny data
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning", "ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

both_kinds = pytest.mark.parametrize("world", ["labels", "regions_ignore"], indirect=True)


class DiamondOfTrainers(nnUNetTrainerNACL, nnUNetTrainerDA5):
    """A finished trainer before a stock variant."""


class MixinBeforeVariant(NACLMixin, nnUNetTrainerDA5):
    """Without the package's trainers, and so without figures."""


class ReplacedWithoutDeepSupervision(SVLSMixin, nnUNetTrainerNoDeepSupervision):
    """The same where the term replaces another."""


class DiceOnly(nnUNetTrainerNACL, nnUNetTrainerDiceLoss):
    """A base without cross-entropy."""


class TwoTerms(nnUNetTrainerSVLS, nnUNetTrainerML1ACE):
    """Two losses of the package at once."""


# trainer -> what its loss shows, on labels and on regions
COMBINED = {
    DiamondOfTrainers: ("NACLLoss", "DC_and_"),
    MixinBeforeVariant: ("NACLLoss", "DC_and_"),
    NoDeepSupervision: ("ML1ACELoss", "DC_and_"),
    ReplacedWithoutDeepSupervision: ("SVLSLoss", "NoTerm", "DC_and_"),
    DiceOnly: ("NACLLoss", "MemoryEfficientSoftDiceLoss"),
    TwoTerms: ("SVLSLoss", "ML1ACELoss", "NoTerm", "DC_and_"),
}


@both_kinds
@pytest.mark.parametrize("cls", COMBINED)
def test_combined(world, cls):
    """Each combination builds its loss, trains, and keeps what the stock trainer does."""
    trainer = make(cls, world)
    trainer.on_train_start()
    assert all(name in repr(trainer.loss) for name in COMBINED[cls]), trainer.loss
    assert ("DeepSupervisionWrapper" in repr(trainer.loss)) == trainer.enable_deep_supervision
    assert trainer.enable_deep_supervision == (not issubclass(cls, nnUNetTrainerNoDeepSupervision))
    if issubclass(cls, nnUNetTrainerDA5):
        stock = nnUNetTrainerDA5.configure_rotation_dummyDA_mirroring_and_inital_patch_size
        assert cls.configure_rotation_dummyDA_mirroring_and_inital_patch_size is stock
    before = [p.detach().clone() for p in trainer.network.parameters()]
    assert math.isfinite(trainer.train_step(next(trainer.dataloader_train))["loss"])
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.network.parameters(), strict=True))


def test_hyperparameters_of_a_subclass(world):
    """Three lines change a hyperparameter: the loss has it, debug.json and the loggers tell it, the others stay."""

    class Strong(nnUNetTrainerNACL):
        nacl_weight = 0.5
        nacl_prior = "gaussian"

    class Recorder:
        def update_config(self, config):
            recorded.update(config)

    recorded = {}
    trainer = make(Strong, world)
    trainer.logger.loggers.append(Recorder())
    trainer.initialize()
    expected = {name: getattr(NACLMixin, name) for name in NACLMixin.hyperparameters}
    expected |= {"nacl_weight": 0.5, "nacl_prior": "gaussian"}
    assert trainer.calibration_hyperparameters() == recorded["calibration"] == expected
    assert "weight=0.5" in repr(trainer.loss)
    assert "kernel_size=(1, 3, 3), prior='gaussian'" in repr(trainer.loss)
    trainer._save_debug_information()
    debug = json.loads((Path(trainer.output_folder) / "debug.json").read_text())
    assert {name: debug[name] for name in expected} == {name: str(value) for name, value in expected.items()}


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("NACL", ["NACLLoss", "weight=0.1"]),
        ("ML1ACE", ["binning='hard'", "absent_classes='keep'", "weight=1.0"]),
        ("SoftML1ACE", ["binning='soft'", "absent_classes='zero'", "weight=1.0"]),
    ],
)
def test_published(world, name, parts):
    """The whole weight from the first epoch on, and the papers' way with absent classes."""
    trainer = make(getattr(trainers, f"nnUNetTrainer{name}_published"), world)
    trainer.initialize()
    trainer.on_train_epoch_start()
    assert all(part in repr(trainer.loss) for part in parts)


def test_hyperparameters_of_two_losses(world):
    """Those of every mixin, each once."""
    names = make(TwoTerms, world).calibration_hyperparameters()
    assert sorted(names) == sorted([*SVLSMixin.hyperparameters, *ML1ACEMixin.hyperparameters])


@pytest.mark.parametrize("world", ["regions_ignore"], indirect=True)
@pytest.mark.parametrize("order", [None, [1]])
def test_regions_without_order(world, order):
    """Refused when the trainer is made: no results folder yet, and not after a training."""

    class NeverTrained(nnUNetTrainerNACL):
        pass

    with pytest.raises(ValueError, match=r"expected dataset\.json to give regions_class_order with 2 labels"):
        make(NeverTrained, world, regions_class_order=order)
    assert not world.fold("NeverTrained", "3d_fullres").parent.exists()


@pytest.mark.parametrize(
    ("stock", "loss"), [(nnUNetTrainerTopk10Loss, "TopKLoss"), (nnUNetTrainerDiceLoss, "MemoryEfficientSoftDiceLoss")]
)
def test_svls_without_cross_entropy(world, stock, loss):
    """SVLS has nothing to replace there, and says so before the training starts."""

    class Replaced(SVLSMixin, stock):
        pass

    trainer = make(Replaced, world, "2d")
    with pytest.raises(TypeError, match=rf"cross-entropy is to be replaced, got {loss}: use a trainer that keeps"):
        trainer.initialize()


@pytest.mark.parametrize("cls", [nnUNetTrainer, nnUNetTrainerNACL, DiamondOfTrainers])
def test_init_arguments(world, cls, tmp_path):
    """Exactly nnU-Net's five, with their values: it stores them in checkpoints and reads them at inference."""
    trainer = make(cls, world, "2d")
    assert [*trainer.my_init_kwargs] == ["plans", "configuration", "fold", "dataset_json", "device"]
    trainer.initialize()
    trainer.save_checkpoint(str(tmp_path / "checkpoint.pth"))
    checkpoint = torch.load(tmp_path / "checkpoint.pth", weights_only=False)
    assert checkpoint["trainer_name"] == cls.__name__
    stored = checkpoint["init_args"]
    assert stored == trainer.my_init_kwargs
    assert (stored["configuration"], stored["fold"], stored["device"]) == ("2d", 0, torch.device("cpu"))
    assert stored["dataset_json"]["labels"] == {"background": 0, "bright": 1, "dark": 2}

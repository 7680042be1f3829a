"""Networks that trainers and plans of nnU-Net build, baked from their checkpoints; checkpoints without the plugin."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_calib import apply_temperature
from nnunet_calib.nnunet.checkpoints import load_checkpoint
from nnunet_calib.nnunet.deployment.bake import CALIBRATED, ENTRY
from nnunet_calib.results.layout import FINAL
from tests.worlds.baked import write_vector

pytestmark = [
    # nnU-Net's own, on tiny data
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning", "ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
T = 1.7

TRAINERS = '''
from dynamic_network_architectures.architectures.primus import Primus
from torch import nn
from nnunet_calib.trainers import nnUNetTrainerCalib, nnUNetTrainerNACL, nnUNetTrainerSVLS
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.primus.primus_trainers import AbstractPrimus
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerDA5 import nnUNetTrainerDA5
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerBN import nnUNetTrainerBN
from nnunetv2.training.nnUNetTrainer.variants.network_architecture.nnUNetTrainerNoDeepSupervision import (
    nnUNetTrainerNoDeepSupervision,
)


class PrimusTrainer(AbstractPrimus):
    @staticmethod
    def build_network_architecture(plans_manager, configuration_manager, num_input_channels, num_output_channels,
                                   enable_deep_supervision=True):
        return Primus(num_input_channels, 24, (8, 8, 8), num_output_channels, 1, 2, (8, 24, 24))


class NACL_DA5(nnUNetTrainerNACL, nnUNetTrainerDA5):
    pass


class NoDeepSupervision(nnUNetTrainerSVLS, nnUNetTrainerNoDeepSupervision):
    pass


class BN(nnUNetTrainerCalib, nnUNetTrainerBN):
    pass


class Normalised(nnUNetTrainerCalib):
    """Its own network: other layers than those of its stock trainer."""

    @staticmethod
    def build_network_architecture(plans_manager, *arguments, **options):
        network = nnUNetTrainer.build_network_architecture(plans_manager, *arguments, **options)
        network.encoder.stages[0].append(nn.BatchNorm2d(4))
        return network


class Louder(nnUNetTrainerCalib):
    """The same weights with another forward pass."""

    @staticmethod
    def build_network_architecture(plans_manager, *arguments, **options):
        network = nnUNetTrainer.build_network_architecture(plans_manager, *arguments, **options)
        network.register_forward_pre_hook(lambda module, inputs: (inputs[0] ** 2,))
        return network


class Old(nnUNetTrainerCalib):
    """The signature from before nnU-Net 2.8."""

    @staticmethod
    def build_network_architecture(architecture_class_name, arch_init_kwargs, arch_init_kwargs_req_import,
                                   num_input_channels, num_output_channels, enable_deep_supervision=True):
        from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

        return get_network_from_plans(architecture_class_name, arch_init_kwargs, arch_init_kwargs_req_import,
                                      num_input_channels, num_output_channels,
                                      deep_supervision=enable_deep_supervision)


class Certain(nnUNetTrainerCalib):
    """A network that gives probabilities."""

    @staticmethod
    def build_network_architecture(plans_manager, *arguments, **options):
        network = nnUNetTrainer.build_network_architecture(plans_manager, *arguments, **options)
        network.register_forward_hook(
            lambda module, inputs, z: [i.softmax(1) for i in z] if isinstance(z, list) else z.softmax(1)
        )
        return network
'''


@pytest.fixture
def more_trainers(tmp_path, world, monkeypatch):
    """The trainers above, where nnU-Net finds them."""
    (tmp_path / "trainers").mkdir()
    (tmp_path / "trainers" / "architectures_for_tests.py").write_text(TRAINERS)
    monkeypatch.setenv("nnUNet_extTrainer", f"{os.environ['nnUNet_extTrainer']}{os.pathsep}{tmp_path / 'trainers'}")


def check(model, folder, names=(FINAL, CALIBRATED)) -> None:
    """Equal to the original at T, up to what is lost in nnU-Net's half precision sums in the middle of the image."""
    original, baked = (model.probabilities(folder, name) for name in names)
    error = np.abs(baked - apply_temperature(original, T))
    assert error[:, 8:-8, 8:-8, 3:-3].max() < 5e-3
    assert np.abs(baked - original)[:, 8:-8, 8:-8, 3:-3].max() > 0.02


def heads(folder) -> list[str]:
    return load_checkpoint(Path(folder) / "fold_0" / CALIBRATED)[ENTRY]["divided"]


def test_residual_encoder(untrained, monkeypatch, capsys):
    """The architecture that plans of the ResEnc planners name."""
    model = untrained("3d_fullres")
    plans = model.world.preprocessed / "nnUNetPlans.json"
    content = plans.read_text()
    changed = json.loads(content)
    architecture = changed["configurations"]["3d_fullres"]["architecture"]
    architecture["network_class_name"] = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
    architecture["arch_kwargs"]["n_blocks_per_stage"] = architecture["arch_kwargs"].pop("n_conv_per_stage")
    try:
        plans.write_text(json.dumps(changed))
        trainer = model.make()
    finally:
        plans.write_text(content)
    assert type(trainer.network).__name__ == "ResidualEncoderUNet"
    assert model.bake("-f", "0", "--temperature", str(T)) == 0
    check(model, trainer.output_folder_base)
    assert heads(trainer.output_folder_base) == [
        f"decoder.seg_layers.{i}.{kind}" for i in (0, 1) for kind in ("bias", "weight")
    ]


@pytest.mark.usefixtures("more_trainers")
def test_primus(untrained):
    """A network for one size of patch only, whose last layer is a transposed convolution."""
    model = untrained("3d_fullres", "PrimusTrainer")
    trainer = model.make()
    for kind in ("weight", "bias"):
        torch.nn.init.normal_(trainer.network.get_parameter(f"up_projection.decode.2.{kind}"))
    trainer.save_checkpoint(f"{trainer.output_folder}/{FINAL}")
    assert model.bake("-f", "0", "--temperature", str(T)) == 0
    assert heads(trainer.output_folder_base) == ["up_projection.decode.2.bias", "up_projection.decode.2.weight"]
    check(model, trainer.output_folder_base)


@pytest.mark.usefixtures("more_trainers")
@pytest.mark.parametrize(
    ("trainer", "stock"),
    [
        ("nnUNetTrainerNACL_5epochs", "nnUNetTrainer_5epochs"),
        ("NACL_DA5", "nnUNetTrainerDA5"),
        ("NoDeepSupervision", "nnUNetTrainerNoDeepSupervision"),
        ("BN", "nnUNetTrainerBN"),
        ("nnUNetTrainer", "nnUNetTrainer"),
        ("Old", None),
    ],
)
def test_portable_name(untrained, monkeypatch, trainer, stock):
    """The nearest class of nnU-Net's own; loaded by it, without our folder of trainers, the same is predicted."""
    model = untrained("2d", trainer)
    folder = model.make().output_folder_base
    assert model.bake("-f", "0", "--temperature", str(T), *["--portable"] * (stock is not None)) == 0
    checkpoint = load_checkpoint(Path(folder) / "fold_0" / CALIBRATED)
    assert checkpoint["trainer_name"] == (stock or trainer)
    assert checkpoint[ENTRY]["trainer_name"] == trainer
    original = model.probabilities(folder, FINAL)
    if stock is not None:
        monkeypatch.delenv("nnUNet_extTrainer")
    baked = model.probabilities(folder, CALIBRATED)
    assert np.abs(baked - apply_temperature(original, T))[:, 8:-8, 8:-8].max() < 5e-3


@pytest.mark.usefixtures("more_trainers")
@pytest.mark.parametrize(
    ("trainer", "reason"),
    [("Normalised", "none (expected the weights of PlainConvUNet as plans.json"), ("Louder", "other logits")],
)
def test_not_portable(untrained, capsys, trainer, reason):
    """A trainer whose network is not that of its stock trainer, by its weights or only by what it does."""
    model = untrained("2d", trainer)
    fold = Path(model.make().output_folder)
    capsys.readouterr()
    assert model.bake("-f", "0", "--temperature", str(T), "--portable") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"expected nnUNetTrainer to build the network of {trainer}, which derives from it, found {reason}" in error
    assert error.endswith("bake without --portable")
    assert [path.name for path in fold.glob("*.pth")] == [FINAL]
    assert model.bake("-f", "0", "--temperature", str(T)) == 0


@pytest.mark.usefixtures("more_trainers")
def test_probabilities_for_logits(untrained, capsys):
    """A network that ends with a softmax is refused, and nothing is written."""
    model = untrained("2d", "Certain")
    fold = Path(model.make().output_folder)
    capsys.readouterr()
    assert model.bake("-f", "0", "--temperature", str(T)) == 2
    assert "found Softmax after its last linear layer in PlainConvUNet" in capsys.readouterr().err.splitlines()[-1]
    assert [path.name for path in fold.iterdir() if path.suffix == ".pth"] == [FINAL]


@pytest.mark.slow
def test_without_the_package(untrained, tmp_path):
    """nnUNetv2_predict, where nnunet_calib cannot be imported, takes a portable checkpoint and no other."""
    model = untrained("2d")
    trainer = model.make()
    fold = Path(trainer.output_folder)
    images = tmp_path / "images"
    images.mkdir()
    (images / model.image.name).symlink_to(model.image)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import sys\n\n\nclass Without:\n    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'nnunet_calib':\n            raise ImportError(name)\n\n\n"
        "sys.meta_path.insert(0, Without())\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "nnUNet_extTrainer"}
    environment["PYTHONPATH"] = str(tmp_path / "site")

    def run(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-W", "ignore", *arguments], env=environment, capture_output=True, text=True, check=False
        )

    def predict(checkpoint: str) -> subprocess.CompletedProcess:
        return run(
            "-c",
            "from nnunetv2.inference.predict_from_raw_data import predict_entry_point as main; main()",
            "-i",
            str(images),
            "-o",
            str(tmp_path / checkpoint),
            *model.arguments,
            "-f",
            "0",
            "-device",
            "cpu",
            "-chk",
            checkpoint,
            "--save_probabilities",
            "-npp",
            "0",
            "-nps",
            "0",
            "--disable_progress_bar",
        )

    assert "ImportError: nnunet_calib" in run("-c", "import nnunet_calib").stderr
    assert model.bake("-f", "0", "--temperature", str(T)) == 0
    assert "Could not find requested nnunet trainer nnUNetTrainerCalib" in predict(CALIBRATED).stderr
    file = write_vector(tmp_path / "vector.json", 3)
    assert model.bake("-f", "0", "--temperature", file, "--portable") == 0
    (fold / CALIBRATED).rename(fold / "portable.pth")
    done = predict("portable.pth")
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "portable.pth" / "case.0.npz") as file:
        baked = file["probabilities"]
    assert len(baked) == 3
    assert np.array_equal(baked, model.probabilities(fold.parent, "portable.pth"))

"""What a baked checkpoint predicts, and what it keeps of the original."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import nnunet_calib
from nnunet_calib import apply_temperature, cli
from nnunet_calib.nnunet.checkpoints import load_checkpoint, weights_fingerprint
from nnunet_calib.nnunet.deployment.bake import CALIBRATED, ENTRY
from nnunet_calib.results.layout import FINAL
from tests.worlds.baked import TRAINER, write_vector
from tests.worlds.maps import read_maps

pytestmark = [
    # nnU-Net's own, on tiny data
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning", "ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
both_modes = pytest.mark.parametrize("world", ["labels", "regions"], indirect=True)
T = 1.7


class SinglePrecision:
    """PyTorch, with float32 under the name of the type in which nnU-Net sums the logits of tiles."""

    half = torch.float32

    def __getattr__(self, name):
        return getattr(torch, name)


@pytest.mark.pairs
@both_modes
@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize("folds", [(0,), (0, 1)], ids=["fold", "ensemble"])
def test_probabilities(untrained, monkeypatch, configuration, folds):
    """Those of the original at T; of two folds, whose logits nnU-Net averages, those of the averaged logits at T.

    Through tiles, mirroring and resampling, with tiles summed in float32.
    """
    monkeypatch.setattr("nnunetv2.inference.predict_from_raw_data.torch", SinglePrecision())
    model = untrained(configuration)
    for fold in folds:
        folder = Path(model.make(fold, seed=fold).output_folder_base)
    assert model.bake("-f", *map(str, folds), "--temperature", str(T)) == 0
    original, baked = (model.probabilities(folder, name, folds) for name in (FINAL, CALIBRATED))
    expected = apply_temperature(original, T, regions="regions" in folder.parent.name)
    assert np.abs(baked - expected).max() < 1e-4  # 5.7e-5 from p = 1 - 2^-24, the last below 1, at which it clamps
    assert np.abs(baked - original).max() > 0.1


@both_modes
def test_vector(untrained, monkeypatch, tmp_path, world):
    """Factors and offsets are in the last layer: nnU-Net alone predicts what `predict` applies them to."""
    monkeypatch.setattr("nnunetv2.inference.predict_from_raw_data.torch", SinglePrecision())
    model = untrained("2d")
    folder = Path(model.make(0, seed=0).output_folder_base)
    original = model.probabilities(folder, FINAL, (0,))
    file = write_vector(tmp_path / "vector.json", len(original), regions="regions" in folder.parent.name)
    assert model.bake("-f", "0", "--temperature", file, "--calibrator", "vector", "--portable") == 0
    baked = model.probabilities(folder, CALIBRATED, (0,))
    images, output = tmp_path / "images", tmp_path / "predicted"
    images.mkdir()
    (images / "case.0_0000.nii.gz").symlink_to(model.image)
    command = ["predict", *model.arguments, "-i", str(images), "-o", str(output), "-f", "0", "-device", "cpu"]
    assert cli.main([*command, "-npp", "0", "-nps", "0", "--temperature", file]) == 0
    maps = read_maps(output / "maps", "probabilities", "case.0")
    assert np.abs(baked - maps).max() < 1e-4
    assert np.abs(baked - original).max() > 0.1


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_half_precision(untrained, configuration):
    """As nnU-Net sums tiles, in half precision: equal to its rounding, but for the corners of the image.

    There the weights of its only tile are so small that nnU-Net's own logits are multiples of up to 1.
    """
    model = untrained(configuration)
    folder = Path(model.make().output_folder_base)
    assert model.bake("-f", "0", "--temperature", str(T)) == 0
    original, baked = (model.probabilities(folder, name) for name in (FINAL, CALIBRATED))
    error = np.abs(baked - apply_temperature(original, T))
    middle = error[(slice(None), *(slice(size // 4, -(size // 4)) for size in error.shape[1:]))]
    assert middle.max() < 5e-3
    assert middle.mean() < 2e-4


def test_fold_of_a_training(untrained, capsys):
    """The temperature that the validation hook has fitted is found, said, and belongs to the weights."""
    model = untrained("2d", f"{TRAINER}_short")
    fold = model.world.train(model.trainer, "2d")
    results = Path(os.environ["nnUNet_results"])
    fold = results / fold.relative_to(model.world.folder / "results")
    original = fold / FINAL
    before = original.read_bytes(), original.stat().st_mtime_ns
    capsys.readouterr()
    assert model.bake("-f", "0") == 0
    assert (original.read_bytes(), original.stat().st_mtime_ns) == before
    assert sorted(path.name for path in fold.glob("*.pth")) == ["checkpoint_best.pth", CALIBRATED, FINAL]
    ours, theirs = (load_checkpoint(fold / name) for name in (CALIBRATED, FINAL))

    fitted = ours[ENTRY]
    line, told = capsys.readouterr().out.splitlines()
    assert line == (
        f"T = {fitted['temperature']:.4f}, standard error {fitted['standard_error']:.4f}, fitted on 1 case of fold 0: "
        f"fold_0/validation/calibration/temperature.json"
    )
    assert told.startswith(f"{fold / CALIBRATED}: 4 tensors divided, logits divided to ")

    trainer = model.world.trainer(model.trainer, "2d")
    trainer.initialize()
    trainer.load_checkpoint(str(original))
    assert fitted["weights_sha256"] == weights_fingerprint(trainer.network)
    assert fitted["fitted"] == {
        "file": "fold_0/validation/calibration/temperature.json",
        "folds": [0],
        "cases": 1,
        "in_sample": False,
    }
    assert fitted["version"] == nnunet_calib.__version__
    assert (fitted["checkpoint"], fitted["trainer_name"]) == (FINAL, model.trainer)
    assert ours.keys() == {*theirs, ENTRY}
    assert all(repr(ours[key]) == repr(theirs[key]) for key in theirs if key != "network_weights")
    assert fitted["divided"] == [f"decoder.seg_layers.{i}.{kind}" for i in (0, 1) for kind in ("bias", "weight")]
    for key, tensor in theirs["network_weights"].items():
        if key in fitted["divided"]:
            tensor = (tensor.double() / fitted["temperature"]).float()
        assert torch.equal(ours["network_weights"][key], tensor)


def test_training_goes_on(untrained):
    """nnU-Net continues a training from it, and takes it for pretraining, where it leaves out the heads."""
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights

    model = untrained("2d", f"{TRAINER}_short")
    first = model.make()
    first.on_train_start()
    first.train_step(next(first.dataloader_train))
    folder = Path(first.output_folder)
    first.save_checkpoint(str(folder / FINAL))
    assert model.bake("-f", "0", "--temperature", str(T)) == 0

    second = model.world.trainer(model.trainer, "2d")
    second.load_checkpoint(str(folder / CALIBRATED))
    for a, b in zip(first.optimizer.state.values(), second.optimizer.state.values(), strict=True):
        assert torch.equal(a["momentum_buffer"], b["momentum_buffer"])
    x = torch.randn(1, 1, 24, 24)
    for a, b in zip(first.network.eval()(x), second.network.eval()(x), strict=True):
        torch.testing.assert_close(a / T, b)
    second.on_train_start()
    assert np.isfinite(second.train_step(next(second.dataloader_train))["loss"])
    second.save_checkpoint(str(folder / "checkpoint_latest.pth"))
    assert ENTRY not in load_checkpoint(folder / "checkpoint_latest.pth")

    third, fourth = (model.world.trainer(model.trainer, "2d") for _ in range(2))
    for trainer, name in ((third, FINAL), (fourth, CALIBRATED)):
        torch.manual_seed(0)
        trainer.initialize()
        load_pretrained_weights(trainer.network, str(folder / name))
    assert weights_fingerprint(third.network) == weights_fingerprint(fourth.network)


def test_shared(untrained, tmp_path, monkeypatch):
    """Packed by nnUNetv2_export_model_to_zip and unpacked elsewhere, it predicts the same."""
    from nnunetv2.model_sharing.model_export import export_pretrained_model
    from nnunetv2.model_sharing.model_import import install_model_from_zip_file

    model = untrained("2d")
    trainer = model.make()
    folder, fold = Path(trainer.output_folder_base), Path(trainer.output_folder)
    assert model.bake("-f", "0", "--temperature", str(T)) == 0
    # what nnU-Net packs besides
    for file in (fold / "progress.png", fold / "validation" / "summary.json", folder / "dataset_fingerprint.json"):
        file.parent.mkdir(exist_ok=True)
        file.write_text("{}")
    export_pretrained_model(
        model.world.dataset_id,
        str(tmp_path / "model.zip"),
        ("2d",),
        model.trainer,
        folds=(0,),
        save_checkpoints=(CALIBRATED,),
    )
    expected = model.probabilities(folder, CALIBRATED)
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "elsewhere"))
    install_model_from_zip_file(str(tmp_path / "model.zip"))
    installed = tmp_path / "elsewhere" / folder.relative_to(tmp_path / "results")
    assert [path.name for path in (installed / "fold_0").glob("*.pth")] == [CALIBRATED]
    assert np.array_equal(model.probabilities(installed, CALIBRATED), expected)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes(untrained, prefix):
    """Names that DDP and torch.compile leave in a checkpoint are understood, and kept."""
    model = untrained("2d")
    trainer = model.make()
    fold = Path(trainer.output_folder)
    assert model.bake("-f", "0", "--temperature", str(T)) == 0
    expected = load_checkpoint(fold / CALIBRATED)
    changed = load_checkpoint(fold / FINAL)
    changed["network_weights"] = {prefix + name: w for name, w in changed["network_weights"].items()}
    torch.save(changed, fold / FINAL)
    model.write_temperature(trainer, T)
    assert model.bake("-f", "0") == 0
    baked = load_checkpoint(fold / CALIBRATED)
    assert [*baked["network_weights"]] == [prefix + name for name in expected["network_weights"]]
    for name, tensor in expected["network_weights"].items():
        assert torch.equal(baked["network_weights"][prefix + name], tensor)
    assert baked[ENTRY]["weights_sha256"] == expected[ENTRY]["weights_sha256"]


def test_again(untrained):
    """Baking again, with another temperature, replaces the file by one made from the original."""
    model = untrained("2d")
    fold = Path(model.make().output_folder)
    assert model.bake("-f", "0", "--temperature", str(T)) == 0
    first = load_checkpoint(fold / CALIBRATED)
    assert model.bake("-f", "0", "--temperature", "0.5") == 0
    assert load_checkpoint(fold / CALIBRATED)[ENTRY]["temperature"] == 0.5
    assert model.bake("-f", "0", "--temperature", str(T)) == 0
    assert repr(load_checkpoint(fold / CALIBRATED)) == repr(first)
    shutil.copy(fold / FINAL, fold / "checkpoint_best.pth")
    assert model.bake("-f", "0", "--temperature", str(T), "-chk", "checkpoint_best.pth") == 0
    assert load_checkpoint(fold / CALIBRATED)[ENTRY]["checkpoint"] == "checkpoint_best.pth"

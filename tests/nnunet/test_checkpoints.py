"""Checkpoints are found and read, and none that is read runs code."""

from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_calib.nnunet.checkpoints import find_checkpoint, load_checkpoint
from nnunet_calib.results.layout import ModelFolder

RAN = []


def run(what):
    """What a hostile file calls."""
    RAN.append(what)
    return {}


class Hostile:
    """Calls `run` when it is read."""

    def __reduce__(self):
        return run, ("code",)


def content(**also) -> dict:
    """What nnU-Net writes, in short, with every kind of value."""
    return {
        "network_weights": torch.nn.Conv2d(1, 2, 1).state_dict(),
        "optimizer_state": {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.01}]},
        "grad_scaler_state": None,
        "logging": {"lrs": [0.01], "mean_fg_dice": [np.float64(0.5)], "train_losses": [np.float32(-0.25)]},
        "_best_ema": np.float64(0.5),
        "init_args": {"plans": {}, "fold": 0, "device": torch.device("cuda")},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1),
    } | also


@pytest.fixture(params=[True, False], ids=["zip", "legacy"])
def written(request, tmp_path):
    """Writes a checkpoint in the format of PyTorch since 1.6, or the older one."""

    def write(value) -> Path:
        torch.save(value, tmp_path / "checkpoint.pth", _use_new_zipfile_serialization=request.param)
        return tmp_path / "checkpoint.pth"

    return write


def test_load(written):
    """Every value comes back with its type, as it does for nnU-Net."""
    file = written(content())
    ours, theirs = load_checkpoint(file), torch.load(file, weights_only=False)
    assert repr(ours) == repr(theirs)
    assert type(ours["_best_ema"]) is np.float64
    assert type(ours["logging"]["train_losses"][0]) is np.float32
    assert ours["network_weights"]._metadata == theirs["network_weights"]._metadata
    assert all(tensor.device.type == "cpu" for tensor in ours["network_weights"].values())


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8, np.float16, np.bool_])
def test_numbers(written, kind):
    """NumPy's other numbers, which plans or a trainer of one's own may leave."""
    assert type(load_checkpoint(written(content(number=kind(1))))["number"]) is kind


@pytest.mark.parametrize("module", [b"numpy.core", b"numpy._core"])
def test_numpy_versions(tmp_path, module):
    """NumPy 1 and 2 name the function that rebuilds a number differently, and read each other's files."""
    file = tmp_path / "checkpoint.pth"
    torch.save(content(), file, _use_new_zipfile_serialization=False)
    raw = file.read_bytes()
    name = next(name for name in (b"numpy._core", b"numpy.core") if name + b".multiarray\nscalar" in raw)
    file.write_bytes(raw.replace(name + b".multiarray", module + b".multiarray"))
    assert load_checkpoint(file)["_best_ema"] == 0.5


def test_hostile(written):
    """A file that would run code is refused, by the name of what it would run, unless it is trusted."""
    file = written(content(logging=Hostile()))
    with pytest.raises(ValueError, match="expected a checkpoint of tensors and plain values") as error:
        load_checkpoint(file)
    assert RAN == []
    assert f"found {run.__module__}.run in {file}, whose code would run when it is read" in str(error.value)
    assert "add --trust-checkpoint if you trust whoever made it" in str(error.value)
    assert load_checkpoint(file, trust=True)["logging"] == {}
    assert RAN == ["code"]
    RAN.clear()


def damaged(file: Path) -> str:
    with pytest.raises(ValueError, match="expected a checkpoint of nnU-Net") as error:
        load_checkpoint(file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("keep", [0, 10, 1000, -30])
def test_damaged(written, keep):
    """A download or a copy that was cut off; an empty file."""
    file = written(content())
    file.write_bytes(file.read_bytes()[:keep])
    assert "unreadable" in damaged(file)
    assert "copy it again, or train it again" in damaged(file)


def test_garbage(tmp_path):
    """Something else under this name."""
    (tmp_path / "checkpoint.pth").write_text("hello")
    assert "unreadable" in damaged(tmp_path / "checkpoint.pth")


@pytest.mark.parametrize(
    ("value", "lacking"),
    [
        ({"state_dict": {}}, "network_weights and trainer_name and init_args"),
        ([1], "network_weights and trainer_name and init_args"),
        ({"network_weights": {}, "init_args": {}}, "trainer_name"),
    ],
)
def test_of_other_software(written, value, lacking):
    """What it lacks, by name."""
    assert f"with {lacking}, found none" in damaged(written(value))


def test_older_pytorch(written, monkeypatch):
    """Where PyTorch cannot read it safely, it is not read."""
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.5.1+cpu"))
    file = written(content())
    with pytest.raises(ValueError, match=r"expected PyTorch 2.6 or newer.* found 2.5.1.*--trust-checkpoint"):
        load_checkpoint(file)
    assert load_checkpoint(file, trust=True)["trainer_name"] == "nnUNetTrainer"


def test_find(tmp_path, monkeypatch):
    """The file; else what makes it, or which others there are."""
    model = ModelFolder.below(tmp_path, "Dataset004_Hippocampus", "nnUNetTrainerNACL", "nnUNetPlans", "2d")
    command = "nnUNetv2_train Dataset004_Hippocampus 2d 1 -tr nnUNetTrainerNACL -p nnUNetPlans"
    fold = model.fold(1)
    (tmp_path / "preprocessed" / model.dataset).mkdir(parents=True)  # so that it can be trained here
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    with pytest.raises(ValueError, match="expected nnU-Net's checkpoint") as error:
        find_checkpoint(model, 1)
    assert f"{fold / 'checkpoint_final.pth'}, found none: train the fold with {command}, or" in str(error.value)
    fold.mkdir(parents=True)
    (fold / "checkpoint_best.pth").touch()
    (fold / "checkpoint_latest.pth").touch()
    with pytest.raises(ValueError, match="expected nnU-Net's checkpoint") as error:
        find_checkpoint(model, 1)
    assert f"finish the training with {command} --c, or name one of checkpoint_best.pth, checkpoint_latest.pth" in str(
        error.value
    )
    assert find_checkpoint(model, 1, "checkpoint_best.pth") == fold / "checkpoint_best.pth"

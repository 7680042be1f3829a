"""Checkpoints: read without running code, and recognised whatever wrapped the network."""

import numpy as np
import pytest
import torch
from torch import nn

from nnunet_calib.integration.trained_weights import load_weights, state_fingerprint, weights_fingerprint

RAN = []


def run(text):
    RAN.append(text)


class Code:
    """Calls `run` when it is unpickled."""

    def __reduce__(self):
        return run, ("ran",)


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


def write(path, weights=None, **more):
    """What nnU-Net's trainers save, with NumPy's numbers where they have them."""
    logged = {"val_losses": [np.float32(0.5)], "dice_per_class_or_region": [[np.float64(0.1), np.int64(3)]], "lrs": [1]}
    content = {
        "network_weights": network().state_dict() if weights is None else weights, "optimizer_state": {"step": 3},
        "grad_scaler_state": None, "logging": logged, "_best_ema": np.float32(0.1), "current_epoch": 5,
        "init_args": {"fold": "all", "configuration": "2d", "device": torch.device("cpu"), "plans": {"a": [1, 2]}},
        "trainer_name": "nnUNetTrainer", "inference_allowed_mirroring_axes": (0, 1),
    }  # fmt: skip
    torch.save(content | more, path)
    return path


def test_nnunet_content(tmp_path):
    """Everything that nnU-Net saves is read safely."""
    weights = load_weights(write(tmp_path / "a.pth"))
    assert (weights.fold, weights.configuration, weights.mirroring_axes) == ("all", "2d", (0, 1))
    assert state_fingerprint(weights.state) == weights_fingerprint(network())


def test_numpy_1(tmp_path):
    """A checkpoint that was saved with NumPy 1, which names its numbers otherwise."""
    path = write(tmp_path / "a.pth")
    content = path.read_bytes()
    assert b"numpy._core.multiarray" in content
    # stored without compression and with lengths of their own: same length, and no checksum is checked
    torch.save(torch.load(path, weights_only=False), path, _use_new_zipfile_serialization=False)
    legacy = path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    path.write_bytes(legacy)
    assert load_weights(path).fold == "all"


def test_code_is_not_run(tmp_path):
    """Other content is refused by name, and read where the user trusts it."""
    path = write(tmp_path / "a.pth", extra=Code())
    text = rf"expected a checkpoint of tensors and numbers, as nnU-Net writes it, found \S+\.run in {path}: if you"
    with pytest.raises(ValueError, match=text):
        load_weights(path)
    assert RAN == []
    load_weights(path, trust=True)
    assert RAN == ["ran"]
    RAN.clear()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"{}", None])
def test_damaged(tmp_path, content):
    """Whatever PyTorch says, it is one sentence that names the file."""
    path = tmp_path / "a.pth"
    if content is None:
        torch.save({"state_dict": {}}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="expected a checkpoint that nnU-Net has written, found") as error:
        load_weights(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


class Wrapped(nn.Module):
    """As DistributedDataParallel, and as torch.compile, hold a network."""

    def __init__(self, module, name):
        super().__init__()
        self.add_module(name, module)


def test_wrapped_networks(tmp_path):
    """The same fingerprint from a distributed, a compiled and a plain network, and from a DataParallel checkpoint."""
    plain = weights_fingerprint(network())
    compiled = Wrapped(network(), "_orig_mod")
    for wrapped in (compiled, Wrapped(network(), "module"), Wrapped(compiled, "module"), nn.DataParallel(network())):
        assert weights_fingerprint(wrapped) == plain
    parallel = load_weights(write(tmp_path / "a.pth", weights=nn.DataParallel(network()).state_dict()))
    assert state_fingerprint(parallel.state) == plain
    other = network()
    other[0].weight.data[0, 0, 0, 0] += 1e-3
    assert weights_fingerprint(other) != plain

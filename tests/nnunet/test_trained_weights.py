"""Weights, recognised whatever wrapped the network."""

import torch
from torch import nn

from nnunet_calib.integration.trained_weights import load_weights, state_fingerprint, weights_fingerprint


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


def write(path, weights=None):
    """What nnU-Net's trainers save of a network."""
    arguments = {"fold": "all", "configuration": "2d", "plans": {}}
    content = {
        "network_weights": network().state_dict() if weights is None else weights, "init_args": arguments,
        "trainer_name": "nnUNetTrainer", "inference_allowed_mirroring_axes": (0, 1),
    }  # fmt: skip
    torch.save(content, path)
    return path


def test_content(tmp_path):
    """The network, how it mirrors, and what it was trained for."""
    weights = load_weights(write(tmp_path / "a.pth"))
    assert (weights.fold, weights.configuration, weights.mirroring_axes) == ("all", "2d", (0, 1))
    assert state_fingerprint(weights.state) == weights_fingerprint(network())


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

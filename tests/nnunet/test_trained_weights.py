"""Weights, recognised whatever wrapped the network."""

import pytest
import torch
from torch import nn

from nnunet_calib.nnunet.checkpoints import plain_names, read_weights, state_fingerprint, unwrapped, weights_fingerprint
from nnunet_calib.nnunet.deployment.networks import put_weights


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


def write(path, weights=None):
    """What nnU-Net's trainers save of a network."""
    arguments = {"fold": "all", "configuration": "2d", "plans": {}}
    content = {
        "network_weights": network().state_dict() if weights is None else weights,
        "init_args": arguments,
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1),
    }
    torch.save(content, path)
    return path


def test_content(tmp_path):
    """The network, how it mirrors, and what it was trained for."""
    weights = read_weights(write(tmp_path / "a.pth"))
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
    parallel = read_weights(write(tmp_path / "a.pth", weights=nn.DataParallel(network()).state_dict()))
    assert state_fingerprint(parallel.state) == plain
    other = network()
    other[0].weight.data[0, 0, 0, 0] += 1e-3
    assert weights_fingerprint(other) != plain


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrapped_checkpoints(tmp_path, prefix):
    """The same weights, under the same names, from the checkpoint of a trainer that saves what wraps the network."""
    state = network().state_dict()
    found = read_weights(write(tmp_path / "a.pth", weights={prefix + name: w for name, w in state.items()})).state
    assert [*found] == [*state]
    assert state_fingerprint(found) == weights_fingerprint(network())


def test_compiled():
    """torch.compile's own wrapper, which compiles nothing before it is called."""
    plain = network()
    assert unwrapped(torch.compile(plain)) is plain


def test_layers_named_like_wrappers():
    """A network whose own layers have such a name keeps them: one of several, or all of them where it is known."""
    several = nn.ModuleDict({"module": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    assert unwrapped(several) is several
    assert plain_names(several.state_dict()) == {name: name for name in several.state_dict()}
    single = nn.ModuleDict({"module": nn.Linear(2, 2)})
    weights = {f"module.{name}": torch.full_like(w, 3) for name, w in single.state_dict().items()}
    put_weights(single, weights)
    assert all((w == 3).all() for w in single.parameters())
    assert plain_names(single.state_dict(), single) == {name: name for name in single.state_dict()}

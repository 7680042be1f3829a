"""The weights of a trained network: taken from its checkpoint, and recognised by their hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from nnunet_calib.nnunet.checkpoints import load_checkpoint

PREFIXES = ("module.", "_orig_mod.")  # of DDP and DataParallel, and of torch.compile


@dataclass(frozen=True)
class TrainedWeights:
    """What a checkpoint says of the network.

    Attributes:
        state: the network's, without the prefix of a wrapper.
        mirroring_axes: along which nnU-Net mirrors at inference, or None.
        fold: that was trained; None if the checkpoint does not say.
        configuration: likewise.
    """

    state: dict[str, torch.Tensor]
    mirroring_axes: tuple[int, ...] | None
    fold: int | str | None
    configuration: str | None


def read_weights(file: Path, *, trust: bool = False) -> TrainedWeights:
    """The weights in a checkpoint; arguments and errors as `load_checkpoint`."""
    checkpoint = load_checkpoint(file, trust=trust)
    weights, arguments = checkpoint["network_weights"], checkpoint["init_args"]
    state = {plain: weights[name] for name, plain in plain_names(weights).items()}
    axes = checkpoint.get("inference_allowed_mirroring_axes")
    return TrainedWeights(state, axes, arguments.get("fold"), arguments.get("configuration"))


def state_fingerprint(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of weights: the same for the same model, whatever file it was loaded from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def weights_fingerprint(network: torch.nn.Module) -> str:
    """`state_fingerprint` of a network, wrapped for a distributed training or compiled, or not."""
    return state_fingerprint(unwrapped(network).state_dict())


def unwrapped(network: torch.nn.Module) -> torch.nn.Module:
    """The network that DDP, DataParallel and torch.compile hold, or the network itself."""
    while [f"{name}." for name, _ in network.named_children()] in ([prefix] for prefix in PREFIXES):
        (network,) = network.children()
    return network


def plain_names(weights: Iterable[str], network: torch.nn.Module | None = None) -> dict[str, str]:
    """The network's own name for each name in a checkpoint.

    nnU-Net saves the network itself; other people's trainers may save what wraps it, which adds a prefix to all names.

    Args:
        weights: the names.
        network: told apart from a wrapper where its own names have such a prefix.
    """
    own = {} if network is None else network.state_dict()
    names = plain = [*weights]
    while names and all(name.startswith(PREFIXES) and name not in own for name in plain):
        plain = [name.partition(".")[2] for name in plain]
    return dict(zip(names, plain, strict=True))

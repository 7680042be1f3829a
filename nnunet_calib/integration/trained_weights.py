"""The weights of a trained network: taken from its checkpoint, and recognised by their hash."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from nnunet_calib.integration.checkpoint_files import load_checkpoint


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


def load_weights(file: Path, *, trust: bool = False) -> TrainedWeights:
    """The weights in a checkpoint; arguments and errors as `load_checkpoint`."""
    checkpoint = load_checkpoint(file, trust=trust)
    state, arguments = dict(checkpoint["network_weights"]), checkpoint["init_args"]
    # a distributed training of nnU-Net saves the network itself; DataParallel, in other people's trainers, adds this
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
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
    module = getattr(network, "module", network)  # DDP
    module = getattr(module, "_orig_mod", module)  # torch.compile
    return state_fingerprint(module.state_dict())

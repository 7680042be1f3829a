"""Finds and reads nnU-Net's checkpoints without running code that a file may bring.

A checkpoint is a pickle, which can call any function while it is read. PyTorch's `weights_only` reader calls only a few
functions of its own and those allowed here, which rebuild the NumPy numbers in nnU-Net's log.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_calib.results.layout import FINAL, ModelFolder

PREFIXES = ("module.", "_orig_mod.")  # added by DDP and DataParallel, and by torch.compile

TRUST = "--trust-checkpoint"
_NEEDED = ("network_weights", "trainer_name", "init_args")

_SCALAR = np.float32(0).__reduce__()[0]
# rebuilds a NumPy number, under its names in NumPy 1 and 2
_ALLOWED: list[Any] = [
    (_SCALAR, "numpy._core.multiarray.scalar"),
    (_SCALAR, "numpy.core.multiarray.scalar"),
    np.dtype,
    *{type(np.dtype(kind)) for kind in np.typecodes["AllInteger"] + np.typecodes["Float"] + "?"},
]


def find_checkpoint(model_folder: ModelFolder, fold: int | str, name: str = FINAL) -> Path:
    """Return the path of a fold's checkpoint.

    Args:
        model_folder: nnU-Net's folder of the model, with `fold_X`.
        fold: number of the fold, or "all".
        name: name of the file.

    Raises:
        ValueError: if the file is missing; the message names the command that writes it.
    """
    file = model_folder.fold(fold) / name
    if file.is_file():
        return file
    # a killed process leaves half-written files, which are hidden
    others = sorted(path.name for path in file.parent.glob("*.pth") if not path.name.startswith("."))
    trained = model_folder.has_training_data()  # otherwise the model was trained elsewhere
    command = model_folder.train_command(fold)
    if others:
        advice = f"finish the training with {command} --c, or " if trained else ""
        advice += f"name one of {', '.join(others)} with -chk"
    else:
        advice = f"train the fold with {command}, or " if trained else ""
        advice += "name an existing fold with -f"
    raise ValueError(f"expected nnU-Net's checkpoint {file}, found none: {advice}")


def load_checkpoint(file: Path, *, trust: bool = False) -> dict[str, Any]:
    """Read one of nnU-Net's checkpoints, with its tensors on the CPU.

    Args:
        file: checkpoint written by nnU-Net's trainer, or by `nnunet_calib bake`.
        trust: also read a file that holds objects of other classes, whose code then runs.

    Raises:
        ValueError: if the file is damaged, is not one of nnU-Net's, or holds other objects.
    """
    if not trust and torch.__version__ < (2, 6):  # type: ignore[operator]  # TorchVersion takes tuples
        raise ValueError(
            f"expected PyTorch 2.6 or newer, which can read checkpoints without running their code, found "
            f"{torch.__version__}: upgrade it, or add {TRUST} if you trust whoever made {file}"
        )
    try:
        if trust:
            checkpoint = torch.load(file, map_location="cpu", weights_only=False)
        else:
            with torch.serialization.safe_globals(_ALLOWED):
                checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        if foreign := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise ValueError(
                f"expected a checkpoint of tensors and plain values, found {foreign[1]} in {file}, whose code would "
                f"run when it is read: add {TRUST} if you trust whoever made it"
            ) from error
        raise ValueError(
            f"expected a checkpoint of nnU-Net, found {file} unreadable ({type(error).__name__}): copy it again, or "
            f"train it again"
        ) from error
    lacking = [key for key in _NEEDED if not isinstance(checkpoint, dict) or key not in checkpoint]
    if lacking:
        raise ValueError(f"expected a checkpoint of nnU-Net v2 with {' and '.join(lacking)}, found none in {file}")
    content: dict[str, Any] = checkpoint
    return content


@dataclass(frozen=True)
class TrainedWeights:
    """Weights of a checkpoint, and what it says about them.

    Attributes:
        state: state of the network, without the prefix of a wrapper.
        mirroring_axes: axes along which nnU-Net mirrors at inference, or None.
        fold: trained fold, or None if the checkpoint does not say.
        configuration: trained configuration, or None if the checkpoint does not say.
    """

    state: dict[str, torch.Tensor]
    mirroring_axes: tuple[int, ...] | None
    fold: int | str | None
    configuration: str | None


def read_weights(file: Path, *, trust: bool = False) -> TrainedWeights:
    """Read the weights of a checkpoint; arguments and errors as for `load_checkpoint`."""
    checkpoint = load_checkpoint(file, trust=trust)
    weights, arguments = checkpoint["network_weights"], checkpoint["init_args"]
    state = {plain: weights[name] for name, plain in plain_names(weights).items()}
    axes = checkpoint.get("inference_allowed_mirroring_axes")
    return TrainedWeights(state, axes, arguments.get("fold"), arguments.get("configuration"))


def state_fingerprint(state: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 of weights, which does not depend on the file they were loaded from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def weights_fingerprint(network: torch.nn.Module) -> str:
    """Return the `state_fingerprint` of a network, which DDP or torch.compile may wrap."""
    return state_fingerprint(unwrapped(network).state_dict())


def unwrapped(network: torch.nn.Module) -> torch.nn.Module:
    """Return the network inside DDP, DataParallel and torch.compile, or the network itself."""
    while [f"{name}." for name, _ in network.named_children()] in ([prefix] for prefix in PREFIXES):
        (network,) = network.children()
    return network


def plain_names(weights: Iterable[str], network: torch.nn.Module | None = None) -> dict[str, str]:
    """Map each name in a checkpoint to the network's own name.

    nnU-Net saves the network itself. Third-party trainers may save its wrapper, which adds a prefix to all names.

    Args:
        weights: names in the checkpoint.
        network: network whose own names may begin with such a prefix, which is then kept.
    """
    own = {} if network is None else network.state_dict()
    names = plain = [*weights]
    while names and all(name.startswith(PREFIXES) and name not in own for name in plain):
        plain = [name.partition(".")[2] for name in plain]
    return dict(zip(names, plain, strict=True))

"""The weights of a trained fold, read from its checkpoint without running code that the file may hold.

nnU-Net loads checkpoints with `weights_only=False`, which runs whatever a pickle asks for. What its trainers write does
not need that: tensors, plain values, and NumPy's numbers in the logged losses, which PyTorch reads safely when told so.
"""

from __future__ import annotations

import contextlib
import hashlib
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_calib.integration.fold_results import fold_folder, train_command

FINAL_CHECKPOINT = "checkpoint_final.pth"


@dataclass(frozen=True)
class TrainedWeights:
    """What a checkpoint says of the network.

    Attributes:
        state: the network's, without the prefixes of wrappers.
        mirroring_axes: along which nnU-Net mirrors at inference, or None.
        fold: that was trained; None if the checkpoint does not say.
        configuration: likewise.
    """

    state: dict[str, torch.Tensor]
    mirroring_axes: tuple[int, ...] | None
    fold: int | str | None
    configuration: str | None


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


def find_checkpoint(model_folder: Path, fold: int | str, name: str = FINAL_CHECKPOINT) -> Path:
    """The checkpoint of a fold.

    Raises:
        ValueError: in one sentence that names the checkpoints there are, if this one is missing.
    """
    folder = fold_folder(model_folder, fold)
    if (folder / name).is_file():
        return folder / name
    others = sorted(path.name for path in folder.glob("checkpoint_*.pth"))
    train = train_command(model_folder, fold)
    advice = f"train it with {train}"
    if others:
        advice = f"measure another one with -chk {others[0]}"
        if name == FINAL_CHECKPOINT:
            advice = f"finish the training with {train} --c, or {advice}"
    raise ValueError(f"expected {name} in {folder}, found {' and '.join(others) or 'no checkpoint'}: {advice}")


def load_weights(path: Path, *, trust: bool = False) -> TrainedWeights:
    """Read a checkpoint.

    Args:
        path: of a checkpoint of nnU-Net's.
        trust: read it as nnU-Net does, which can run code that is in it.

    Raises:
        ValueError: in one sentence, if it is damaged, none of nnU-Net's, or holds what only `trust` reads.
    """
    try:
        with _numbers_of_numpy():
            content = torch.load(path, map_location="cpu", weights_only=not trust)
        state = dict(content["network_weights"])
    except MemoryError:
        raise
    except pickle.UnpicklingError as error:
        if (other := re.search(r"GLOBAL (\S+)", str(error))) is None:
            raise _damaged(path, error) from error
        raise ValueError(
            f"expected a checkpoint of tensors and numbers, as nnU-Net writes it, found {other[1]} in {path}: if you "
            f"trust the file, load it as nnU-Net does with --trust-checkpoint, which can run code that is in it"
        ) from error
    except Exception as error:  # PyTorch, zipfile and pickle each have their own way to say "damaged"
        raise _damaged(path, error) from error
    # nnU-Net saves the network itself; DataParallel, in other people's trainers, adds this to every name
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    arguments: Mapping[str, Any] = content.get("init_args", {})
    axes = content.get("inference_allowed_mirroring_axes")
    return TrainedWeights(state, axes, arguments.get("fold"), arguments.get("configuration"))


def _numbers_of_numpy() -> contextlib.AbstractContextManager[Any]:
    """Lets PyTorch's safe unpickler read NumPy's scalars, under the names that NumPy 1 and 2 give them."""
    if not hasattr(torch.serialization, "safe_globals"):  # before PyTorch 2.5
        return contextlib.nullcontext()
    scalar: Any = np.float64(0).__reduce__()[0]
    codes = "?" + np.typecodes["AllInteger"] + np.typecodes["Float"]
    return torch.serialization.safe_globals(
        [
            (scalar, "numpy._core.multiarray.scalar"), (scalar, "numpy.core.multiarray.scalar"), np.dtype,
            *{type(np.dtype(code)) for code in codes},
        ]
    )  # fmt: skip


def _damaged(path: Path, error: Exception) -> ValueError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ValueError(
        f"expected a checkpoint that nnU-Net has written, found {path} unreadable ({reason}): restore it, or name "
        f"another with -chk"
    )

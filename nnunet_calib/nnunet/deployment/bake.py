"""Writing a temperature, or another calibrator, into the last linear layers of checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import nnunet_calib
from nnunet_calib.io.atomic_files import replaced_when_complete
from nnunet_calib.io.wording import last_line
from nnunet_calib.nnunet.checkpoints import find_checkpoint, load_checkpoint, plain_names, weights_fingerprint
from nnunet_calib.nnunet.deployment.last_layers import LastLayer, find_heads, largest_deviation, outputs_of
from nnunet_calib.nnunet.deployment.networks import Architecture, put_weights, stock_trainer
from nnunet_calib.nnunet.lookup import find_trainer
from nnunet_calib.posthoc import from_json
from nnunet_calib.posthoc.calibrator import Calibrator
from nnunet_calib.results.deployed_temperature import Deployed
from nnunet_calib.results.layout import FINAL, Fold, ModelFolder

CALIBRATED = "checkpoint_calibrated.pth"
ENTRY = "nnunet_calib"


@dataclass(frozen=True)
class Baked:
    """A written checkpoint.

    Attributes:
        file: its path.
        trainer: name of the trainer that it holds.
        heads: names of the changed tensors.
        deviation: largest difference between its logits and the calibrated logits of the original, relative to the
            largest logit of the channel.
    """

    file: Path
    trainer: str
    heads: tuple[str, ...]
    deviation: float


def bake(
    model_folder: ModelFolder,
    folds: Sequence[Fold],
    deployed: Deployed,
    *,
    name: str = FINAL,
    portable: bool = False,
    trust: bool = False,
) -> list[Baked]:
    """Write `checkpoint_calibrated.pth` beside a checkpoint of each fold: all of them, or none.

    Args:
        model_folder: nnU-Net's folder of the model, with plans.json, dataset.json and `fold_X`.
        folds: folds whose checkpoints are baked.
        deployed: the temperature.
        name: file name of the checkpoints.
        portable: name the stock trainer that the trainer derives from, so that nnU-Net alone can load the result.
        trust: also read checkpoints that hold objects whose code then runs.

    Raises:
        ValueError: if a checkpoint is missing, damaged or already baked, if the temperature belongs to other weights,
            or if dividing the last layers does not divide the logits.
    """
    if name == CALIBRATED:
        raise ValueError(f"expected another checkpoint than {CALIBRATED}, which bake writes: name one with -chk")
    files = [find_checkpoint(model_folder, fold, name) for fold in folds]
    baked = []
    with ExitStack() as stack:
        for fold, file in zip(folds, files, strict=True):
            checkpoint = load_checkpoint(file, trust=trust)
            made = _bake(checkpoint, file, fold, model_folder, deployed, portable)
            temporary = stack.enter_context(replaced_when_complete(made.file))
            try:
                torch.save(checkpoint, temporary)
            except RuntimeError as error:  # PyTorch's, for a disk that is full or read-only
                raise OSError(
                    f"expected to write {made.file}, could not ({last_line(error)}): is there space and permission?"
                ) from error
            baked.append(made)
    return baked


def _bake(
    checkpoint: dict[str, Any], file: Path, fold: Fold, model_folder: ModelFolder, deployed: Deployed, portable: bool
) -> Baked:
    """Change the content of a checkpoint in place."""
    if ENTRY in checkpoint:
        raise ValueError(
            f"expected a checkpoint without a temperature, found {file} baked with "
            f"{from_json(checkpoint[ENTRY]).words('.6g')}: bake the one it was made from"
        )
    original, calibrator = checkpoint["network_weights"], deployed.calibrator
    architecture = Architecture(model_folder, find_trainer(checkpoint["trainer_name"]))
    networks = [architecture.build(deep_supervision=on) for on in (False, True)]  # without it, the network predicts
    for network in networks:
        put_weights(network, original)
    fingerprint = weights_fingerprint(networks[0])
    deployed.check(model_folder, fold, fingerprint)

    x = architecture.random_input(networks[0])
    before = [outputs_of(network, x) for network in networks]
    layers = set().union(*map(find_heads, networks, before))
    heads = tuple(sorted({name for layer in layers for names in layer for name in names}))
    weights = calibrated_weights(original, networks[0], layers, calibrator)
    for network in networks:
        put_weights(network, weights)
    after = [outputs_of(network, x) for network in networks]
    deviation = max(
        largest_deviation(old, new, calibrator, network, regions=architecture.regions)
        for old, new, network in zip(before, after, networks, strict=True)
    )
    if portable:
        checkpoint["trainer_name"] = _stock_name(architecture, weights, x, after[0])
    checkpoint["network_weights"] = weights
    checkpoint[ENTRY] = {
        "version": nnunet_calib.__version__,
        **calibrator.to_json(),
        "standard_error": deployed.content.get("standard_error"),
        "fitted": deployed.origin(),
        "checkpoint": file.name,
        "weights_sha256": fingerprint,
        "trainer_name": architecture.trainer.__name__,
        "divided": [*heads],
    }
    return Baked(file.with_name(CALIBRATED), checkpoint["trainer_name"], heads, deviation)


def calibrated_weights(
    weights: dict[str, Tensor], network: nn.Module, layers: Set[LastLayer], calibrator: Calibrator
) -> dict[str, Tensor]:
    """Return a copy of a checkpoint's weights with calibrated last layers; the other tensors are shared with it.

    Args:
        weights: weights by the checkpoint's names, which keep their prefixes and their order.
        network: network whose names `layers` uses.
        layers: layers to change.
        calibrator: calibrator to write into them.

    Raises:
        ValueError: if the calibrator needs a weight or a bias that a layer lacks.
    """
    result = copy.copy(weights)  # keeps the attribute with the versions of the layers
    places = {plain: name for name, plain in plain_names(weights, network).items()}
    for layer in layers:
        tensors = [weights[places[names[0]]].double() if names else None for names in layer]
        for names, old, new in zip(layer, tensors, calibrator.last_layer(*tensors), strict=True):
            if (old is None) != (new is None):
                raise ValueError(
                    f"expected last layers with weight and bias, found {', '.join(sum(layer, ()))} alone: apply the "
                    f"calibrator to probabilities instead"
                )
            if new is not None:
                tensor = new.to(weights[places[names[0]]].dtype)
                result |= {places[name]: tensor for name in names}  # shared tensors stay shared
    return result


def _stock_name(architecture: Architecture, weights: dict[str, Tensor], x: Tensor, expected: list[Tensor]) -> str:
    """Return the name of the stock trainer, checked to build the same network."""
    stock = stock_trainer(architecture.trainer)
    try:
        network = Architecture(architecture.model_folder, stock).build(deep_supervision=False)
        put_weights(network, weights)
        outputs = outputs_of(network, x)
        same = [a.shape for a in outputs] == [a.shape for a in expected] and all(map(torch.allclose, outputs, expected))
        reason = "other logits"
    except ValueError as error:
        same, reason = False, f"none ({error})"
    if not same:
        raise ValueError(
            f"expected {stock.__name__} to build the network of {architecture.trainer.__name__}, which derives from "
            f"it, found {reason}: bake without --portable"
        )
    return stock.__name__

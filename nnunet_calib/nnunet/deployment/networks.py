"""The network of a trained model, built as nnU-Net does for inference: by its trainer, from the plans beside it."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from nnunet_calib.io.json_forms import NAME, read_json
from nnunet_calib.io.wording import reason
from nnunet_calib.nnunet.checkpoints import plain_names
from nnunet_calib.nnunet.lookup import find_trainer
from nnunet_calib.results.layout import ModelFolder


@dataclass(frozen=True)
class Architecture:
    """The network architecture of a model.

    Attributes:
        model_folder: nnU-Net's folder of the model, with plans.json and dataset.json.
        trainer: trainer whose class method builds the network.
    """

    model_folder: ModelFolder
    trainer: type

    @cached_property
    def _plans(self) -> tuple[Any, Any, dict[str, Any]]:
        return trained_plans(self.model_folder)

    @cached_property
    def input_channels(self) -> int:
        """Number of channels of the images and, for a cascade, of the previous stage."""
        from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

        return int(determine_num_input_channels(*self._plans))

    @cached_property
    def regions(self) -> bool:
        """Whether each channel of the logits has its own sigmoid."""
        plans, _, dataset = self._plans
        return bool(plans.get_label_manager(dataset).has_regions)

    def build(self, *, deep_supervision: bool) -> nn.Module:
        """Build the network, with random weights.

        Raises:
            ValueError: if the trainer fails to build it.
        """
        plans, configuration, dataset = self._plans
        channels = self.input_channels, plans.get_label_manager(dataset).num_segmentation_heads
        build = self.trainer.build_network_architecture  # type: ignore[attr-defined]
        arguments: tuple[Any, ...]
        try:
            if "plans_manager" in inspect.signature(build).parameters:
                arguments = plans, configuration
            else:  # trainers from before nnU-Net 2.8
                arguments = (
                    configuration.network_arch_class_name,
                    configuration.network_arch_init_kwargs,
                    configuration.network_arch_init_kwargs_req_import,
                )
            network: nn.Module = build(*arguments, *channels, enable_deep_supervision=deep_supervision)
        except Exception as error:
            raise ValueError(
                f"expected {self.trainer.__name__} to build its network from {self.model_folder.path / 'plans.json'}, "
                f"got {type(error).__name__}: {reason(error)}"
            ) from error
        return network

    def random_input(self, network: nn.Module) -> torch.Tensor:
        """Return noise (1, C, *spatial) of twice the network's total stride, or of a whole patch if it needs one.

        Raises:
            ValueError: if the network fails on a patch.
        """
        configuration = self._plans[1]
        patch = tuple(configuration.patch_size)
        strides = np.prod(configuration.network_arch_init_kwargs.get("strides", [patch]), axis=0, dtype=int)
        small = tuple(min(whole, 2 * int(stride)) for whole, stride in zip(patch, strides, strict=True))
        generator = torch.Generator().manual_seed(0)
        for size in (small, patch):
            x = torch.randn(1, self.input_channels, *size, generator=generator)
            try:
                with torch.no_grad():
                    network.eval()(x)
            except Exception as error:  # a network for one size only may raise anything
                failure = error
            else:
                return x
        raise ValueError(
            f"expected the network of {self.trainer.__name__} to take a patch {tuple(x.shape)}, got "
            f"{type(failure).__name__}: {reason(failure)}"
        ) from failure


def trained_plans(model_folder: ModelFolder) -> tuple[Any, Any, dict[str, Any]]:
    """Return nnU-Net's managers of a model's plans and configuration, and the content of its dataset.json.

    Raises:
        ValueError: if one of the files is missing, or is not one of nnU-Net's.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    files = [model_folder.path / name for name in ("plans.json", "dataset.json")]
    for file in files:
        if not file.is_file():
            raise ValueError(
                f"expected nnU-Net's {file.name} in {model_folder}, found none: copy it from where the model was "
                f"trained"
            )
    form = {"dataset_name": NAME, "plans_name": NAME, "configurations": {str: dict}}
    plans = PlansManager(read_json(files[0], form, "restore that of the trained model"))
    return plans, plans.get_configuration(model_folder.configuration), read_json(files[1])


def stock_trainer(trainer: type) -> type:
    """Return the nearest base class of a trainer that is part of nnU-Net.

    Raises:
        ValueError: if nnU-Net does not find that class by its name.
    """
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    stock = next(
        cls
        for cls in trainer.__mro__
        if issubclass(cls, nnUNetTrainer)
        and cls.__module__.startswith("nnunetv2.")
        and not hasattr(cls, "calibration_hyperparameters")  # one of ours, in a file linked into nnU-Net's folder
    )
    if find_trainer(stock.__name__) is not stock:
        raise ValueError(
            f"expected nnU-Net to find {stock.__name__}, from which {trainer.__name__} derives, found another class of "
            f"this name: bake without --portable"
        )
    return stock


def put_weights(network: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Load the weights of a checkpoint, whose names may have the prefixes of DDP or torch.compile.

    Raises:
        ValueError: if they belong to another network.
    """
    names = plain_names(weights, network)
    try:
        network.load_state_dict({plain: weights[name] for name, plain in names.items()})
    except (RuntimeError, TypeError, AttributeError) as error:
        lines = str(error).splitlines()
        raise ValueError(
            f"expected the weights of {type(network).__name__} as plans.json describes it, found others: "
            f"{' '.join(' '.join(lines[1:2] or lines).split())[:300]}"
        ) from error

"""Reconstruction of the nnU-Net trainer of a trained fold, for validation only.

A trainer's constructor writes a log into the fold's folder and, with Weights & Biases, starts a run and removes that of
the training. So the trainer is built with an empty folder as nnUNet_results: nothing that nnU-Net then writes, neither
the log nor the input of a cascade's next stage, goes into the model's folder.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from nnunet_calib.io.json_forms import NAME, read_json
from nnunet_calib.io.wording import last_line
from nnunet_calib.nnunet.labels import check_dataset
from nnunet_calib.nnunet.lookup import find_trainer
from nnunet_calib.results.layout import ModelFolder


@contextmanager
def remade_trainer(model_folder: ModelFolder, fold: int | str, device: torch.device) -> Iterator[Any]:
    """Build the trainer of a fold from the plans.json and the dataset.json in the model's folder.

    The trainer is not initialised. It writes into a temporary folder, not into the fold's.

    Raises:
        ValueError: if nnU-Net does not find the trainer, or if plans or labels are unfit.
    """
    configuration = model_folder.configuration
    plans, dataset = (
        _described(model_folder.path / file, form)
        for file, form in (
            ("plans.json", {"dataset_name": NAME, "plans_name": NAME, "configurations": {str: dict}}),
            ("dataset.json", {"labels": dict, "file_ending": NAME}),
        )
    )
    check_dataset(dataset, model_folder.path / "dataset.json")
    if configuration not in plans["configurations"]:
        raise ValueError(
            f"expected the configuration {configuration} in {model_folder.path / 'plans.json'}, found "
            f"{', '.join(plans['configurations'])}: restore the plans that the model was trained with"
        )
    preprocessed = model_folder.preprocessed(plans["dataset_name"])
    if preprocessed is None:
        raise ValueError(
            "expected nnUNet_preprocessed to name the folder of nnU-Net's preprocessed data, found it unset: export it "
            "as for nnUNetv2_train, or, where these data are not, measure predictions of labelled cases with "
            "nnunet_calib evaluate or fit"
        )
    plans["dataset_name"] = preprocessed.name  # the name by which nnU-Net finds the data here
    trainer_class = find_trainer(model_folder.trainer)
    with tempfile.TemporaryDirectory(prefix="nnunet_calib_") as scratch:
        # nnU-Net reads the variable whenever it needs the folder
        with _environment(nnUNet_results=scratch, nnUNet_wandb_enabled="0"):
            trainer = _made(
                trainer_class,
                plans=plans | {"continue_training": False},
                configuration=configuration,
                fold=fold,
                dataset_json=dataset,
                device=device,
            )
        previous = trainer.folder_with_segs_from_previous_stage
        if previous is not None and Path(previous).is_relative_to(scratch):
            trainer.folder_with_segs_from_previous_stage = str(
                model_folder.path.parent.joinpath(*Path(previous).relative_to(scratch).parts[1:])
            )
        yield trainer


def preprocess_command(trainer: Any) -> str:
    """Return advice with the command that makes the preprocessed data, ground truth included."""
    plans = trainer.plans_manager
    return (
        f"make them again with nnUNetv2_preprocess -d {plans.dataset_name} -plans_name {plans.plans_name} -c "
        f"{trainer.configuration_name}"
    )


def _made(trainer_class: type, **arguments: Any) -> Any:
    """Construct a trainer as nnUNetv2_train does, with its arguments by name.

    Raises:
        ValueError: if its constructor fails.
    """
    try:
        return trainer_class(**arguments)
    except (OSError, ValueError):
        raise
    except Exception as error:  # a third-party constructor may raise anything
        raise ValueError(
            f"expected nnU-Net to construct {trainer_class.__name__}, got {type(error).__name__} ({last_line(error)}): "
            f"fix its __init__, which nnUNetv2_train calls with plans, configuration, fold, dataset_json and device as "
            f"keywords"
        ) from error


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _described(file: Path, form: dict[str, Any]) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError(f"expected {file.name} of the trained model in {file.parent}, found none: restore it")
    content: dict[str, Any] = read_json(file, form, "restore that of the trained model")
    return content

"""Plan and preprocess the dataset, and write the plans of the small network."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from subprocess import run
from typing import Any

from benchmarks.study import settings
from nnunet_calib.io.atomic_files import write_json


def small_plans(plans: dict[str, Any]) -> dict[str, Any]:
    """Return nnU-Net's plans with the study's changes, which use the data preprocessed for nnU-Net's plans."""
    changed = json.loads(json.dumps(plans))
    study = settings.chosen()
    changed["plans_name"] = settings.SMALL_PLANS
    configuration = changed["configurations"][study.configuration]
    configuration.update(study.plan_changes)
    configuration["architecture"]["arch_kwargs"].update(study.architecture_changes)
    changed["configurations"] = {study.configuration: configuration}
    return changed


def preprocessed_dataset() -> Path:
    """Return the dataset's folder in nnUNet_preprocessed, which has to exist."""
    return dataset_folder(Path(os.environ["nnUNet_preprocessed"]))


def dataset_folder(root: Path) -> Path:
    """Return the study's dataset in nnUNet_raw or nnUNet_preprocessed."""
    return next(root.glob(f"Dataset{settings.chosen().dataset:03d}_*"))


def prepare(environment: dict[str, str]) -> None:
    """Plan and preprocess unless that is done, and write the small plans."""
    root = Path(os.environ["nnUNet_preprocessed"])
    study = settings.chosen()
    done = root / f"dataset{study.dataset:03d}_is_preprocessed"
    if not done.is_file():
        command = (
            "from nnunetv2.experiment_planning.plan_and_preprocess_entrypoints import "
            "plan_and_preprocess_entry as main; main()"
        )
        arguments = ["-d", str(study.dataset), "-c", study.configuration, "-np", "1"]
        run([sys.executable, "-c", command, *arguments], check=True, env=environment)
        done.touch()
    folder = preprocessed_dataset()
    if study.own_splits:
        shutil.copyfile(
            dataset_folder(Path(os.environ["nnUNet_raw"])) / "splits_final.json", folder / "splits_final.json"
        )
    plans = json.loads((folder / f"{settings.PLANS}.json").read_text(encoding="utf-8"))
    write_json(small_plans(plans), folder / f"{settings.SMALL_PLANS}.json")

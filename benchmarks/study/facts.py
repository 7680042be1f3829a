"""The facts of a finished run: a few kB of JSON that outlive the networks."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from pathlib import Path
from subprocess import run
from typing import Any

from benchmarks.study import settings
from benchmarks.study.plan import preprocessed_dataset

PACKAGES = ("nnunetv2", "nnunet-calib", "torch", "numpy", "scipy", "batchgenerators", "batchgeneratorsv2")
REPOSITORY = Path(__file__).resolve().parents[2]


def common_settings() -> dict[str, Any]:
    """Return the settings that all runs of a study folder share."""
    study = settings.chosen()
    shared = ("SMALL_PLANS", "DEVICE", "THREADS", "VALIDATION_ITERATIONS", "SEED")
    own = ("dataset", "configuration", "plan_changes", "architecture_changes", "epochs", "iterations")
    return {name.lower(): getattr(settings, name) for name in shared} | {name: getattr(study, name) for name in own}


def provenance() -> dict[str, Any]:
    """Return versions, the last commit that changed the package, and the machine."""

    def git(*arguments: str) -> str | None:
        result = run(["git", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True, check=False)
        return result.stdout.strip() if result.returncode == 0 else None

    changes = git("status", "--porcelain", "nnunet_calib")
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    commit = git("log", "-1", "--format=%H", "--", "nnunet_calib")
    return {
        "package_commit": commit,
        "uncommitted_changes": bool(changes),
        "versions": versions,
        "machine": platform.machine(),
        "system": platform.system(),
    }


def plan_facts() -> dict[str, Any]:
    """Return the part of the plans that determines the network."""
    plans = json.loads((preprocessed_dataset() / f"{settings.SMALL_PLANS}.json").read_text(encoding="utf-8"))
    configuration = plans["configurations"][settings.chosen().configuration]
    facts = {name: configuration[name] for name in ("patch_size", "batch_size", "spacing", "batch_dice")}
    facts.update(
        {
            name: configuration["architecture"]["arch_kwargs"][name]
            for name in ("features_per_stage", "n_conv_per_stage", "n_conv_per_stage_decoder")
        }
    )
    return {"plans": settings.SMALL_PLANS, "network": configuration["architecture"]["network_class_name"], **facts}


def validation_facts(fold_folder: Path) -> dict[str, Any]:
    """Return Dice from nnU-Net's summary, and calibration from this package's."""
    validation = fold_folder / "validation"
    dice = json.loads((validation / "summary.json").read_text(encoding="utf-8"))
    summary = json.loads((validation / "calibration" / "summary.json").read_text(encoding="utf-8"))
    fitted = ("temperature", "standard_error", "nll_before", "nll_after", "at_bound")
    return {
        "dice": {
            "foreground_mean": dice["foreground_mean"]["Dice"],
            **{label: values["Dice"] for label, values in dice["mean"].items()},
        },
        "hyperparameters": summary["model"]["hyperparameters"],
        "weights_sha256": summary["model"]["weights_sha256"],
        "temperature": {name: summary["temperature"][name] for name in fitted},
        "calibration": {
            state: {
                scope: {name: values[name] for name in ("foreground_mean", "top_label", "nll", "brier")}
                for scope, values in scopes.items()
            }
            for state, scopes in summary["metrics"].items()
        },
        "cases": len(summary["metric_per_case"]),
    }

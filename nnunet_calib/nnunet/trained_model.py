"""Identity of a trained network, which its results record and are compared by."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from nnunet_calib.nnunet.training.untrained_terms import untrained_terms
from nnunet_calib.results.layout import FINAL, ModelFolder
from nnunet_calib.results.schemas import UNTRAINED

_NAMES = ("dataset_name", "plans_name", "data_identifier")  # entries of the plans that no prediction depends on


def describe_model(
    trainer: Any, fold_folder: Path, weights_sha256: str, checkpoint: str | None = FINAL
) -> dict[str, Any]:
    """Return the identity of the model of any nnU-Net trainer, as JSON values.

    Args:
        trainer: the trainer.
        fold_folder: the folder that the training has written to.
        weights_sha256: fingerprint of its network's weights.
        checkpoint: name of the file that holds the weights, or will hold them; None if it is unknown.
    """
    hyperparameters: dict[str, Any] = getattr(trainer, "calibration_hyperparameters", dict)()
    if untrained := untrained_terms(fold_folder):
        hyperparameters |= {UNTRAINED: untrained}
    return {
        "dataset": trainer.plans_manager.dataset_name,
        "trainer": type(trainer).__name__,
        "plans": trainer.plans_manager.plans_name,
        "configuration": trainer.configuration_name,
        "fold": trainer.fold,
        "hyperparameters": hyperparameters,
        "checkpoint": checkpoint,
        "weights_sha256": weights_sha256,
        "plans_sha256": _plans_fingerprint(trainer),
        "plans_content_sha256": _plans_fingerprint(trainer, without=_NAMES),
    }


def folder_of(trainer: Any) -> ModelFolder:
    """Return the folder that a trainer writes its folds into."""
    plans = trainer.plans_manager
    return ModelFolder(
        Path(trainer.output_folder_base),
        plans.dataset_name,
        type(trainer).__name__,
        plans.plans_name,
        trainer.configuration_name,
    )


def _plans_fingerprint(trainer: Any, without: tuple[str, ...] = ()) -> str:
    """Return the SHA-256 of the plans and labels, on which predictions depend besides the weights."""
    plans, configuration = (
        {name: value for name, value in entries.items() if name not in ("configurations", *without)}
        for entries in (trainer.plans_manager.plans, trainer.configuration_manager.configuration)
    )
    labels = {name: trainer.dataset_json.get(name) for name in ("labels", "regions_class_order")}
    content = [plans, configuration, labels]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()

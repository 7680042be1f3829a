"""Everything the study can be asked to do differently. A change here asks for a new study folder.

The network is small and the training short, so that a run takes minutes on two CPU cores; every method has the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

DATASET = 4  # Task04 of the Medical Segmentation Decathlon, as nnUNetv2_convert_MSD_dataset names it
CONFIGURATION = "3d_fullres"
PLANS = "nnUNetPlans"  # what nnU-Net plans
SMALL_PLANS = "nnUNetPlansSmall"  # the same with the changes below; nothing of it concerns the preprocessing
PLAN_CHANGES: dict[str, Any] = {"batch_size": 2}
ARCHITECTURE_CHANGES: dict[str, Any] = {"features_per_stage": [8, 16, 32, 64], "n_conv_per_stage_decoder": [1, 1, 1]}

DEVICE = "cpu"
THREADS = 1  # of PyTorch; the patches are made in another process
EPOCHS = 20
ITERATIONS = 100  # an epoch
VALIDATION_ITERATIONS = 10  # an epoch; they choose checkpoint_best, which the study does not use
SEED = 1  # of a run: SEED + fold, the same for all methods, which so begin alike and see the same patches
FOLDS = (0, 1, 2, 3, 4)
SWEEP_FOLD = 0  # the values of the sweep are compared here; the other folds are for reporting only

LEARNED = 0.1  # a run of less Dice has learned no foreground: it is named, and its fold is not in the comparison
PREFIX = "nnUNetTrainerStudy"  # of the trainers' names


@dataclass(frozen=True)
class Method:
    """A trainer of the study: PREFIX + name, extends `bases` and sets `attributes`.

    Attributes:
        bases: trainers of nnunet_calib or of nnU-Net, by class name.
        attributes: class attributes, the hyperparameters of `nnunet_calib.integration.trainer`.
        seed: of its run on fold 0; another one shows what chance does.
    """

    bases: tuple[str, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    seed: int = SEED


METHODS = {
    "Calib": Method(("nnUNetTrainerCalib",)),
    "NACL": Method(("nnUNetTrainerNACL",)),
    "SVLS": Method(("nnUNetTrainerSVLS",)),
    "ML1ACE": Method(("nnUNetTrainerML1ACE",)),
    "SoftML1ACE": Method(("nnUNetTrainerSoftML1ACE",)),
    "Dice": Method(("nnUNetTrainerCalib", "nnUNetTrainerDiceLoss")),
    "DiceML1ACE": Method(("nnUNetTrainerDiceML1ACE",)),
    "NACLML1ACE": Method(("nnUNetTrainerNACLML1ACE",)),
}

# On SWEEP_FOLD, beside the defaults above: NACL 0.01, ML1ACE 1, SoftML1ACE 0.3, DiceML1ACE 0.5, all with a
# warm-up of 10 epochs; SVLS sigma 1. "_seed" is the default with other first weights and patches.
SWEEP = {
    "Calib_seed": Method(("nnUNetTrainerCalib",), seed=SEED + 100),
    "NACL_w003": Method(("nnUNetTrainerNACL",), {"nacl_weight": 0.03}),
    "NACL_w01": Method(("nnUNetTrainerNACL",), {"nacl_weight": 0.1}),
    "NACL_w01_constant": Method(("nnUNetTrainerNACL",), {"nacl_weight": 0.1, "nacl_warmup_epochs": 0}),
    "NACL_probabilities": Method(("nnUNetTrainerNACL",), {"nacl_weight": 0.1, "nacl_on": "probabilities"}),
    "NACL_probabilities_w1": Method(("nnUNetTrainerNACL",), {"nacl_weight": 1.0, "nacl_on": "probabilities"}),
    "SVLS_s05": Method(("nnUNetTrainerSVLS",), {"svls_sigma": 0.5}),
    "ML1ACE_w01_constant": Method(("nnUNetTrainerML1ACE",), {"ml1_ace_weight": 0.1, "ml1_ace_warmup_epochs": 0}),
    "ML1ACE_w03_constant": Method(("nnUNetTrainerML1ACE",), {"ml1_ace_weight": 0.3, "ml1_ace_warmup_epochs": 0}),
    "ML1ACE_constant": Method(("nnUNetTrainerML1ACE",), {"ml1_ace_warmup_epochs": 0}),
    "ML1ACE_w03": Method(("nnUNetTrainerML1ACE",), {"ml1_ace_weight": 0.3}),
    "ML1ACE_seed": Method(("nnUNetTrainerML1ACE",), seed=SEED + 100),
    "ML1ACE_full": Method(("nnUNetTrainerML1ACE",), {"ml1_ace_every_resolution": False}),
    "SoftML1ACE_w1": Method(("nnUNetTrainerSoftML1ACE",), {"ml1_ace_weight": 1.0}),
    "DiceML1ACE_w03_constant": Method(
        ("nnUNetTrainerDiceML1ACE",), {"ml1_ace_weight": 0.3, "ml1_ace_warmup_epochs": 0}
    ),
    "DiceML1ACE_w1_constant": Method(
        ("nnUNetTrainerDiceML1ACE",), {"ml1_ace_weight": 1.0, "ml1_ace_warmup_epochs": 0}
    ),
    "DiceML1ACE_w07": Method(("nnUNetTrainerDiceML1ACE",), {"ml1_ace_weight": 0.7}),
    "DiceML1ACE_w1": Method(("nnUNetTrainerDiceML1ACE",), {"ml1_ace_weight": 1.0}),
    "DiceML1ACE_w1_full": Method(
        ("nnUNetTrainerDiceML1ACE",), {"ml1_ace_weight": 1.0, "ml1_ace_every_resolution": False}
    ),
}

ALL = METHODS | SWEEP


def queue() -> list[tuple[str, int]]:
    """Method and fold of every run, in the order of the study: the sweep, then fold by fold."""
    first = [(name, SWEEP_FOLD) for name in METHODS if name != "NACLML1ACE"] + [(name, SWEEP_FOLD) for name in SWEEP]
    return list(dict.fromkeys([*first, *((name, fold) for fold in FOLDS for name in METHODS)]))

"""Settings of the studies: a row for each dataset. A change here asks for a new study folder.

Networks are small and trainings short, so that a run takes minutes on two CPU cores; within a study every method has
the same.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

DEVICE = "cpu"
THREADS = 1  # of PyTorch; the patches are made in another process
VALIDATION_ITERATIONS = 10  # an epoch; they choose checkpoint_best, which the study does not use
SEED = 1  # of a run: SEED + fold, the same for all methods, which so begin alike and see the same patches

PLANS = "nnUNetPlans"  # what nnU-Net plans
SMALL_PLANS = "nnUNetPlansSmall"  # the same with a study's changes; nothing of it concerns the preprocessing
LEARNED = 0.1  # a run of less Dice has learned no foreground: it is named, and its fold is not in the comparison
PREFIX = "nnUNetTrainerStudy"  # of the trainers' names
CHOSEN = "NNUNET_CALIB_STUDY"  # variable that tells nnU-Net's processes which study their trainers belong to


@dataclass(frozen=True)
class Method:
    """A trainer of the study: PREFIX + name, extends `bases` and sets `attributes`.

    Attributes:
        bases: trainers of nnunet_calib or of nnU-Net, by class name.
        attributes: class attributes, the hyperparameters of the mixins in `nnunet_calib.trainers`.
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
    "NACL_published": Method(("nnUNetTrainerNACL_published",)),
    "ML1ACE_pooled": Method(("nnUNetTrainerML1ACE",), {"ml1_ace_pool_with_batch_dice": True}),
    "ML1ACE_pooled_w03": Method(
        ("nnUNetTrainerML1ACE",), {"ml1_ace_pool_with_batch_dice": True, "ml1_ace_weight": 0.3}
    ),
    "LS": Method(("nnUNetTrainerLS",)),
    "MbLS": Method(("nnUNetTrainerMbLS",)),
    "Focal": Method(("nnUNetTrainerFocal",)),
    "ECP": Method(("nnUNetTrainerECP",)),
    "DSCPlusPlus": Method(("nnUNetTrainerDSCPlusPlus",)),
    "MDCA": Method(("nnUNetTrainerMDCA",)),
}

# On one fold, beside the defaults above: NACL 0.01, ML1ACE 1, SoftML1ACE 0.3, DiceML1ACE 0.5, all with a
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
    "DiceML1ACE_w1_constant": Method(("nnUNetTrainerDiceML1ACE",), {"ml1_ace_weight": 1.0, "ml1_ace_warmup_epochs": 0}),
    "DiceML1ACE_w07": Method(("nnUNetTrainerDiceML1ACE",), {"ml1_ace_weight": 0.7}),
    "DiceML1ACE_w1": Method(("nnUNetTrainerDiceML1ACE",), {"ml1_ace_weight": 1.0}),
    "DiceML1ACE_w1_full": Method(
        ("nnUNetTrainerDiceML1ACE",), {"ml1_ace_weight": 1.0, "ml1_ace_every_resolution": False}
    ),
}

ALL = METHODS | SWEEP


@dataclass(frozen=True)
class Study:
    """What is trained on one dataset, and how.

    Attributes:
        dataset: number of nnU-Net's raw dataset.
        title: of the study, for tables and figures.
        configuration: of nnU-Net.
        plan_changes: entries of the plan's configuration that are replaced.
        architecture_changes: arguments of the plan's network that are replaced.
        epochs: of a training.
        iterations: of an epoch.
        folds: in which the methods are compared.
        methods: names in `METHODS`, the baseline first.
        sweep: names in `SWEEP`, run on `sweep_fold` only, where the values of hyperparameters are compared; the other
            folds are for reporting.
        sweep_after: number of folds that all methods finish before the sweep.
        probabilities: keep nnU-Net's `.npz` of the validation cases, to measure them against other labels.
        calibrators: compare calibrators on `sweep_fold`.
        own_splits: use the `splits_final.json` that lies in the raw dataset.
        images_shown: its licence lets the documents show images of cases.
    """

    dataset: int
    title: str
    configuration: str
    plan_changes: dict[str, Any]
    architecture_changes: dict[str, Any]
    epochs: int
    iterations: int
    folds: tuple[int, ...]
    methods: tuple[str, ...]
    sweep: tuple[str, ...] = ()
    sweep_fold: int = 0
    sweep_after: int = 0
    probabilities: bool = False
    calibrators: bool = False
    own_splits: bool = False
    images_shown: bool = True

    @property
    def name(self) -> str:
        """Key in `STUDIES`, used in file names."""
        return next(name for name, study in STUDIES.items() if study is self)

    @property
    def runs(self) -> tuple[str, ...]:
        """Names of all methods and swept values."""
        return self.methods + self.sweep

    def queue(self) -> list[tuple[str, int]]:
        """Return method and fold of every run in their order: some folds, the sweep, the other folds."""
        first = [(name, fold) for fold in self.folds[: self.sweep_after] for name in self.methods]
        swept = [(name, self.sweep_fold) for name in self.sweep]
        rest = [(name, fold) for fold in self.folds[self.sweep_after :] for name in self.methods]
        return first + swept + rest


SMALL_3D = {"features_per_stage": [8, 16, 32, 64], "n_conv_per_stage_decoder": [1, 1, 1]}
SMALL_2D = {
    "n_stages": 4,
    "features_per_stage": [16, 32, 64, 128],
    "kernel_sizes": [[3, 3]] * 4,
    "strides": [[1, 1], [2, 2], [2, 2], [2, 2]],
    "n_conv_per_stage": [2, 2, 2, 2],
    "n_conv_per_stage_decoder": [1, 1, 1],
}

STUDIES = {
    # Task04 of the Medical Segmentation Decathlon, as nnUNetv2_convert_MSD_dataset names it
    "hippocampus": Study(
        dataset=4,
        title="Hippocampus (MRI, 3D)",
        configuration="3d_fullres",
        plan_changes={"batch_size": 2},
        architecture_changes=SMALL_3D,
        epochs=20,
        iterations=100,
        folds=(0, 1, 2, 3, 4),
        methods=("Calib", "NACL", "SVLS", "ML1ACE", "SoftML1ACE", "Dice", "DiceML1ACE", "NACLML1ACE"),
        sweep=tuple(SWEEP),
        sweep_after=1,
    ),
    "hippocampus_long": Study(
        dataset=4,
        title="Hippocampus, five times as long",
        configuration="3d_fullres",
        plan_changes={"batch_size": 2},
        architecture_changes=SMALL_3D,
        epochs=100,
        iterations=100,
        folds=(0,),
        methods=("Calib", "ML1ACE", "NACL", "NACL_published", "SVLS"),
        calibrators=True,
    ),
    "hippocampus_2d": Study(
        dataset=4,
        title="Hippocampus, slice by slice (2D)",
        configuration="2d",
        plan_changes={"batch_size": 24},
        architecture_changes=SMALL_2D,
        epochs=20,
        iterations=100,
        folds=(0, 1, 2),
        methods=("Calib", "ML1ACE", "ML1ACE_pooled"),
    ),
    "lidc": Study(
        dataset=516,
        title="LIDC nodules (CT, 2D, four raters)",
        configuration="2d",
        plan_changes={"batch_size": 24},
        architecture_changes=SMALL_2D,
        epochs=20,
        iterations=30,
        folds=(0, 1, 2, 3, 4),
        methods=(
            "Calib",
            "ML1ACE",
            "ML1ACE_pooled",
            "ML1ACE_pooled_w03",
            "NACL",
            "Dice",
            "DiceML1ACE",
            "SVLS",
            "SoftML1ACE",
            "NACL_published",
            "LS",
            "MbLS",
            "Focal",
            "ECP",
            "DSCPlusPlus",
            "MDCA",
        ),
        sweep=("Calib_seed", "ML1ACE_w03", "NACL_w01"),
        sweep_after=2,
        probabilities=True,
        calibrators=True,
        own_splits=True,
    ),
    "acdc": Study(
        dataset=512,
        title="ACDC heart (MRI, 3D, nested regions)",
        configuration="3d_fullres",
        plan_changes={"batch_size": 2},
        architecture_changes={"features_per_stage": [8, 16, 32, 64, 64], "n_conv_per_stage_decoder": [1, 1, 1, 1]},
        epochs=20,
        iterations=100,
        folds=(0, 1, 2),
        methods=("Calib", "ML1ACE", "NACL", "SVLS", "Dice", "DiceML1ACE"),
        sweep=("NACL_w01", "ML1ACE_w03"),
        sweep_after=1,
        calibrators=True,
        own_splits=True,
        images_shown=False,  # CC BY-NC-SA
    ),
}


def chosen() -> Study:
    """Return the study that the environment names, `hippocampus` without one."""
    return STUDIES[os.environ.get(CHOSEN, "hippocampus")]

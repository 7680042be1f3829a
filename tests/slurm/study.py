"""A small study of two models, one of which is trained in it: for batch scripts, or for the same commands by hand."""

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from nnunet_calib import cli
from tests.worlds.batch_commands import write_command
from tests.worlds.nnunet_world import PLANS, World

TRAINER, PLAIN = "nnUNetTrainerML1ACE_two_epochs", "nnUNetTrainer_two_epochs"
CONFIGURATION = "3d_fullres"
VALIDATION = (["case.0", "case.1"], ["case.2", "case.3", "case.4"])  # of folds 0 and 1
# with times, or with the names of folders
OWN_TO_A_RUN = ("debug.json", "predict_from_raw_data_args.json", "validation/summary.json")

TRAINERS = """
import os
import time
from pathlib import Path

import numpy as np
import torch
from nnunet_calib import trainers
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class TwoEpochs:
    # Each epoch has random numbers of its own, so that a training that was stopped and goes on gets the same weights.
    draw_figures = draw_pseudo_ace = draw_logits = None

    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):
        super().__init__(
            plans=plans, configuration=configuration, fold=fold, dataset_json=dataset_json, device=device
        )
        self.num_epochs = self.num_iterations_per_epoch = 2
        self.num_val_iterations_per_epoch = self.save_every = 1

    def initialize(self):
        torch.manual_seed(0)
        super().initialize()
        self.logger.plot_progress_png = lambda folder: None

    def on_epoch_start(self):
        super().on_epoch_start()
        np.random.seed(self.current_epoch)
        torch.manual_seed(self.current_epoch)
        hold = Path(os.environ["nnUNet_results"], f"hold_{self.fold}")
        if self.current_epoch == 1 and hold.exists():
            hold.unlink()
            time.sleep(600)


class nnUNetTrainerML1ACE_two_epochs(TwoEpochs, trainers.nnUNetTrainerML1ACE):
    pass


class nnUNetTrainer_two_epochs(TwoEpochs, nnUNetTrainer):
    pass
"""

# To save time: workers are forks, for others import nnU-Net again; nnU-Net trains with one thread, not one for each
# core; figures, and most pictures of the report, have tests of their own.
COMMAND = f"""#!{sys.executable}
import multiprocessing
import sys

get_context = multiprocessing.get_context
multiprocessing.get_context = lambda method=None: get_context("fork")
multiprocessing.cpu_count = lambda: 1
if sys.argv[0].endswith("nnUNetv2_train"):
    from nnunetv2.run.run_training import run_training_entry
    sys.exit(run_training_entry())
from nnunet_calib.cli import main
from nnunet_calib.figures import fold_figures
fold_figures.FIGURES = ()
from nnunet_calib.report import fold_page
fold_page.PICTURES_MIB = 0
sys.exit(main())
"""


@dataclass(frozen=True)
class Study:
    """Results of a study.

    Attributes:
        world: the world of the dataset.
        data: where `prepare` has written what studies share.
        root: holds this study's results and predictions.
    """

    world: World
    data: Path
    root: Path

    def environment(self) -> dict[str, str]:
        """The variables of nnU-Net, and those of the batch scripts."""
        trainers = [self.world.environment()["nnUNet_extTrainer"], str(self.data / "trainers")]
        return {
            "nnUNet_extTrainer": os.pathsep.join(trainers),
            "nnUNet_preprocessed": str(self.data / "preprocessed"),
            "nnUNet_results": str(self.root / "results"),
            "DATASET": self.world.dataset,
            "CONFIGURATION": CONFIGURATION,
            "FOLDS": "0 1",
            "PARTS": "2",
            "DEVICE": "cpu",
            "IMAGES": str(self.data / "images"),
            "OUTPUT": str(self.root / "predicted"),
            "nnUNet_npp": "1",
            "nnUNet_nps": "1",
        }

    def by_hand(self, patch: pytest.MonkeyPatch, command: str, *options: str, trainers: tuple[str, ...]) -> None:
        """Type a command for both folds; it must succeed."""
        for name, value in self.environment().items():
            patch.setenv(name, value)
        named = ["-d", self.world.dataset, "-c", CONFIGURATION, "-tr", *trainers, "-f", "0", "1"]
        assert cli.main([command, *named, *options]) == 0

    def train_by_hand(self, patch: pytest.MonkeyPatch, trainer: str) -> None:
        """Type nnUNetv2_train for each fold."""
        from nnunetv2.run.run_training import run_training_entry

        for name, value in self.environment().items():
            patch.setenv(name, value)
        patch.setattr("multiprocessing.cpu_count", lambda: 1)
        for fold in "01":
            patch.setattr(
                sys, "argv", ["", self.world.dataset, CONFIGURATION, fold, "-tr", trainer, "-device", "cpu", "--c"]
            )
            run_training_entry()

    def model(self, trainer: str) -> Path:
        """nnU-Net's folder of a model."""
        return self.root / "results" / self.world.dataset / f"{trainer}__{PLANS}__{CONFIGURATION}"

    def calibration(self, trainer: str, fold: int) -> Path:
        """The results of a fold."""
        return self.model(trainer) / f"fold_{fold}" / "validation" / "calibration"

    def files(self) -> dict[str, bytes]:
        """All files with numbers or images, by their paths."""
        found = [
            path for path in sorted(self.root.rglob("*")) if path.suffix in (".json", ".csv", ".md", ".npz", ".gz")
        ]
        return {
            str(path.relative_to(self.root)): path.read_bytes()
            for path in found
            if not str(path).endswith(OWN_TO_A_RUN)
        }


def prepare(world: World, data: Path) -> None:
    """Write what studies share: the preprocessed data with two splits, trainers, and images."""
    preprocessed = data / "preprocessed" / world.dataset
    shutil.copytree(world.preprocessed, preprocessed)
    cases = [case for held in VALIDATION for case in held]
    splits = [{"train": [case for case in cases if case not in held], "val": held} for held in VALIDATION]
    (preprocessed / "splits_final.json").write_text(json.dumps(splits))
    (data / "trainers").mkdir()
    (data / "trainers" / "two_epochs.py").write_text(TRAINERS)
    (data / "images").mkdir()
    for path in (world.folder / "raw" / world.dataset / "imagesTr").glob("case.[12]_*"):
        shutil.copy(path, data / "images")


def write_commands(folder: Path) -> None:
    """Write nnU-Net's command and that of this package for batch scripts."""
    for name in ("nnUNetv2_train", "nnunet_calib"):
        write_command(folder, name, COMMAND)

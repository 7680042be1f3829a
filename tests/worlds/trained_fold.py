"""A fold "all" with five cases, trained and measured once in each label mode; and copies that tests may change."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
import torch

from nnunet_calib import cli

if TYPE_CHECKING:
    from tests.worlds.nnunet_world import World

PLANS = "nnUNetPlans"
TRAINER = "nnUNetTrainerCalib_short"
CONFIGURATION = "3d_fullres"
# in the place of multiprocessing
THREADS = SimpleNamespace(get_context=lambda method: SimpleNamespace(Pool=ThreadPool))


def snapshot(folder: Path, without: str = "calibration") -> dict[str, tuple[bytes, int]]:
    """Content and time of every file, those in folders of one name left out."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and without not in path.relative_to(folder).parts[:-1]
    }


@dataclass(frozen=True)
class Trained:
    """A copy of the trained fold in results of its own, beside a copy of the preprocessed data.

    Attributes:
        root: holds results and preprocessed.
        dataset: its name.
        trainer: whose name the folder has.
        configuration: likewise.
    """

    root: Path
    dataset: str
    trainer: str
    configuration: str = CONFIGURATION

    @property
    def model(self) -> Path:
        """nnU-Net's folder of the model."""
        return self.root / "results" / self.dataset / f"{self.trainer}__{PLANS}__{self.configuration}"

    @property
    def fold(self) -> Path:
        """The folder of the fold."""
        return self.model / "fold_all"

    @property
    def calibration(self) -> Path:
        """Where the results are."""
        return self.fold / "validation" / "calibration"

    @property
    def preprocessed(self) -> Path:
        """The dataset's."""
        return self.root / "preprocessed" / self.dataset

    @property
    def cases(self) -> list[str]:
        """Names of the validation cases."""
        return [f"case.{seed}" for seed in range(5)]

    def case_file(self, number: int) -> Path:
        """Of the case of that number."""
        return self.calibration / "cases" / f"case.{number}.npz"

    def command(self, *options: str) -> list[str]:
        """Arguments of the command for this model."""
        arguments = ["validate", "-d", self.dataset, "-c", self.configuration, "-tr", self.trainer, "-device", "cpu"]
        return [*arguments, "--no-figures", *options]

    def validate(self, *options: str) -> int:
        """Run the command in this process."""
        return cli.main(self.command(*options))

    def results(self) -> dict[str, bytes]:
        """The files of the calibration folder that hold numbers."""
        files = snapshot(self.calibration, without="")
        return {name: content for name, (content, _) in files.items() if name.endswith((".json", ".npz"))}

    def without_results(self, *, npz: bool = False) -> "Trained":
        """The same as if it had never been measured; with nnU-Net's .npz, or without."""
        shutil.rmtree(self.calibration, ignore_errors=True)
        for path in [] if npz else [*self.fold.glob("validation/*.npz"), *self.fold.glob("validation/*.pkl")]:
            path.unlink()
        return self


def train(world: "World") -> None:
    """Train and validate fold "all" as nnUNetv2_train --npz does."""
    from nnunetv2.run.run_training import run_training

    run_training(
        world.dataset,
        CONFIGURATION,
        "all",
        TRAINER,
        PLANS,
        device=torch.device("cpu"),
        export_validation_probabilities=True,
    )


@pytest.fixture(scope="session")
def train_once(make_world, made_once) -> Callable[[str], tuple["World", Path]]:
    """Worlds by label mode with their trained model, made once."""
    made: dict[str, tuple[World, Path]] = {}

    def make(mode: str) -> tuple["World", Path]:
        if mode not in made:
            world = make_world(mode)
            with pytest.MonkeyPatch.context() as patch:
                use_threads(patch)
                for name, value in world.environment().items():
                    patch.setenv(name, value)
                model = world.fold(TRAINER, CONFIGURATION).parent
                with made_once(f"trained_{mode}", model) as first:
                    if first:
                        train(world)
                made[mode] = world, model
        return made[mode]

    return make


@pytest.fixture
def make_trained(train_once, tmp_path, monkeypatch) -> Callable[..., Trained]:
    """Copies of the trained fold, set up for this process; nnUNet_raw is not set."""

    def make(mode: str = "labels", trainer: str = TRAINER) -> Trained:
        world, model = train_once(mode)
        trained = Trained(tmp_path, world.dataset, trainer)
        shutil.copytree(model / "fold_all", trained.fold)
        for name in ("plans.json", "dataset.json"):
            shutil.copy2(model / name, trained.model)
        shutil.copytree(world.preprocessed, trained.preprocessed)
        environment = world.environment() | {
            "nnUNet_results": str(tmp_path / "results"),
            "nnUNet_preprocessed": str(tmp_path / "preprocessed"),
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("nnUNet_raw")
        return trained

    return make


@pytest.fixture
def trained(make_trained) -> Trained:
    """The fold with labels, as it was trained."""
    return make_trained()


@pytest.fixture
def in_threads(monkeypatch):
    """nnU-Net's workers are threads of this process, which start at once."""
    use_threads(monkeypatch)


def use_threads(patch: pytest.MonkeyPatch) -> None:
    """What `in_threads` does, for as long as the patch lasts."""
    from nnunetv2.evaluation import evaluate_predictions
    from nnunetv2.experiment_planning.dataset_fingerprint import fingerprint_extractor
    from nnunetv2.preprocessing.preprocessors import default_preprocessor
    from nnunetv2.training.nnUNetTrainer import nnUNetTrainer

    for module in (fingerprint_extractor, default_preprocessor, nnUNetTrainer, evaluate_predictions):
        patch.setattr(module, "multiprocessing", THREADS)


def change_json(path: Path, **changed) -> None:
    """Set top-level entries of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def make_older(path: Path, than: Path) -> None:
    """Set the time of a file a second before that of another."""
    time = than.stat().st_mtime - 1
    os.utime(path, (time, time))

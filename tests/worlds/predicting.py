"""A trained model with its own folder of results, images to predict, and nnU-Net's own prediction of them."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_calib import cli
from nnunet_calib.nnunet.checkpoints import weights_fingerprint
from tests.worlds.made_once import MadeOnce
from tests.worlds.maps import make_oblique
from tests.worlds.nnunet_world import PLANS, World
from tests.worlds.trained_fold import use_threads

TRAINER = "nnUNetTrainerCalib_short"
MARKS = [
    pytest.mark.slow,
    # nnU-Net's own, on tiny data
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning", "ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@dataclass(frozen=True)
class Trained:
    """A model, and two oblique images."""

    world: World
    configuration: str
    root: Path

    @property
    def folder(self) -> Path:
        """nnU-Net's folder of the model."""
        return self.root / "results" / self.world.dataset / f"{TRAINER}__{PLANS}__{self.configuration}"

    @property
    def images(self) -> Path:
        """What is predicted."""
        return self.root / "images"

    def environment(self) -> dict[str, str]:
        """nnU-Net's variables."""
        return self.world.environment() | {"nnUNet_results": str(self.root / "results")}

    def temperature_file(self, fold: int = 0) -> Path:
        """That of a fold."""
        return self.folder / f"fold_{fold}" / "validation" / "calibration" / "temperature.json"

    def set_temperature(self, value: float, fold: int = 0) -> None:
        """A temperature that shows."""
        change_json(self.temperature_file(fold), temperature=value, at_bound=False)

    def add_fold(self, fold: int = 1) -> None:
        """A fold with other weights, and a temperature of its own."""
        target = self.folder / f"fold_{fold}"
        shutil.copytree(self.folder / "fold_0", target)
        checkpoint = torch.load(target / "checkpoint_final.pth", weights_only=False)
        generator = torch.Generator().manual_seed(fold)
        for tensor in checkpoint["network_weights"].values():
            tensor += 0.3 * tensor.std() * torch.randn(tensor.shape, generator=generator) if len(tensor) > 1 else 0
        torch.save(checkpoint, target / "checkpoint_final.pth")
        file = self.temperature_file(fold)
        model = json.loads(file.read_text())["model"]
        network = self.predictor((fold,)).network
        model |= {"fold": fold, "weights_sha256": weights_fingerprint(network)}
        change_json(file, model=model, folds=[fold])

    def merge(self, temperature: float, folds=(0, 1)) -> Path:
        """The temperature.json of a cross-validation."""
        folder = self.folder / f"crossval_results_folds_{'_'.join(map(str, folds))}" / "calibration"
        folder.mkdir(parents=True)
        content = json.loads(self.temperature_file().read_text()) | {"temperature": temperature, "folds": [*folds]}
        content["model"].pop("fold")
        content["model"]["weights_sha256"] = {
            str(f): json.loads(self.temperature_file(f).read_text())["model"]["weights_sha256"] for f in folds
        }
        (folder / "temperature.json").write_text(json.dumps(content))
        return folder / "temperature.json"

    def predictor(self, folds=(0,)):
        """nnU-Net's own."""
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(str(self.folder), folds)
        return predictor

    def reference(self, name: str = "reference", folds=(0,)) -> tuple[Path, dict[str, np.ndarray]]:
        """The folder that nnU-Net itself predicts, with .npz, and the probabilities in these."""
        folder = self.root / name
        folder.mkdir()
        self.predictor(folds).predict_from_files_sequential(str(self.images), str(folder), save_probabilities=True)
        return folder, {path.stem: np.load(path)["probabilities"] for path in sorted(folder.glob("*.npz"))}

    def command(self, *more: str, output: str = "predicted") -> list[str]:
        """What is typed."""
        return [
            "predict",
            "-i",
            str(self.images),
            "-o",
            str(self.root / output),
            "-d",
            str(self.world.dataset_id),
            "-c",
            self.configuration,
            "-tr",
            TRAINER,
            "-f",
            "0",
            "-device",
            "cpu",
            "-npp",
            "0",
            "-nps",
            "0",
            "--disable_progress_bar",
            *more,
        ]

    def predict(self, *more: str, output: str = "predicted") -> Path:
        """A prediction that must succeed; its folder."""
        assert cli.main(self.command(*more, output=output)) == 0
        return self.root / output


def change_json(path: Path, **changes: object) -> None:
    """Change entries of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def copy_trained(
    world: World, configuration: str, made_once: MadeOnce, root: Path, patch: pytest.MonkeyPatch
) -> Trained:
    """The model, trained once for each world and configuration; nnU-Net's variables name the copy."""
    fold = world.fold(TRAINER, configuration)
    if not (fold / "validation" / "calibration" / "temperature.json").is_file():
        name = f"deployed_{world.dataset}_{configuration}"
        with pytest.MonkeyPatch.context() as training, made_once(name, fold.parent) as first:
            if first:
                use_threads(training)
                world.train(TRAINER, configuration)
    trained = Trained(world, configuration, root)
    shutil.copytree(fold.parent, trained.folder)
    trained.images.mkdir()
    for name in ("case.1_0000.nii.gz", "case.2_0000.nii.gz"):
        shutil.copy(world.folder / "raw" / world.dataset / "imagesTr" / name, trained.images)
        make_oblique(trained.images / name)
    trained.set_temperature(1.8)
    for name, value in trained.environment().items():
        patch.setenv(name, value)
    return trained


def files(folder: Path) -> dict[str, bytes]:
    """Every file below, hidden ones too."""
    return {os.path.relpath(path, folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}

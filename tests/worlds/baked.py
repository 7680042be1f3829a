"""Models with random weights, saved by nnU-Net's own trainer, and what nnU-Net's predictor makes of them."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from nnunet_calib import cli
from nnunet_calib.nnunet.checkpoints import weights_fingerprint
from nnunet_calib.nnunet.trained_model import describe_model
from nnunet_calib.posthoc.vector import Vector
from tests.worlds.nnunet_world import PLANS, World

TRAINER = "nnUNetTrainerCalib"
SHARPEN = 8.0  # random weights give logits near 0


def write_vector(file: Path, heads: int, *, regions: bool = False) -> str:
    """A calibrator with a factor and an offset for each head; the file's name as it is typed."""
    factors, offsets = np.linspace(0.5, 0.9, heads), np.linspace(-0.3, 0.4, heads)
    file.write_text(json.dumps(Vector(1.7, tuple(factors), tuple(offsets), regions).to_json()))
    return str(file)


@dataclass(frozen=True)
class Untrained:
    """A model in a results folder of its own.

    Attributes:
        world: the dataset.
        configuration: 2d or 3d_fullres.
        trainer: its name.
    """

    world: World
    configuration: str = "2d"
    trainer: str = TRAINER

    @property
    def arguments(self) -> list[str]:
        """What names it on the command line."""
        return ["-d", str(self.world.dataset_id), "-c", self.configuration, "-tr", self.trainer]

    @property
    def image(self) -> Path:
        """What is predicted."""
        return self.world.folder / "raw" / self.world.dataset / "imagesTr" / "case.0_0000.nii.gz"

    def bake(self, *options: str) -> int:
        """The command."""
        return cli.main(["bake", *self.arguments, *options])

    def make(self, fold: int | str = 0, seed: int = 0, name: str = "checkpoint_final.pth"):
        """A fold as nnU-Net leaves it, without a validation; returns its trainer."""
        from nnunetv2.run.run_training import get_trainer_from_args

        torch.manual_seed(seed)
        trainer = get_trainer_from_args(
            self.world.dataset, self.configuration, fold, self.trainer, PLANS, device=torch.device("cpu")
        )
        trainer.initialize()
        if hasattr(trainer.network, "decoder"):
            for layer in trainer.network.decoder.seg_layers:
                layer.weight.data *= SHARPEN
                torch.nn.init.normal_(layer.bias)
        folder = Path(trainer.output_folder)
        for file, content in (("plans", trainer.plans_manager.plans), ("dataset", trainer.dataset_json)):
            (folder.parent / f"{file}.json").write_text(json.dumps(content))
        trainer.save_checkpoint(str(folder / name))
        return trainer

    def write_temperature(self, trainer, temperature: float = 1.7, **changed) -> Path:
        """What the validation hook writes of a fold."""
        file = Path(trainer.output_folder) / "validation" / "calibration" / "temperature.json"
        content = {
            "format_version": 1,
            "temperature": temperature,
            "standard_error": 0.02,
            "nll_before": 0.5,
            "nll_after": 0.4,
            "at_bound": False,
            "in_sample": trainer.fold == "all",
            "folds": [trainer.fold],
            "cases": ["case.1", "case.2"],
            "nnunet_calib": "0.1.0",
            "model": describe_model(trainer, Path(trainer.output_folder), weights_fingerprint(trainer.network)),
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content | changed))
        return file

    def probabilities(self, model_folder: Path, checkpoint: str, folds=(0,)) -> np.ndarray:
        """Of nnU-Net's predictor for a case, at the image's own resolution."""
        from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

        predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(str(model_folder), folds, checkpoint)
        data, properties = SimpleITKIO().read_images([str(self.image)])
        return predictor.predict_single_npy_array(data, properties, None, None, True)[1]

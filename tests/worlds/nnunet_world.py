"""A tiny nnU-Net world for every label mode: raw data, plans, preprocessed data, and trainers with one short epoch."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnunet_calib.nnunet.lookup import trainers_folder
from nnunet_calib.nnunet.training import loss_terms as integration
from nnunet_calib.synthetic import synthetic_case
from tests.worlds.quick_nnunet import list_in_threads, make_quick
from tests.worlds.trained_fold import in_threads, make_trained, train_once, trained, use_threads  # noqa: F401

make_quick()
list_in_threads()

CASES = 5
PLANS = "nnUNetPlans"
TRAINERS = ("nnUNetTrainerCalib", "nnUNetTrainerNACL", "nnUNetTrainerSVLS", "nnUNetTrainerML1ACE")

# the other losses that trainers of the package combine
MORE_TRAINERS = (
    "nnUNetTrainerSoftML1ACE",
    "nnUNetTrainerML1ECE",
    "nnUNetTrainerML1MCE",
    "nnUNetTrainerDiceML1ACE",
    "nnUNetTrainerNACLML1ACE",
)

# those that other papers compare with
COMPARATORS = (
    "nnUNetTrainerLS",
    "nnUNetTrainerMbLS",
    "nnUNetTrainerFocal",
    "nnUNetTrainerECP",
    "nnUNetTrainerDSCPlusPlus",
    "nnUNetTrainerMDCA",
)

# label mode -> labels of dataset.json, regions_class_order
LABEL_MODES = {
    "labels": ({"background": 0, "bright": 1, "dark": 2}, None),
    "ignore": ({"background": 0, "bright": 1, "dark": 2, "ignore": 3}, None),
    "regions": ({"background": 0, "any": [1, 2], "dark": 2}, [1, 2]),
    "regions_ignore": ({"background": 0, "any": [1, 2], "dark": 2, "ignore": 3}, [1, 2]),
}

# One epoch of two iterations; in a folder of its own, beside the package's. Figures take longer than all else: only
# the trainers whose names end with "_drawn" draw them, nnU-Net's own included.
SHORT_TRAINERS = """
import torch
from nnunet_calib import trainers
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class Drawn:
    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):
        super().__init__(
            plans=plans, configuration=configuration, fold=fold, dataset_json=dataset_json, device=device
        )
        self.num_epochs = 1
        self.num_iterations_per_epoch = 2
        self.num_val_iterations_per_epoch = 1


class Short(Drawn):
    draw_figures = draw_pseudo_ace = draw_logits = None

    def initialize(self):
        super().initialize()
        self.logger.plot_progress_png = lambda folder: None


class nnUNetTrainer_short(Short, nnUNetTrainer):
    pass
""" + "".join(
    f"\n\nclass {name}_{ending.lower()}({ending}, trainers.{name}):\n    pass\n"
    for name in TRAINERS + MORE_TRAINERS + COMPARATORS
    for ending in ("Short", "Drawn")
)


@dataclass(frozen=True)
class World:
    """One dataset, planned and preprocessed for 2d and 3d_fullres."""

    folder: Path
    dataset_id: int
    dataset: str

    @property
    def preprocessed(self) -> Path:
        """Where nnU-Net keeps the plans, the splits and the preprocessed cases."""
        return self.folder / "preprocessed" / self.dataset

    def fold(self, trainer: str, configuration: str) -> Path:
        """Where nnU-Net writes the results of fold 0."""
        return self.folder / "results" / self.dataset / f"{trainer}__{PLANS}__{configuration}" / "fold_0"

    def environment(self) -> dict[str, str]:
        """nnU-Net's variables, for this process and for subprocesses."""
        return {
            "nnUNet_raw": str(self.folder / "raw"),
            "nnUNet_preprocessed": str(self.folder / "preprocessed"),
            "nnUNet_results": str(self.folder / "results"),
            "nnUNet_extTrainer": os.pathsep.join([str(trainers_folder()), str(self.folder / "trainers")]),
        }

    def trainer(self, name: str, configuration: str):
        """A trainer as nnUNetv2_train makes it."""
        from nnunetv2.run.run_training import get_trainer_from_args

        return get_trainer_from_args(self.dataset, configuration, 0, name, PLANS, device=torch.device("cpu"))

    def train(self, name: str, configuration: str, **options: bool) -> Path:
        """What nnUNetv2_train does; returns the fold's folder."""
        from nnunetv2.run.run_training import run_training

        run_training(self.dataset, configuration, 0, name, PLANS, device=torch.device("cpu"), **options)
        return self.fold(name, configuration)


def write_raw(raw: Path, mode: str) -> None:
    """Cases that make nnU-Net transpose, crop and resample: thick slices along x, a zero border, two spacings."""
    labels, order = LABEL_MODES[mode]
    for name in ("imagesTr", "labelsTr"):
        (raw / name).mkdir(parents=True)
    for seed in range(CASES):
        case = synthetic_case(seed, (22, 24, 10))
        image, segmentation = np.zeros((26, 24, 12), np.float32), np.zeros((26, 24, 12), np.uint8)
        image[3:25, :, 1:11], segmentation[3:25, :, 1:11] = case.image, case.labels
        if "ignore" in labels:
            segmentation[:8] = labels["ignore"]
        for folder, name, array in (
            ("imagesTr", f"case.{seed}_0000", image),
            ("labelsTr", f"case.{seed}", segmentation),
        ):
            volume = sitk.GetImageFromArray(array)
            volume.SetSpacing((3.0, 1.0, 1.0 if seed % 2 else 1.3))
            sitk.WriteImage(volume, raw / folder / f"{name}.nii.gz")
    content = {"channel_names": {"0": "synthetic"}, "labels": labels, "numTraining": CASES, "file_ending": ".nii.gz"}
    if order is not None:
        content["regions_class_order"] = order
    (raw / "dataset.json").write_text(json.dumps(content))


def shrink_plans(file: Path) -> None:
    """A network that trains in a fraction of a second."""
    plans = json.loads(file.read_text())
    shapes = {"2d": ([3, 3], [24, 24]), "3d_fullres": ([1, 3, 3], [8, 24, 24])}
    for name in {*shapes} & {*plans["configurations"]}:
        kernel, patch = shapes[name]
        configuration = plans["configurations"][name]
        configuration.update(batch_size=2, patch_size=patch)
        stride = [[1] * len(kernel), [1, 2, 2][-len(kernel) :], [1, 2, 2][-len(kernel) :]]
        configuration["architecture"]["arch_kwargs"].update(
            n_stages=3,
            features_per_stage=[4, 8, 8],
            kernel_sizes=[kernel] * 3,
            strides=stride,
            n_conv_per_stage=[1, 1, 1],
            n_conv_per_stage_decoder=[1, 1],
        )
    file.write_text(json.dumps(plans))


def plan_and_preprocess(world: World, configurations: tuple[str, ...] = ("2d", "3d_fullres")) -> None:
    """Do what nnUNetv2_plan_and_preprocess does, for a smaller network."""
    with pytest.MonkeyPatch.context() as patch:
        use_threads(patch)
        # the planner sets that many threads
        for name, value in (world.environment() | {"nnUNet_n_proc_DA": "1"}).items():
            patch.setenv(name, value)
        from nnunetv2.experiment_planning.plan_and_preprocess_api import (
            extract_fingerprints,
            plan_experiments,
            preprocess,
        )

        extract_fingerprints([world.dataset_id], num_processes=1)
        plan_experiments([world.dataset_id])
        shrink_plans(world.preprocessed / f"{PLANS}.json")
        preprocess([world.dataset_id], PLANS, configurations, (1,) * len(configurations))


@pytest.fixture(scope="session")
def make_world(tmp_path_factory, made_once) -> Callable[[str], World]:
    """Return worlds by label mode, made once."""
    made: dict[str, World] = {}

    def make(mode: str) -> World:
        if mode not in made:
            number = 900 + list(LABEL_MODES).index(mode)
            world = World(tmp_path_factory.mktemp(mode), number, f"Dataset{number}_{mode}")
            for name in ("raw", "preprocessed", "trainers", "results"):
                (world.folder / name).mkdir()
            (world.folder / "trainers" / "short_trainers.py").write_text(SHORT_TRAINERS)
            with made_once(f"world_{mode}", world.folder) as first:
                if first:
                    write_raw(world.folder / "raw" / world.dataset, mode)
                    plan_and_preprocess(world)
            made[mode] = world
        return made[mode]

    return make


@pytest.fixture
def world(request, make_world, monkeypatch) -> World:
    """The world of the label mode given by indirect parametrisation ("labels" without one), set up for this process."""
    world = make_world(getattr(request, "param", "labels"))
    for name, value in world.environment().items():
        monkeypatch.setenv(name, value)
    return world


@pytest.fixture
def untrained(world, tmp_path, monkeypatch):
    """Makes models of the world, with random weights, in a results folder of this test."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))

    def make(configuration: str = "2d", trainer: str = "nnUNetTrainerCalib"):
        from tests.worlds.baked import Untrained

        return Untrained(world, configuration, trainer)

    return make


@pytest.fixture
def deployed(world, made_once, tmp_path, monkeypatch, request):
    """A trained model of a configuration, 3d_fullres without indirect parametrisation, and images to predict."""
    from tests.worlds.predicting import copy_trained

    return copy_trained(world, getattr(request, "param", "3d_fullres"), made_once, tmp_path, monkeypatch)


@pytest.fixture
def calls(monkeypatch):
    """The losses that were computed at once."""
    made = []

    def counted(*args):
        loss = joined_loss(*args)
        if loss is not None:
            made.append(args)
        return loss

    joined_loss = integration.joined_loss
    monkeypatch.setattr(integration, "joined_loss", counted)
    return made

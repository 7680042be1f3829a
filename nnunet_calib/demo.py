"""The demo: nnU-Net from images to calibrated probabilities, on synthetic data whose true probabilities are known.

Structures are small, so that the Dice loss outweighs the cross-entropy and trains a network that is too sure, as on the
data that calibration losses were made for.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from tqdm import tqdm

from nnunet_calib.demo_commands import program, run_commands
from nnunet_calib.demo_truth import errors_of_model, errors_of_truth, findings, table
from nnunet_calib.io.atomic_files import write_json
from nnunet_calib.io.json_forms import read_json
from nnunet_calib.nnunet.lookup import trainers_folder
from nnunet_calib.results.layout import ModelFolder
from nnunet_calib.synthetic import synthetic_case

DATASET = "Dataset999_CalibrationDemo"
CONFIGURATION = "2d"
PLANS = "nnUNetPlansDemo"
TRAINERS = ("nnUNetTrainerCalib", "nnUNetTrainerML1ACE")
SHORT = "_demo"  # suffix of the names of the short trainers
CASES = 20
SHAPE = (8, 96, 96)
SPACING = (1.0, 1.0, 5.0)  # in mm, of x, y and z: thick slices
THRESHOLD = 1.5  # of `true_probabilities`: each class has about 6 % of the voxels
FOLDS = (0, 1)
EPOCHS = 4
ITERATIONS = 50
RESULTS = "truth.json"
_MARKER = "nnunet_calib_demo.json"
_FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "trainers", "truth", "logs", "comparison")
_PLANNING = "plan_and_preprocess"

# of `make_model`
PLAIN_TRAINER = "nnUNetTrainer"
ALL_FOLDS = (0, 1, 2, 3, 4)
MODEL_CASES = 40
NEW_CASES = 2

_LEGEND = """
Mean over {cases} cases of {folds} folds; T = 1 as trained, else that of the other folds.
ECE, ACE, MCE: 20 bins, foreground classes. NLL in nats; of it, KL to truth is what the model loses by not knowing the
true probabilities q: sum_c q_c log(q_c / p_c). Distance to truth: sum_c |p_c - q_c| / 2. Last line: what chance leaves.
"""

# Also an example of how short a user's own trainer can be.
_TRAINER_MODULE = '''"""Trainers of the demo: as in the package, but {epochs} short epochs, seeded, in one thread."""

import random

import numpy as np
import torch

import nnunet_calib.trainers


class Short:
    # to save time, no figures of single epochs and folds: those of all folds follow
    draw_figures = draw_pseudo_ace = draw_logits = None

    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):
        super().__init__(
            plans=plans, configuration=configuration, fold=fold, dataset_json=dataset_json, device=device
        )
        self.num_epochs = {epochs}
        self.num_iterations_per_epoch = {iterations}
        self.num_val_iterations_per_epoch = 1

    def initialize(self):
        torch.set_num_threads(1)
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed({seed} + self.fold)
        super().initialize()

    def on_train_start(self):
        super().on_train_start()
        self.logger.plot_progress_png = lambda output_folder: None
'''
_TRAINER = """

class {0}{1}(Short, nnunet_calib.trainers.{0}):
    pass
"""


def _trainer_module(trainers: Sequence[str], seed: int) -> str:
    """Return the source of the short trainers: a fold has the same seed with each of them."""
    # nnU-Net has five folds
    text = _TRAINER_MODULE.format(epochs=EPOCHS, iterations=ITERATIONS, seed=5 * seed)
    return text + "".join(_TRAINER.format(trainer, SHORT) for trainer in trainers)


def _prepare_folder(folder: Path, settings: Mapping[str, object]) -> None:
    """Keep the folder of an unfinished demo with the same settings; else empty an earlier one's, or create a new one.

    A folder that holds anything else is refused.
    """
    marker = folder / _MARKER
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not marker.is_file())):
        raise ValueError(f"expected a new or empty folder, or that of an earlier demo, got {folder}: name one with -o")
    content = {
        "made by": "nnunet_calib demo; it goes on where it was interrupted, and is replaced when it has ended",
        "settings": settings,
    }
    with suppress(OSError, ValueError):
        if read_json(marker) == content and not (folder / RESULTS).exists():
            return
    try:
        for name in _FOLDERS:
            shutil.rmtree(folder / name, ignore_errors=True)
            (folder / name).mkdir(parents=True)
        (folder / RESULTS).unlink(missing_ok=True)
        write_json(content, marker)
    except OSError as error:
        raise OSError(f"expected a folder that can be written, got {error}: name another with -o") from error


def _prepare(folder: Path, trainers: Sequence[str], seed: int, cases: int, folds: Sequence[int]) -> dict[str, str]:
    """Prepare the folder and write the short trainers; return the environment variables of its commands."""
    module = _trainer_module(trainers, seed)
    _prepare_folder(folder, {"cases": cases, "folds": [*folds], "seed": seed, "trainers": module})
    (folder / "trainers" / "nnunet_calib_demo_trainers.py").write_text(module, encoding="utf-8")
    return _variables(folder)


def _write_dataset(folder: Path, seed: int, training: int, new: int = 0) -> None:
    """Write the synthetic cases in nnU-Net's raw format, and their true probabilities beside them."""
    raw = folder / "nnUNet_raw" / DATASET
    for number in range(training + new):
        case = synthetic_case([seed, number], SHAPE, THRESHOLD, axes=2)
        name, part = f"demo_{number:03d}", "Tr" if number < training else "Ts"
        for array, file in (
            (case.image, f"images{part}/{name}_0000.nii.gz"),
            (case.labels, f"labels{part}/{name}.nii.gz"),
        ):
            image = sitk.GetImageFromArray(array)
            image.SetSpacing(SPACING)
            (raw / file).parent.mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(image, raw / file)
        np.savez_compressed(folder / "truth" / f"{name}.npz", probabilities=case.probabilities)
    write_json(
        {
            "channel_names": {"0": "synthetic"},
            "labels": {"background": 0, "bright": 1, "dark": 2},
            "numTraining": training,
            "file_ending": ".nii.gz",
        },
        raw / "dataset.json",
    )


def _write_plans(folder: Path) -> None:
    """Write plans like nnU-Net's, with a network that a CPU trains in a quarter of a minute."""
    preprocessed = folder / "nnUNet_preprocessed" / DATASET
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text(encoding="utf-8"))
    plans["plans_name"] = PLANS
    configuration = plans["configurations"][CONFIGURATION]
    configuration.update(batch_size=8, patch_size=SHAPE[1:])
    configuration["architecture"]["arch_kwargs"].update(
        n_stages=3,
        features_per_stage=[8, 16, 32],
        kernel_sizes=[[3, 3]] * 3,
        n_conv_per_stage=[1, 1, 1],
        strides=[[1, 1], [2, 2], [2, 2]],
        n_conv_per_stage_decoder=[1, 1],
    )
    write_json(plans, preprocessed / f"{PLANS}.json")


def _variables(folder: Path) -> dict[str, str]:
    """Return the environment variables by which all of nnU-Net's folders lie inside the demo's."""
    own = {name: str(folder / name) for name in _FOLDERS if name.startswith("nnUNet")}
    own["nnUNet_extTrainer"] = os.pathsep.join([str(trainers_folder()), str(folder / "trainers")])
    own |= {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1", "nnUNet_wandb_enabled": "0"}
    # several commands run at once; nor do small arrays gain from more threads
    own |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return own


def _plan(folder: Path, environment: Mapping[str, str]) -> None:
    """Run nnU-Net's planning and preprocessing, and write the plans of the small network."""
    plan = ["nnUNetv2_plan_and_preprocess", "-d", "999", "-c", CONFIGURATION, "-np", "1", "-npfp", "1"]
    run_commands({_PLANNING: plan}, folder / "logs", environment)
    _write_plans(folder)


def _trainings(trainers: Sequence[str], folds: Sequence[int], *options: str) -> dict[str, list[str]]:
    """Return nnU-Net's command for each training, by the name of its log."""
    return {
        f"{trainer}_fold_{fold}": [
            *("nnUNetv2_train", "999", CONFIGURATION, str(fold), "-tr", trainer, "-p", PLANS),
            *("-device", "cpu", *options),
        ]
        for trainer in trainers
        for fold in folds
    }


def make_model(folder: Path, seed: int = 0) -> dict[str, str]:
    """Train all folds of a small plain nnU-Net on synthetic images: an example of a model to calibrate.

    It takes a few minutes on two cores. What is done is not done again. `imagesTs` and `labelsTs` of the raw
    dataset hold two cases that no fold has seen.

    Args:
        folder: where all files go: new, empty, or that of an earlier call.
        seed: of the cases and the trainings.

    Returns:
        The environment variables of nnU-Net for this folder.

    Raises:
        ValueError: if the folder holds anything else.
        OSError: if the folder cannot be written, or if a command fails.
    """
    folder = folder.resolve()
    variables = _prepare(folder, [PLAIN_TRAINER], seed, MODEL_CASES, ALL_FOLDS)
    environment = os.environ | variables
    if not (folder / "logs" / f"{_PLANNING}.txt").is_file():
        _write_dataset(folder, seed, MODEL_CASES, NEW_CASES)
    _plan(folder, environment)
    # augmentation in the training's own process, whose random numbers are seeded
    trainings = _trainings([PLAIN_TRAINER + SHORT], ALL_FOLDS)
    run_commands(trainings, folder / "logs", environment | {"nnUNet_n_proc_DA": "0"})
    return variables


def _model_folder(folder: Path, trainer: str) -> ModelFolder:
    return ModelFolder.below(folder / "nnUNet_results", DATASET, trainer, PLANS, CONFIGURATION)


def run_demo(folder: Path, trainers: Sequence[str] = TRAINERS, folds: Sequence[int] = FOLDS, seed: int = 0) -> None:
    """Make the data, cross-validate and compare trainers on it, and print their errors against the truth.

    Args:
        folder: where all files go, with the table, case by case, as `truth.json`. In the folder of a demo that was
            interrupted, with the same arguments, what is done is not done again.
        trainers: two or more classes of `nnunet_calib.trainers`, by name.
        folds: two or more of nnU-Net's five.
        seed: of the cases and the trainings.

    Raises:
        ValueError: if the folder holds anything but an earlier demo.
        OSError: if the folder cannot be written, or if a command fails.
    """
    folder = folder.resolve()
    environment = os.environ | _prepare(folder, trainers, seed, CASES, folds)
    logs = folder / "logs"
    short = [trainer + SHORT for trainer in trainers]
    trainings = _trainings(short, folds, "--npz")
    all_epochs = EPOCHS * len(trainings)
    # the bar's unit is an epoch; the steps before the trainings count as much as those after them
    with tqdm(total=2 * EPOCHS + all_epochs, file=sys.stderr, bar_format="{l_bar}{bar}| {elapsed}") as bar:

        def show(what: str, done: int) -> None:
            if (f"{what:<36}: ", done) != (bar.desc, bar.n):
                bar.set_description(f"{what:<36}", refresh=False)
                bar.n = done
                bar.refresh()

        def show_trainings() -> None:
            texts = [file.read_text(errors="replace") for name in trainings for file in logs.glob(f"{name}.*")]
            begun = sum(len(re.findall(r": Epoch \d", text)) for text in texts)
            ended = sum("Training done" in text for text in texts)
            show(f"training, {ended} of {len(trainings)} done, epoch {begun} of {all_epochs}", EPOCHS + begun)

        if not (logs / f"{_PLANNING}.txt").is_file():
            show(f"making {CASES} synthetic cases", 0)
            _write_dataset(folder, seed, CASES)
        show("planning and preprocessing", 1)
        _plan(folder, environment)
        # augmentation in the training's own process, whose random numbers are seeded
        run_commands(trainings, logs, environment | {"nnUNet_n_proc_DA": "0"}, show_trainings)
        show("merging the folds, writing reports", EPOCHS + all_epochs)
        model = ["-d", "999", "-c", CONFIGURATION, "-p", PLANS, "-f", *map(str, folds), "-tr"]
        compare = ["nnunet_calib", "compare", *model, *short, "-o", str(folder / "comparison")]

        def each(command: str, *options: str) -> dict[str, list[str]]:
            return {f"{trainer}_{command}": ["nnunet_calib", command, *model, trainer, *options] for trainer in short}

        run_commands(each("crossval", "--no-figures"), logs, environment)  # the report has the figures
        run_commands(each("report") | {"compare": compare}, logs, environment)
        show("done", 2 * EPOCHS + all_epochs)

    models = {trainer: _model_folder(folder, trainer + SHORT) for trainer in trainers}
    measured = {
        trainer: errors_of_model(model_folder, folds, folder / "truth") for trainer, model_folder in models.items()
    }
    cases = sorted(case["case"] for case in measured[trainers[0]]["cases"])
    chance = errors_of_truth(folder / "nnUNet_raw" / DATASET / "labelsTr", folder / "truth", cases)
    write_json({"models": measured, "true_probabilities": chance}, folder / RESULTS)
    print(_LEGEND.format(cases=len(cases), folds=len(folds)))
    print(table(measured, chance), end="\n\n")
    print(*findings(measured), sep="\n")
    print("\nReports, to be opened in a browser:")
    for model_folder in models.values():
        print(f"  {model_folder.crossval(folds) / 'report.html'}")
    print(f"  {folder / 'comparison' / 'report.html'}")
    print("\nNext, let nnU-Net find the trainers, for your own data:")
    print(f'  export nnUNet_extTrainer="$({shlex.quote(str(program("nnunet_calib")))} trainers --path)"')

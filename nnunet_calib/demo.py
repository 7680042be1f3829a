"""The demo: nnU-Net from images to calibrated probabilities, on synthetic data whose true probabilities are known."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from tqdm import tqdm

from nnunet_calib.demo_truth import errors_of_model, errors_of_truth, table
from nnunet_calib.io.atomic_files import write_json
from nnunet_calib.io.processes import end_session
from nnunet_calib.nnunet.lookup import trainers_folder
from nnunet_calib.results.layout import ModelFolder
from nnunet_calib.synthetic import synthetic_case

DATASET = "Dataset999_CalibrationDemo"
PLANS = "nnUNetPlansDemo"
TRAINERS = ("nnUNetTrainerCalib", "nnUNetTrainerML1ACE")
SHORT = "_demo"  # suffix of the names of the short trainers
CASES = 20
FOLDS = (0, 1)
EPOCHS = 20
RESULTS = "truth.json"
_MARKER = "nnunet_calib_demo.json"
_FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "trainers", "truth", "logs", "comparison")

_LEGEND = """
Mean over {cases} cases of {folds} folds; T = 1 as trained, else that of the other folds.
ECE, ACE, MCE: 20 bins, foreground classes. NLL in nats; of it, KL to truth is what the model loses by not knowing the
true probabilities q: sum_c q_c log(q_c / p_c). Distance to truth: sum_c |p_c - q_c| / 2. Last line: what chance leaves.
"""

# Also an example of how short a user's own trainer can be.
_TRAINER_MODULE = f'''"""Trainers of the demo: as in the package, but {EPOCHS} short epochs."""

import torch

import nnunet_calib.trainers


class Short:
    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):
        super().__init__(
            plans=plans, configuration=configuration, fold=fold, dataset_json=dataset_json, device=device
        )
        self.num_epochs = {EPOCHS}
        self.num_iterations_per_epoch = 20
        self.num_val_iterations_per_epoch = 3
'''
_TRAINER = """

class {0}{1}(Short, nnunet_calib.trainers.{0}):
    pass
"""


def _prepare_folder(folder: Path) -> None:
    """Empty the folder of an earlier demo, or create a new one; refuse a folder that holds anything else."""
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / _MARKER).is_file())):
        raise ValueError(f"expected a new or empty folder, or that of an earlier demo, got {folder}: name one with -o")
    try:
        for name in _FOLDERS:
            shutil.rmtree(folder / name, ignore_errors=True)
            (folder / name).mkdir(parents=True)
        (folder / RESULTS).unlink(missing_ok=True)
        write_json({"made by": "nnunet_calib demo; it is replaced when the demo is run again"}, folder / _MARKER)
    except OSError as error:
        raise OSError(f"expected a folder that can be written, got {error}: name another with -o") from error


def _write_dataset(folder: Path) -> None:
    """Write the synthetic cases in nnU-Net's raw format, and their true probabilities beside them."""
    raw = folder / "nnUNet_raw" / DATASET
    for name in ("imagesTr", "labelsTr"):
        (raw / name).mkdir(parents=True)
    for seed in range(CASES):
        case = synthetic_case(seed)
        name = f"demo_{seed:03d}"
        sitk.WriteImage(sitk.GetImageFromArray(case.image), raw / "imagesTr" / f"{name}_0000.nii.gz")
        sitk.WriteImage(sitk.GetImageFromArray(case.labels), raw / "labelsTr" / f"{name}.nii.gz")
        np.savez_compressed(folder / "truth" / f"{name}.npz", probabilities=case.probabilities)
    write_json(
        {
            "channel_names": {"0": "synthetic"},
            "labels": {"background": 0, "bright": 1, "dark": 2},
            "numTraining": CASES,
            "file_ending": ".nii.gz",
        },
        raw / "dataset.json",
    )


def _write_plans(folder: Path) -> None:
    """Write plans like nnU-Net's, with a network that a CPU trains in a minute."""
    preprocessed = folder / "nnUNet_preprocessed" / DATASET
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text(encoding="utf-8"))
    plans["plans_name"] = PLANS
    configuration = plans["configurations"]["3d_fullres"]
    configuration.update(batch_size=2, patch_size=[32, 32, 32])
    configuration["architecture"]["arch_kwargs"].update(
        n_stages=3,
        features_per_stage=[8, 16, 32],
        kernel_sizes=[[3, 3, 3]] * 3,
        n_conv_per_stage=[2, 2, 2],
        strides=[[1, 1, 1], [2, 2, 2], [2, 2, 2]],
        n_conv_per_stage_decoder=[1, 1],
    )
    write_json(plans, preprocessed / f"{PLANS}.json")


def _environment(folder: Path) -> dict[str, str]:
    """Return an environment in which all of nnU-Net's folders lie inside the demo's."""
    own = {name: str(folder / name) for name in _FOLDERS if name.startswith("nnUNet")}
    own["nnUNet_extTrainer"] = os.pathsep.join([str(trainers_folder()), str(folder / "trainers")])
    own |= {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1", "nnUNet_wandb_enabled": "0"}
    return os.environ | own


def _run(command: Sequence[str], log: Path, environment: dict[str, str]) -> Iterator[str]:
    """Run a command, write its output to a log and yield it line by line.

    Raises:
        OSError: if the command fails.
    """
    # The commands lie beside the interpreter, whether or not its environment is activated.
    program = Path(sysconfig.get_path("scripts")) / command[0]
    with (
        open(log, "w", encoding="utf-8") as file,
        subprocess.Popen(
            [str(program), *command[1:]],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                file.write(line)
                yield line
        except BaseException:  # an interrupt, here or in the consumer of the lines
            end_session(process)
            raise
    if process.returncode:
        raise OSError(f"expected {command[0]} to end well, it ended with status {process.returncode}: see {log}")


def _model_folder(folder: Path, trainer: str) -> ModelFolder:
    return ModelFolder.below(folder / "nnUNet_results", DATASET, trainer, PLANS, "3d_fullres")


def run_demo(folder: Path, trainers: Sequence[str] = TRAINERS, folds: Sequence[int] = FOLDS) -> None:
    """Make the data, cross-validate and compare trainers on it, and print their errors against the truth.

    Args:
        folder: where all files go, with the table, case by case, as `truth.json`.
        trainers: two or more classes of `nnunet_calib.trainers`, by name.
        folds: two or more of nnU-Net's five.

    Raises:
        ValueError: if the folder holds anything but an earlier demo.
        OSError: if the folder cannot be written, or if a command fails.
    """
    folder = folder.resolve()
    _prepare_folder(folder)
    environment = _environment(folder)
    module = _TRAINER_MODULE + "".join(_TRAINER.format(trainer, SHORT) for trainer in trainers)
    (folder / "trainers" / "nnunet_calib_demo_trainers.py").write_text(module, encoding="utf-8")
    short = [trainer + SHORT for trainer in trainers]
    trainings = [(trainer, str(fold)) for trainer in short for fold in folds]
    model = ["-d", "999", "-c", "3d_fullres", "-p", PLANS, "-f", *map(str, folds), "-tr"]
    with tqdm(total=5 + len(trainings) * (EPOCHS + 2), file=sys.stderr, bar_format="{l_bar}{bar}| {elapsed}") as bar:

        def step(what: str) -> None:
            bar.set_description_str(f"{what:<42}")
            bar.update()

        step(f"making {CASES} synthetic cases")
        _write_dataset(folder)
        step("planning and preprocessing")
        plan = ["nnUNetv2_plan_and_preprocess", "-d", "999", "-c", "3d_fullres", "-np", "2"]
        deque(_run(plan, folder / "logs" / "plan_and_preprocess.txt", environment), 0)
        _write_plans(folder)
        step("preprocessed")
        for trainer, fold in trainings:
            train = ["nnUNetv2_train", "999", "3d_fullres", fold, "-tr", trainer, "-p", PLANS, "-device", "cpu"]
            step(f"starting {trainer}, fold {fold}")
            for line in _run([*train, "--npz"], folder / "logs" / f"{trainer}_fold_{fold}.txt", environment):
                if found := re.search(r": Epoch (\d+)\b", line):
                    step(f"{trainer}, fold {fold}, epoch {int(found[1]) + 1} of {EPOCHS}")
                elif "Training done" in line:
                    step(f"{trainer}, fold {fold}, validating")
        step("merging the folds, writing reports")
        for trainer in short:
            for command in ("crossval", "report"):
                log = folder / "logs" / f"{trainer}_{command}.txt"
                deque(_run(["nnunet_calib", command, *model, trainer], log, environment), 0)
        step("comparing the trainers")
        compare = ["nnunet_calib", "compare", *model, *short, "-o", str(folder / "comparison")]
        deque(_run(compare, folder / "logs" / "compare.txt", environment), 0)

    models = {trainer: _model_folder(folder, trainer + SHORT) for trainer in trainers}
    measured = {
        trainer: errors_of_model(model_folder, folds, folder / "truth") for trainer, model_folder in models.items()
    }
    cases = sorted(case["case"] for case in measured[trainers[0]]["cases"])
    chance = errors_of_truth(folder / "nnUNet_raw" / DATASET / "labelsTr", folder / "truth", cases)
    write_json({"models": measured, "true_probabilities": chance}, folder / RESULTS)
    print(_LEGEND.format(cases=len(cases), folds=len(folds)))
    print(table(measured, chance))
    print("\nReports, to be opened in a browser:")
    for model_folder in models.values():
        print(f"  {model_folder.crossval(folds) / 'report.html'}")
    print(f"  {folder / 'comparison' / 'report.html'}")

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

from nnunet_calib.files import write_json
from nnunet_calib.integration.crossval import crossval_folder
from nnunet_calib.integration.lookup import trainers_folder
from nnunet_calib.integration.reported import dice_of_cases
from nnunet_calib.metrics import calibration_errors
from nnunet_calib.statistics import CaseStatistics
from nnunet_calib.synthetic import distance_to_truth, divergence_from_truth, synthetic_case
from nnunet_calib.temperature import apply_temperature

DATASET = "Dataset999_CalibrationDemo"
PLANS = "nnUNetPlansDemo"
TRAINERS = ("nnUNetTrainerCalib_demo", "nnUNetTrainerNACL_demo")
CASES = 20
FOLDS = ("0", "1")
EPOCHS = 20
_MARKER = "nnunet_calib_demo.json"
_FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "trainers", "truth", "logs", "comparison")

_LEGEND = f"""
Mean over {CASES // 5 * len(FOLDS)} cases of {len(FOLDS)} folds; T = 1 as trained, else that of the other fold.
ECE, ACE, MCE: 20 bins, foreground classes. NLL in nats; of it, KL to truth is what the model loses by not knowing the
true probabilities q: sum_c q_c log(q_c / p_c). Distance to truth: sum_c |p_c - q_c| / 2. Last line: what chance leaves.
"""

# Also an example of how little a trainer of one's own needs.
_TRAINER_MODULE = f'''"""Trainers of the demo: as in the package, but {EPOCHS} short epochs."""

import torch

from nnunet_calib.trainers import nnUNetTrainerCalib, nnUNetTrainerNACL


class Short:
    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = {EPOCHS}
        self.num_iterations_per_epoch = 20
        self.num_val_iterations_per_epoch = 3


class nnUNetTrainerCalib_demo(Short, nnUNetTrainerCalib):
    pass


class nnUNetTrainerNACL_demo(Short, nnUNetTrainerNACL):
    pass
'''


def _prepare_folder(folder: Path) -> None:
    """An empty folder; an earlier demo in it is replaced, anything else is refused."""
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / _MARKER).is_file())):
        raise ValueError(f"expected a new or empty folder, or that of an earlier demo, got {folder}: name one with -o")
    try:
        for name in _FOLDERS:
            shutil.rmtree(folder / name, ignore_errors=True)
            (folder / name).mkdir(parents=True)
        write_json({"made by": "nnunet_calib demo; it is replaced when the demo is run again"}, folder / _MARKER)
    except OSError as error:
        raise OSError(f"expected a folder that can be written, got {error}: name another with -o") from error


def _write_dataset(folder: Path) -> None:
    """The synthetic cases in nnU-Net's raw format, and their true probabilities beside it."""
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
    """nnU-Net's plans with a network that a CPU can train in a minute."""
    preprocessed = folder / "nnUNet_preprocessed" / DATASET
    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text(encoding="utf-8"))
    plans["plans_name"] = PLANS
    configuration = plans["configurations"]["3d_fullres"]
    configuration.update(batch_size=2, patch_size=[32, 32, 32])
    configuration["architecture"]["arch_kwargs"].update(
        n_stages=3, features_per_stage=[8, 16, 32], kernel_sizes=[[3, 3, 3]] * 3, n_conv_per_stage=[2, 2, 2],
        strides=[[1, 1, 1], [2, 2, 2], [2, 2, 2]], n_conv_per_stage_decoder=[1, 1],
    )
    write_json(plans, preprocessed / f"{PLANS}.json")


def _environment(folder: Path) -> dict[str, str]:
    """nnU-Net's variables, all of them inside the demo's folder."""
    own = {name: str(folder / name) for name in _FOLDERS if name.startswith("nnUNet")}
    own["nnUNet_extTrainer"] = os.pathsep.join([str(trainers_folder()), str(folder / "trainers")])
    own |= {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1", "nnUNet_wandb_enabled": "0"}
    return os.environ | own


def _run(command: Sequence[str], log: Path, environment: dict[str, str]) -> Iterator[str]:
    """Run an nnU-Net command, keep its output in a log and yield it line by line.

    Raises:
        OSError: if the command fails.
    """
    # nnU-Net's commands lie beside the interpreter, whether or not its environment is activated
    program = Path(sysconfig.get_path("scripts")) / command[0]
    with (
        open(log, "w", encoding="utf-8") as file,
        subprocess.Popen(
            [str(program), *command[1:]], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            file.write(line)
            yield line
    if process.returncode:
        raise OSError(f"expected {command[0]} to end well, it ended with status {process.returncode}: see {log}")


def _rows(folder: Path, trainer: str) -> Iterator[tuple[str, ...]]:
    """The lines of the table for a trainer: before and after temperature."""
    model = _model_folder(folder, trainer)
    dice = np.nanmean([*dice_of_cases(model, FOLDS).values()])
    merged = crossval_folder(model, [*map(int, FOLDS)]) / "summary.json"
    summary = json.loads(merged.read_text(encoding="utf-8"))
    for name, metrics in summary["metrics"].items():
        errors = []
        for case in summary["metric_per_case"]:
            predicted = model / f"fold_{case['fold']}" / "validation"
            p, truth = (_read(file / f"{case['case']}.npz") for file in (predicted, folder / "truth"))
            p = p if name == "uncalibrated" else apply_temperature(p, case["temperature"])
            errors.append((divergence_from_truth(p, truth), distance_to_truth(p, truth)))
        temperature = 1 if name == "uncalibrated" else summary["temperature"]["temperature"]
        image = metrics["image"]
        values = *(image["foreground_mean"][m] for m in ("ece", "ace", "mce")), image["nll"], *np.mean(errors, axis=0)
        yield trainer.removesuffix("_demo"), f"{temperature:.2f}", f"{dice:.3f}", *(f"{v:.4f}" for v in values)


def _truth_row(folder: Path, cases: Sequence[str]) -> tuple[str, ...]:
    """The line of the true probabilities: what chance alone leaves of every error."""
    errors = []
    for case in cases:
        labels = sitk.GetArrayFromImage(sitk.ReadImage(folder / "nnUNet_raw" / DATASET / "labelsTr" / f"{case}.nii.gz"))
        truth = _read(folder / "truth" / f"{case}.npz")
        measured = calibration_errors(CaseStatistics.from_probabilities(truth, labels))
        errors.append([*(float(np.nanmean(measured[m][1:])) for m in ("ece", "ace", "mce")), float(measured["nll"])])
    return "true probabilities", "-", "-", *(f"{v:.4f}" for v in (*np.mean(errors, axis=0), 0, 0))


def _read(path: Path) -> np.ndarray:
    with np.load(path) as file:
        return file["probabilities"]


def _model_folder(folder: Path, trainer: str) -> Path:
    return folder / "nnUNet_results" / DATASET / f"{trainer}__{PLANS}__3d_fullres"


def run_demo(folder: Path) -> None:
    """Make the data, cross-validate two trainers on it, compare them, and print what was measured against the truth.

    Args:
        folder: everything goes here.

    Raises:
        ValueError: if the folder holds something else than an earlier demo.
        OSError: if it cannot be written, or if a command of nnU-Net fails.
    """
    folder = folder.resolve()
    _prepare_folder(folder)
    environment = _environment(folder)
    (folder / "trainers" / "nnunet_calib_demo_trainers.py").write_text(_TRAINER_MODULE, encoding="utf-8")
    trainings = [(trainer, fold) for trainer in TRAINERS for fold in FOLDS]
    model = ["-d", "999", "-c", "3d_fullres", "-p", PLANS, "-f", *FOLDS, "-tr"]
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
        for trainer in TRAINERS:
            for command in ("crossval", "report"):
                log = folder / "logs" / f"{trainer}_{command}.txt"
                deque(_run(["nnunet_calib", command, *model, trainer], log, environment), 0)
        step("comparing the trainers")
        compare = ["nnunet_calib", "compare", *model, *TRAINERS, "-o", str(folder / "comparison")]
        deque(_run(compare, folder / "logs" / "compare.txt", environment), 0)

    header = ("trainer", "T", "Dice", "ECE", "ACE", "MCE", "NLL", "KL to truth", "distance to truth")
    rows = [header, *(row for trainer in TRAINERS for row in _rows(folder, trainer))]
    predicted = _model_folder(folder, TRAINERS[0]).glob("fold_*/validation/*.npz")
    rows.append(_truth_row(folder, sorted(path.stem for path in predicted)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    print(_LEGEND)
    for row in rows:
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
    print("\nReports, to be opened in a browser:")
    for trainer in TRAINERS:
        print(f"  {crossval_folder(_model_folder(folder, trainer), [*map(int, FOLDS)]) / 'report.html'}")
    print(f"  {folder / 'comparison' / 'report.html'}")

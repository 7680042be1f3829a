"""nnU-Net itself, end to end on the CPU: every trainer, label mode and configuration."""

import json
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nnunetv2.run.run_training import get_trainer_from_args
from nnunetv2.training.logging import nnunet_logger

from nnunet_calib import CaseStatistics, calibration_errors
from nnunet_calib.results.heads import Heads
from tests.worlds.nnunet_world import COMPARATORS, LABEL_MODES, MORE_TRAINERS, TRAINERS
from tests.worlds.pictures import PICTURES

pytestmark = [
    pytest.mark.slow,
    # nnU-Net's own, on tiny data
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning", "ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

LABELS, REGIONS = ("labels", "ignore"), ("regions", "regions_ignore")
CONFIGURATIONS = ("2d", "3d_fullres")
FOLDS = [*zip(TRAINERS, LABEL_MODES, CONFIGURATIONS * 2, strict=True)]
FOLDS_OF_COMPARATORS = [*zip(COMPARATORS, [*LABEL_MODES] * 2, strict=False)]
IN_A_FOLD = {(name, mode in REGIONS) for name, mode, *_ in FOLDS + FOLDS_OF_COMPARATORS}
# every trainer on labels and on regions, with and without an ignore label and in both configurations in turns; those
# that train a whole fold are left out
STEPS = [
    (name, modes[(i + k) % 2], CONFIGURATIONS[i // 2 % 2])
    for i, name in enumerate(TRAINERS + MORE_TRAINERS + COMPARATORS)
    for k, modes in enumerate((LABELS, REGIONS))
    if (name, modes is REGIONS) not in IN_A_FOLD
]

# trainer -> what nnU-Net's record of its loss must show
LOSSES = {
    "Calib": ["DC_and_"],
    "NACL": ["DC_and_", "NACLLoss", "weight=0.01"],
    "SVLS": ["DC_and_", "NoTerm", "SVLSLoss"],
    "ML1ACE": ["DC_and_", "ML1ACELoss", "reduction='ace', binning='hard'", "weight=1.0"],
    "SoftML1ACE": ["DC_and_", "ML1ACELoss", "reduction='ace', binning='soft'", "weight=0.3"],
    "ML1ECE": ["DC_and_", "ML1ACELoss", "reduction='ece', binning='hard'"],
    "ML1MCE": ["DC_and_", "ML1ACELoss", "reduction='mce', binning='hard'"],
    "DiceML1ACE": ["DC_and_", "NoTerm", "ML1ACELoss", "reduction='ace', binning='hard'", "weight=0.5"],
    "NACLML1ACE": ["DC_and_", "NACLLoss", "weight=0.01", "ML1ACELoss", "weight=1.0"],
    "LS": ["DC_and_", "NoTerm", "LabelSmoothingLoss", "alpha=0.1"],
    "MbLS": ["DC_and_", "MarginLabelSmoothingLoss", "margin=10.0", "weight=0.1"],
    "Focal": ["DC_and_", "NoTerm", "FocalLoss", "gamma=3.0"],
    "ECP": ["DC_and_", "EntropyPenalty", "weight=0.1"],
    "DSCPlusPlus": ["DC_and_", "NoDice", "DicePlusPlusLoss", "gamma=2.0"],
    "MDCA": ["DC_and_", "MDCALoss", "num_bins=1", "weight=1.0"],
}


def validation_cases(world) -> list[str]:
    return sorted(json.loads((world.preprocessed / "splits_final.json").read_text())[0]["val"])


@pytest.mark.parametrize(("name", "world", "configuration"), STEPS, indirect=["world"])
def test_steps(world, configuration, name):
    """Training and validation steps give finite losses and change the weights; the loss is the trainer's own."""
    trainer = world.trainer(f"{name}_short", configuration)
    trainer.on_train_start()
    before = [p.detach().clone() for p in trainer.network.parameters()]
    losses = [trainer.train_step(next(trainer.dataloader_train))["loss"] for _ in range(2)]
    with torch.no_grad():
        losses.append(trainer.validation_step(next(trainer.dataloader_val))["loss"])
    assert np.isfinite(losses).all()
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.network.parameters(), strict=True))
    check_debug(trainer, name)


def check_debug(trainer, name):
    """nnU-Net's record of a training has the hyperparameters, and the loss of this trainer."""
    debug = json.loads((Path(trainer.output_folder) / "debug.json").read_text())
    for hyperparameter in trainer.calibration_hyperparameters():
        assert hyperparameter in debug
    assert all(part in debug["loss"] for part in LOSSES[name.removeprefix("nnUNetTrainer")])


@pytest.mark.usefixtures("in_threads")
@pytest.mark.parametrize(("name", "world"), FOLDS_OF_COMPARATORS, indirect=["world"])
def test_fold_of_comparators(world, name):
    """A whole fold ends with its errors."""
    fold = world.train(f"{name}_short", "2d")
    check_debug(world.trainer(f"{name}_short", "2d"), name)
    summary = json.loads((fold / "validation" / "calibration" / "summary.json").read_text())
    assert summary["missing_cases"] == []
    assert summary["metric_per_case"]


@pytest.mark.usefixtures("in_threads")  # in processes in test_command_line
@pytest.mark.parametrize(("name", "world", "configuration"), FOLDS, indirect=["world"])
def test_fold(name, world, configuration):
    """A fold ends with all calibration files, and they say the same as nnU-Net's own .npz."""
    drawn, plain_name = world.dataset.endswith("_labels"), name
    name = f"{name}_drawn" if drawn else f"{name}_short"
    fold = world.train(name, configuration, export_validation_probabilities=True)
    check_debug(world.trainer(name, configuration), plain_name)
    validation, calibration = fold / "validation", fold / "validation" / "calibration"
    cases = validation_cases(world)
    assert sorted(p.name for p in calibration.iterdir()) == sorted(
        ["cases", *(PICTURES if drawn else []), "summary.json", "temperature.json"]
    )
    assert sorted(p.name for p in (calibration / "cases").iterdir()) == [f"{case}.npz" for case in cases]

    summary = json.loads((calibration / "summary.json").read_text())
    temperature = json.loads((calibration / "temperature.json").read_text())
    assert summary["missing_cases"] == []
    assert [row["case"] for row in summary["metric_per_case"]] == cases == temperature["cases"]
    assert 0.05 <= temperature["temperature"] <= 20
    assert temperature["nll_after"] <= temperature["nll_before"]
    own = json.loads((validation / "summary.json").read_text())
    foreground = [k for k in summary["metrics"]["uncalibrated"]["image"]["per_class"] if k != "0"]
    assert foreground == list(own["mean"])

    plans = world.trainer(name, configuration).plans_manager
    reader, label_manager = (
        plans.image_reader_writer_class(),
        plans.get_label_manager(json.loads((world.preprocessed / "dataset.json").read_text())),
    )
    heads = Heads.of(label_manager)
    for case in cases:
        labels, properties = reader.read_seg(str(world.preprocessed / "gt_segmentations" / f"{case}.nii.gz"))
        with np.load(validation / f"{case}.npz") as file:
            expected = CaseStatistics.from_probabilities(
                file["probabilities"],
                labels[0],
                regions=heads.regions,
                ignore_label=heads.ignore_label,
                spacing=properties["spacing"],
            )
        measured = CaseStatistics.load(calibration / "cases" / f"{case}.npz")
        np.testing.assert_array_equal(measured.histograms.counts, expected.histograms.counts)
        np.testing.assert_array_equal(measured.histograms.positives, expected.histograms.positives)
        np.testing.assert_allclose(measured.histograms.nll, expected.histograms.nll, rtol=1e-6)
        np.testing.assert_allclose(measured.histograms.probability, expected.histograms.probability, rtol=1e-6)
        np.testing.assert_array_equal(measured.sample.logits, expected.sample.logits)
        ignored = 0 if heads.ignore_label is None else int((labels == heads.ignore_label).sum())
        assert measured.histograms.voxels.sum() == labels.size - ignored
        assert np.isfinite(calibration_errors(measured)["nll"])


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.usefixtures("in_threads")
def test_own_files_are_untouched(world):
    """With the same weights, nnU-Net without the plugin writes the same bytes, .npz and .pkl included."""
    fold = world.train("nnUNetTrainerCalib_short", "3d_fullres", export_validation_probabilities=True)
    ours = {k: v for k, v in files(fold / "validation").items() if not k.startswith("calibration")}
    stock = world.fold("nnUNetTrainer_short", "3d_fullres")
    shutil.copytree(fold.parent, stock.parent)
    shutil.rmtree(stock / "validation")
    world.train("nnUNetTrainer_short", "3d_fullres", only_run_validation=True, export_validation_probabilities=True)
    theirs = files(stock / "validation")
    # nnU-Net's summary names the files it read, which lie in the trainer's folder
    theirs["summary.json"] = theirs["summary.json"].replace(b"nnUNetTrainer_short", b"nnUNetTrainerCalib_short")
    assert ours == theirs


@pytest.mark.usefixtures("in_threads")
def test_failures_cost_nothing(world, capsys):
    """A case that cannot be measured, then a folder that cannot be made: logged, and nnU-Net's results are complete."""
    fold = world.train("nnUNetTrainerCalib_short", "2d")
    expected = files(fold / "validation")
    (case,) = validation_cases(world)
    blocked = fold / "validation" / "calibration" / "cases" / f"{case}.npz"
    blocked.unlink()
    (blocked / "in the way").mkdir(parents=True)
    world.train("nnUNetTrainerCalib_short", "2d", only_run_validation=True)
    output = capsys.readouterr().out
    assert "Traceback" in output
    model = f"-d {world.dataset} -c 2d -tr nnUNetTrainerCalib_short -p nnUNetPlans"
    command = f"nnunet_calib validate {model} -f 0 -device cpu"
    assert command in output

    shutil.rmtree(fold / "validation" / "calibration")
    (fold / "validation" / "calibration").write_text("in the way")
    world.train("nnUNetTrainerCalib_short", "2d", only_run_validation=True)
    assert "Calibration was not measured" in capsys.readouterr().out
    nnunet = {k: v for k, v in expected.items() if not k.startswith("calibration")}
    assert {k: v for k, v in files(fold / "validation").items() if k != "calibration"} == nnunet

    (fold / "validation" / "calibration").unlink()
    world.train("nnUNetTrainerCalib_short", "2d", only_run_validation=True)
    repeated = files(fold / "validation")
    assert repeated["calibration/summary.json"] == expected["calibration/summary.json"]
    assert set(repeated) == set(expected)


class FakeRun:
    """What nnU-Net and the hook ask of a run at Weights & Biases."""

    def __init__(self) -> None:
        self.config, self.summary, self.logged, self.step = {}, {}, {}, 0

    def log(self, values: dict, step: int | None = None) -> None:
        """Values of a step; without one, of the current."""
        self.logged.update(values)


@pytest.mark.usefixtures("in_threads")
def test_weights_and_biases(world, monkeypatch):
    """A run there has the hyperparameters and weights of the loss, the pseudo ACE, the results and all figures."""
    run = FakeRun()
    wandb = SimpleNamespace(init=lambda **_: run, Image=lambda path: Path(path).read_bytes())
    monkeypatch.setattr(nnunet_logger, "wandb", wandb)
    monkeypatch.setenv("nnUNet_wandb_enabled", "1")
    fold = world.train("nnUNetTrainerNACL_drawn", "2d")
    calibration = fold / "validation" / "calibration"
    assert run.config["calibration"]["nacl_weight"] == 0.01
    assert run.logged["calibration/weight_NACLLoss"] == 0.01  # a single epoch has no warm-up
    assert np.isfinite(run.logged["mean_fg_pseudo_ace"])
    temperature = json.loads((calibration / "temperature.json").read_text())["temperature"]
    assert run.summary["final_val/calibration/temperature"] == temperature
    image = json.loads((calibration / "summary.json").read_text())["metrics"]["calibrated"]["image"]
    assert run.summary["final_val/calibration/calibrated_nll"] == image["nll"]
    assert run.summary["final_val/calibration/calibrated_ace"] == image["foreground_mean"]["ace"]
    pictures = [calibration / picture for picture in PICTURES if picture.endswith(".png")]
    for path in (*pictures, fold / "progress_calibration.png", fold / "progress_logits.png"):
        assert run.logged[f"calibration/{path.stem}"] == path.read_bytes()


def run_command(world, *arguments: str, **changed: str) -> subprocess.CompletedProcess:
    environment = os.environ | world.environment() | changed
    program = Path(sysconfig.get_path("scripts")) / arguments[0]
    return subprocess.run([str(program), *arguments[1:]], env=environment, capture_output=True, text=True, check=False)


def test_missing_plans(world):
    """nnU-Net's own error names their file."""
    with pytest.raises(FileNotFoundError, match=r"nnUNetPlansNone\.json"):
        get_trainer_from_args(world.dataset, "2d", 0, "nnUNetTrainerNACL", "nnUNetPlansNone")


def train_command(world) -> list[str]:
    return ["nnUNetv2_train", str(world.dataset_id), "3d_fullres", "0", "-device", "cpu", "-tr"]


def test_command_line(world):
    """The command that users type, in a new interpreter with nnU-Net's own look-up, and a worker that it spawns."""
    done = run_command(world, *train_command(world), "nnUNetTrainerML1ACE_short", "--npz")
    assert done.returncode == 0, done.stderr
    assert "Mean Validation Calibration: ACE" in done.stdout


@pytest.mark.usefixtures("warm_python")
def test_command_line_refused(world):
    """A trainer of the package itself is found, and stopped by what it is given."""
    blocked = world.folder / "a file"
    blocked.write_text("")
    refused = run_command(world, *train_command(world), "nnUNetTrainerNACL", nnUNet_results=str(blocked))
    assert refused.returncode != 0
    assert "expected a results folder that can be written" in refused.stderr.strip().splitlines()[-1]

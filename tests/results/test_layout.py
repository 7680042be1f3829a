"""What identifies a model: names with two underscores, and datasets that were renamed."""

import json
from dataclasses import replace

import pytest
import torch

from nnunet_calib import cli
from nnunet_calib.nnunet.checkpoints import find_checkpoint
from nnunet_calib.results.crossval import merge_folds
from nnunet_calib.results.deployed_temperature import Deployed, find_temperature
from nnunet_calib.results.layout import ModelFolder, comparison_folder
from nnunet_calib.results.measured_folds import find_folds
from tests.worlds.measured_folds import DATASET, TRAINER, Model, made, three_folds
from tests.worlds.trained_fold import PLANS, change_json

NAMED = {"trainer": "nnUNetTrainer__mine", "plans": "nnUNetPlans__small__2", "configuration": "3d__fullres"}
OTHER = "Dataset777_Renamed"


def two_folds(root, **options) -> Model:
    """Folds of two cases each, measured with the same plans."""
    model = Model(root, **options)
    for fold in range(2):
        cases = {f"case.{i}": made(i) for i in (2 * fold, 2 * fold + 1)}
        model.write(fold, cases, plans_sha256="plans")
    return model


def arguments(command, *, trainers=(NAMED["trainer"],)):
    """What is typed for models whose names have two underscores."""
    return [command, "-d", DATASET, "-c", NAMED["configuration"], "-p", NAMED["plans"], "-tr", *trainers]


def test_two_underscores(tmp_path, monkeypatch, capsys):
    """In each of the three names: folds are merged, reported and compared, and commands name the three as they are."""
    models = [two_folds(tmp_path, **NAMED), two_folds(tmp_path, **NAMED | {"trainer": "nnUNetTrainer"}, weights="w")]
    for name, value in models[0].environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("nnunet_calib.figures.fold_figures.draw_fold", lambda *args: None)
    assert cli.main([*arguments("crossval"), "-f", "0", "1"]) == 0
    summary = json.loads((models[0].model_folder.crossval((0, 1)) / "summary.json").read_text())
    assert {name: summary["model"][name] for name in NAMED} == NAMED
    trainers = (NAMED["trainer"], "nnUNetTrainer")
    assert cli.main([*arguments("compare", trainers=trainers), "-f", "0", "1"]) == 0
    folder = comparison_folder([model.model_folder for model in models], (0, 1))
    comparison = json.loads((folder / "comparison.json").read_text())
    assert [model["name"] for model in comparison["models"]] == [*trainers]  # what differs, and nothing else
    assert folder.name == ("nnUNetTrainer__mine_vs_nnUNetTrainer__nnUNetPlans__small__2__3d__fullres__folds_0_1")
    capsys.readouterr()
    assert cli.main([*arguments("bake"), "-f", "0"]) == 2
    trained = f"nnUNetv2_train {DATASET} 3d__fullres 0 -tr nnUNetTrainer__mine -p nnUNetPlans__small__2"
    assert trained in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning", "ignore::ResourceWarning")
def test_validate_with_two_underscores(trained, in_threads):
    """The trainer is remade of the names that were typed, not of the folder's."""
    plans, before = json.loads((trained.model / "plans.json").read_text()), trained.model
    plans["configurations"]["3d__fullres"] = plans["configurations"][trained.configuration]
    (trained.model / "plans.json").write_text(json.dumps(plans | {"plans_name": "nnUNetPlans__small"}))
    hook = json.loads((trained.calibration / "summary.json").read_text())
    before.rename(before.with_name(f"{trained.trainer}__nnUNetPlans__small__3d__fullres"))
    model = ModelFolder.below(
        trained.root / "results", trained.dataset, trained.trainer, "nnUNetPlans__small", "3d__fullres"
    )
    checkpoint = torch.load(file := find_checkpoint(model, "all"), weights_only=False)
    checkpoint["init_args"]["configuration"] = "3d__fullres"
    torch.save(checkpoint, file)  # later than the .npz, so that the cases are predicted
    again = replace(trained, configuration="3d__fullres")
    (model.calibration("all") / "summary.json").unlink()
    assert cli.main(again.command("-p", "nnUNetPlans__small")) == 0
    summary = json.loads((model.calibration("all") / "summary.json").read_text())
    assert summary["metrics"] == hook["metrics"]
    assert summary["model"] | model.identity == summary["model"]


def test_renamed(tmp_path, monkeypatch):
    """Folds measured before and after are merged under the name in use; the splits are found under both names."""
    model = two_folds(tmp_path)
    for name, value in model.environment().items():
        monkeypatch.setenv(name, value)
    (model.results / DATASET).rename(model.results / OTHER)
    renamed = ModelFolder.below(model.results, OTHER, **model.named)
    moved = Model(tmp_path)
    moved.folder, moved.model_folder, moved.splits, moved.cases = renamed.path, renamed, model.splits, model.cases
    moved.write(2, {"case.4": made(4), "case.5": made(5)}, plans_sha256="plans", dataset=OTHER)
    for folder in (DATASET, OTHER):  # of the preprocessed data, renamed later or with the others
        if folder == OTHER:
            (model.preprocessed / DATASET).rename(model.preprocessed / OTHER)
            moved.splits = model.preprocessed / OTHER / "splits_final.json"
        summary = json.loads((merge_folds(renamed, (0, 1, 2)) / "summary.json").read_text())
        assert summary["model"]["dataset"] == OTHER
        assert summary["missing_cases"] == []
        moved.write_splits(train0=["case.0"])
        with pytest.raises(ValueError, match=f"in both lists of .*{folder}"):
            merge_folds(renamed, (0, 1, 2))
        moved.write_splits()


def test_fold_of_another_dataset(tmp_path):
    """Where the plans do not tell that it is the same, names do."""
    model = three_folds(tmp_path, splits=False)  # without fingerprints, as older files
    change_model(model, 1, dataset=OTHER)
    with pytest.raises(ValueError, match=f"found dataset '{DATASET}' in fold 0 and '{OTHER}' in fold 1"):
        find_folds(model.model_folder, (0, 1))
    for fold in range(2):
        change_model(model, fold, plans_sha256=str(fold))
    with pytest.raises(ValueError, match="expected folds "):
        find_folds(model.model_folder, (0, 1))


def change_model(model, fold, **changed):
    """Change entries of what a fold's summary.json says of its model."""
    file = model.calibration(fold) / "summary.json"
    change_json(file, model=json.loads(file.read_text())["model"] | changed)


def test_temperature_of_the_same_weights(tmp_path):
    """Equal weights decide, whatever names stand beside them; without them, names do."""
    model = three_folds(tmp_path)
    merge_folds(model.model_folder, (0, 1, 2))
    renamed = replace(model.model_folder, dataset=OTHER, plans="nnUNetPlans_2")
    deployed = find_temperature(renamed, ["2", "0"])
    deployed.check(renamed, "2", "weights of 2")
    with pytest.raises(ValueError, match=f"expected a temperature of dataset {OTHER}, found one of {DATASET}"):
        deployed.check(renamed, "2", "weights of 1")
    content = {"temperature": 2.0, "model": {"dataset": DATASET, "trainer": TRAINER, "weights_sha256": None}}
    with pytest.raises(ValueError, match=f"expected a temperature of dataset {OTHER}"):
        Deployed(content, "temperature.json").check(renamed, "2", "weights of 2")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("with_plans", [False, True])
def test_validate_renamed(trained, in_threads, capsys, with_plans):
    """Nothing is measured again, and the name in use is written."""
    for kind in ("results", "preprocessed"):
        (trained.root / kind / trained.dataset).rename(trained.root / kind / OTHER)
    renamed = replace(trained, dataset=OTHER)
    if with_plans:
        change_json(renamed.model / "plans.json", dataset_name=OTHER)
    assert renamed.model.name == f"{renamed.trainer}__{PLANS}__{renamed.configuration}"
    assert renamed.validate() == 0
    assert "5 measured before, 0 with .npz, 0 to predict" in capsys.readouterr().err
    assert json.loads((renamed.calibration / "summary.json").read_text())["model"]["dataset"] == OTHER


@pytest.mark.parametrize("there", [DATASET, OTHER, None])
def test_training_data(tmp_path, monkeypatch, there):
    """What needs the preprocessed data is advised where they are, under the dataset's name or that of the training."""
    model = ModelFolder.below(tmp_path / "results", DATASET, "nnUNetTrainerCalib", PLANS, "2d")
    model.path.mkdir(parents=True)
    (model.path / "plans.json").write_text(json.dumps({"dataset_name": OTHER}))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    if there is not None:
        (tmp_path / there).mkdir()
    with pytest.raises(ValueError, match="expected the temperature of fold 0") as refusal:
        find_temperature(model, [0])
    assert ("nnunet_calib validate" in str(refusal.value)) == (there is not None)
    with pytest.raises(ValueError, match="expected nnU-Net's checkpoint") as refusal:
        find_checkpoint(model, 0)
    assert ("nnUNetv2_train" in str(refusal.value)) == (there is not None)

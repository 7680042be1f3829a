"""What is not baked, and in which words; nothing is written then."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nnunet_calib import cli
from nnunet_calib.nnunet.checkpoints import load_checkpoint
from nnunet_calib.nnunet.deployment.bake import CALIBRATED
from nnunet_calib.results.deployed_temperature import find_temperature
from nnunet_calib.results.layout import FINAL

pytestmark = [
    # nnU-Net's own, on tiny data
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning", "ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
MODEL = "-d Dataset900_labels -c 2d -tr nnUNetTrainerCalib -p nnUNetPlans"


class Told:
    """A model, and what the command tells of it."""

    def __init__(self, model, capsys) -> None:
        self.model, self.capsys = model, capsys
        self.trainer = model.make()
        self.fold = Path(self.trainer.output_folder)
        self.folder = self.fold.parent

    def refused(self, *options: str) -> str:
        """The sentence that is told instead of baking."""
        before = sorted(self.folder.rglob("*"))
        self.capsys.readouterr()
        assert self.model.bake(*options) == 2
        captured = self.capsys.readouterr()
        assert captured.out == ""
        assert sorted(self.folder.rglob("*")) == before
        line = captured.err.splitlines()[-1]
        assert line.startswith("nnunet_calib: expected ")
        return line

    def baked(self, *options: str) -> str:
        """What is told on stdout of baking."""
        self.capsys.readouterr()
        assert self.model.bake(*options) == 0
        return self.capsys.readouterr().out


@pytest.fixture
def told(untrained, capsys):
    """Fold 0 of a model, without a temperature."""
    return Told(untrained("2d"), capsys)


def test_twice(told):
    """A checkpoint that says it is calibrated, under whatever name."""
    told.baked("-f", "0", "--temperature", "1.25")
    (told.fold / CALIBRATED).rename(told.fold / "checkpoint_best.pth")
    text = told.refused("-f", "0", "--temperature", "1.25", "-chk", "checkpoint_best.pth")
    assert f"found {told.fold / 'checkpoint_best.pth'} baked with T = 1.25: bake the one it was made from" in text
    shutil.copy(told.fold / FINAL, told.fold / CALIBRATED)
    text = told.refused("-f", "0", "--temperature", "1.25", "-chk", CALIBRATED)
    assert f"expected another checkpoint than {CALIBRATED}, which bake writes: name one with -chk" in text


def test_no_temperature(told):
    """What makes it: for one fold, and for several."""
    text = told.refused("-f", "0")
    assert f"expected the temperature of fold 0 of {told.folder}, found none: measure it with" in text
    assert f"nnunet_calib validate {MODEL} -f 0, or give one with --temperature" in text
    told.model.write_temperature(told.trainer)
    text = told.refused("-f", "0", "1")
    merge = f"then merge the folds with nnunet_calib crossval {MODEL} -f 0 1, or give one with --temperature"
    assert f"measure it with nnunet_calib validate {MODEL} -f 0 1, {merge}" in text


def test_model_folder(told, tmp_path, monkeypatch):
    """A model that lies elsewhere is baked by its folder, and by nothing beside it."""
    folder = shutil.copytree(told.folder, tmp_path / "received")
    monkeypatch.delenv("nnUNet_results")
    command = ["bake", "-m", str(folder), "-f", "0", "--temperature", "2"]
    told.capsys.readouterr()
    for names, text in (
        (["-tr", "nnUNetTrainerCalib"], "got -m with -tr: leave out one or the other"),
        (["-d", "900", "-c", "2d"], "got -m with -d, -c: leave out one or the other"),
    ):
        assert cli.main([*command, *names]) == 2
        assert text in told.capsys.readouterr().err.splitlines()[-1]
    assert cli.main(["bake", "-c", "2d", "-f", "0"]) == 2
    assert "got no -d, -tr: name it by its folder" in told.capsys.readouterr().err.splitlines()[-1]
    assert not (folder / "fold_0" / CALIBRATED).exists()
    assert cli.main(command) == 0
    assert (folder / "fold_0" / CALIBRATED).is_file()


def test_advice_without_training_data(told, tmp_path, monkeypatch):
    """On a machine that has the model only, nothing is advised that needs the preprocessed data."""
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path))
    for options in (
        ("-f", "0"),
        ("-f", "0", "1"),
        ("-f", "1", "--temperature", "2"),
        ("-f", "0", "--temperature", "2", "-chk", "checkpoint_best.pth"),
    ):
        text = told.refused(*options)
        assert not any(command in text for command in ("validate", "crossval", "nnUNetv2_train"))
    text = told.refused("-f", "0")
    assert "get a checkpoint with a temperature from where they are, which nnunet_calib bake writes" in text
    assert text.endswith("or give one with --temperature")


def test_no_checkpoint(told):
    """Of no fold is a checkpoint written if one lacks it."""
    text = told.refused("-f", "0", "1", "--temperature", "2")
    assert f"expected nnU-Net's checkpoint {told.folder / 'fold_1' / FINAL}, found none: train the fold with" in text
    text = told.refused("-f", "0", "--temperature", "2", "-chk", "checkpoint_best.pth")
    assert f"or name one of {FINAL} with -chk" in text


def test_all_or_none(told):
    """A fold that is refused late leaves those before it as they were."""
    fold = Path(told.model.make(1).output_folder)
    (fold / FINAL).write_bytes(b"damaged")
    text = told.refused("-f", "0", "1", "--temperature", "2")
    assert f"expected a checkpoint of nnU-Net, found {fold / FINAL} unreadable" in text


@pytest.mark.parametrize(
    ("name", "ours", "other"),
    [
        ("dataset", "Dataset900_labels", "Dataset004_Hippocampus"),
        ("trainer", "nnUNetTrainerCalib", "nnUNetTrainerNACL"),
        ("plans", "nnUNetPlans", "nnUNetResEncUNetLPlans"),
        ("configuration", "2d", "3d_fullres"),
    ],
)
def test_of_another_model(told, name, ours, other):
    """A temperature that was fitted on another model, by what differs; a number is used all the same."""
    file = told.model.write_temperature(told.trainer)
    content = json.loads(file.read_text())
    content["model"] |= {name: other, "weights_sha256": "of others"}  # equal weights would decide
    given = told.fold.parent / "other.json"
    given.write_text(json.dumps(content))
    text = told.refused("-f", "0", "--temperature", str(given))
    assert f"expected a temperature of {name} {ours}, found one of {other} in other.json" in text
    assert "or give a number to use it all the same" in text
    told.baked("-f", "0", "--temperature", "1.7")


def test_of_other_weights(told):
    """The fold was trained again, or another of its checkpoints was measured."""
    told.model.write_temperature(told.trainer)
    told.model.make(0, seed=1)
    text = told.refused("-f", "0")
    assert "of the weights in this checkpoint of fold 0, found one of other weights in fold_0/validation/" in text
    assert f"with nnunet_calib validate {MODEL} -f 0, or name the checkpoint that was measured with -chk" in text
    told.trainer.save_checkpoint(str(told.fold / "checkpoint_best.pth"))
    told.baked("-f", "0", "-chk", "checkpoint_best.pth")


def test_of_a_hold_out_set(told):
    """A temperature of `nnunet_calib fit` says which dataset and plans it is of, and of no weights."""
    model = {"dataset": "Dataset900_labels", "plans": "nnUNetPlans", "fold": None, "weights_sha256": None}
    file = told.folder.parent / "temperature.json"
    content = {"temperature": 1.4, "standard_error": None, "at_bound": False, "in_sample": None, "folds": None}
    file.write_text(json.dumps(content | {"cases": ["a", "b"], "model": model}))
    assert told.baked("-f", "0", "--temperature", str(file)).startswith(f"T = 1.4000, fitted on 2 cases: {file}\n")
    entry = load_checkpoint(told.fold / CALIBRATED)["nnunet_calib"]
    # neither names of cases nor of folders of this machine
    assert entry["fitted"] == {"file": "temperature.json", "folds": None, "cases": 2, "in_sample": None}
    file.write_text(json.dumps(content | {"cases": [], "model": model | {"dataset": "Dataset004_Hippocampus"}}))
    assert "found one of Dataset004_Hippocampus" in told.refused("-f", "0", "--temperature", str(file))


def test_at_bound(told):
    """Found or named; the number itself is used."""
    file = told.model.write_temperature(told.trainer, 20.0, at_bound=True)
    for options in ((), ("--temperature", str(file))):
        assert f"found T = 20.0 on the bound of the search in {file}" in told.refused("-f", "0", *options)
    assert told.baked("-f", "0", "--temperature", "20").startswith("T = 20, as given\n")


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "nowhere.json"])
def test_no_number(told, value):
    """Neither a temperature nor a file with one."""
    assert "expected a temperature above 0, or a temperature.json" in told.refused("-f", "0", "--temperature", value)


def test_fold_all(told):
    """Its own temperature was fitted on training cases: another is needed, or the file must be named."""
    trainer = told.model.make("all")
    file = told.model.write_temperature(trainer)
    text = told.refused("-f", "all")
    assert "expected a temperature fitted on cases the model was not trained on" in text
    assert f"found {file} fitted on training cases: " in text
    assert "fit one to a hold-out set with nnunet_calib fit and name it with --temperature" in text
    told.baked("-f", "all", "--temperature", str(file))
    assert load_checkpoint(file.parents[2] / CALIBRATED)["nnunet_calib"]["fitted"]["in_sample"] is True


def test_hostile(told):
    """A checkpoint that brings other objects is read only if it is trusted."""
    checkpoint = load_checkpoint(told.fold / FINAL)
    torch.save(checkpoint | {"trained_on": Path("somewhere")}, told.fold / FINAL)
    text = told.refused("-f", "0", "--temperature", "2")
    assert "found pathlib" in text
    assert "add --trust-checkpoint if you trust whoever made it" in text
    told.baked("-f", "0", "--temperature", "2", "--trust-checkpoint")


@pytest.mark.parametrize("name", ["plans.json", "dataset.json"])
def test_no_plans(told, name):
    """Files that nnU-Net keeps beside the folds."""
    (told.folder / name).unlink()
    text = told.refused("-f", "0", "--temperature", "2")
    assert f"expected nnU-Net's {name} in {told.folder}, found none: copy it from where the model was trained" in text


def test_no_trainer(told, monkeypatch):
    """Where nnU-Net does not find it."""
    monkeypatch.delenv("nnUNet_extTrainer")
    text = told.refused("-f", "0", "--temperature", "2")
    assert "expected a trainer that nnU-Net finds, got nnUNetTrainerCalib: set nnUNet_extTrainer (now unset)" in text


def test_other_network(told):
    """Weights that do not fit the plans: names or shapes."""
    checkpoint = load_checkpoint(told.fold / FINAL)
    weights = checkpoint["network_weights"]
    weights["adapter.weight"] = torch.ones(2)
    torch.save(checkpoint, told.fold / FINAL)
    text = told.refused("-f", "0", "--temperature", "2")
    assert "expected the weights of PlainConvUNet as plans.json describes it, found others: Unexpected key(s)" in text
    assert "adapter.weight" in text


@pytest.mark.parametrize("folds", [["x"], ["-1"], ["0.5"], []])
def test_misuse(told, folds):
    """Folds are numbers, or all."""
    with pytest.raises(SystemExit) as end:
        told.model.bake("-f", *folds, "--temperature", "2")
    assert end.value.code == 2


class TestCrossValidation:
    """Which temperature is taken where folds were merged."""

    @pytest.fixture
    def merged(self, told):
        """Writes what `nnunet_calib crossval` leaves."""
        trainers = [told.trainer, told.model.make(1, seed=1)]
        own = [json.loads(told.model.write_temperature(t, 1.1 + i).read_text()) for i, t in enumerate(trainers)]

        def write(*folds: int, temperature: float = 1.3, **changed) -> Path:
            name = f"crossval_results_folds_{'_'.join(map(str, folds))}"
            file = told.folder / name / "calibration" / "temperature.json"
            file.parent.mkdir(parents=True)
            model = own[0]["model"] | {
                "weights_sha256": {str(f): own[f]["model"]["weights_sha256"] if f < 2 else "x" for f in folds}
            }
            content = own[0] | {"temperature": temperature, "folds": folds, "model": model | changed}
            file.write_text(json.dumps(content))
            return file

        return write

    def test_pooled(self, told, merged):
        """For one fold and for several; of more folds rather than of fewer."""
        assert "T = 2.1000, standard error 0.0200, fitted on 2 cases of fold 1: fold_1/v" in told.baked("-f", "1")
        merged(0, 1)
        expected = "T = 1.3000, standard error 0.0200, fitted on 2 cases of folds 0 1: crossval_results_folds_0_1/cal"
        assert expected in told.baked("-f", "1")
        assert expected in told.baked("-f", "1", "0", "1")
        merged(0, 1, 2, temperature=1.5)
        assert "T = 1.5000" in told.baked("-f", "0", "1")
        assert {
            load_checkpoint(told.folder / f"fold_{i}" / CALIBRATED)["nnunet_calib"]["temperature"] for i in range(2)
        } == {1.5}

    def test_not_covered(self, told, merged):
        """A fold that was not merged has its own; several have none."""
        merged(0, 2)
        assert "fold_1/validation/calibration/temperature.json" in told.baked("-f", "1")
        assert "expected the temperature of folds 0 1 of" in told.refused("-f", "0", "1")
        file = told.folder / "crossval_results_folds_0_2" / "calibration" / "temperature.json"
        text = told.refused("-f", "1", "--temperature", str(file))
        assert "expected a temperature of fold 1, found one of folds 0 2 in crossval_results_folds_0_2/c" in text

    def test_ambiguous(self, told, merged):
        """Two of as many folds: the user must choose."""
        files = [merged(0, 1), merged(0, 2)]
        text = told.refused("-f", "0")
        assert f"found {files[0]} and {files[1]}: name one of them with --temperature" in text
        told.baked("-f", "0", "--temperature", str(files[0]))

    def test_trained_again(self, told, merged):
        """A fold whose network is not the one that was merged."""
        merged(0, 1)
        told.model.make(1, seed=2)
        told.baked("-f", "0")
        text = told.refused("-f", "0", "1", "-chk", FINAL)
        assert "in this checkpoint of fold 1, found one of other weights in crossval_results_folds_0_1/" in text


def test_with_crossval(model):
    """The file that the command itself writes."""
    from nnunet_calib.results.crossval import merge_folds

    folder = merge_folds(model.model_folder, (0, 1, 2))
    deployed = find_temperature(model.model_folder, ["2", "0"])
    assert deployed.content == json.loads((folder / "temperature.json").read_text())
    assert deployed.source == "crossval_results_folds_0_1_2/calibration/temperature.json"
    assert deployed.describe().endswith(f"fitted on 6 cases of folds 0 1 2: {deployed.source}")
    deployed.check(model.model_folder, "2", "weights of 2")
    with pytest.raises(ValueError, match="found one of other weights"):
        deployed.check(model.model_folder, "2", "weights of 1")
    other = replace(model.model_folder, configuration="2d")
    deployed.check(other, "2", "weights of 2")  # equal weights decide, whatever the model is called
    with pytest.raises(ValueError, match="expected a temperature of configuration 2d, found one of 3d_fullres"):
        deployed.check(other, "2", "weights of 1")

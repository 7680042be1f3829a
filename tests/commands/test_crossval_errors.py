"""What is not merged, and in which words."""

import json
import shutil
from dataclasses import replace

import pytest

from nnunet_calib import __version__, cli
from nnunet_calib.io.atomic_files import write_json
from nnunet_calib.results.crossval import merge_folds
from nnunet_calib.results.deployed_temperature import find_temperature
from nnunet_calib.results.layout import case_file
from nnunet_calib.results.training_split import FILE, Split
from tests.worlds.measured_folds import CROSSVAL, DATASET, LABELS, TRAINER, Model, made

RUN = f"nnUNetv2_train Dataset004_Synthetic 3d_fullres 1 -tr {TRAINER} -p nnUNetPlans"


def refusal(model, folds=(0, 1, 2), **options) -> str:
    """What is said instead of merging; nothing is written."""
    with pytest.raises(ValueError, match="expected") as error:
        merge_folds(model.model_folder, folds, **options)
    assert sorted(p.name for p in model.folder.iterdir()) == ["fold_0", "fold_1", "fold_2"]
    text = str(error.value)
    assert "\n" not in text
    return text


def test_fold_all(model):
    """Trained on what it validates: never pooled, whether it says so by its name or not."""
    text = refusal(model, (0, 1, "all"))
    assert "expected the numbers of folds, got all: fold all was trained on the cases that it validates" in text
    assert "name the others with -f" in text
    model.write(1, model.cases[1], fold="all", weights_sha256="weights of 1")
    text = refusal(model)
    assert f"expected the model of fold 1 in {model.calibration(1)}, found that of fold 'all'" in text


@pytest.mark.parametrize(
    ("folds", "text"),
    [
        ((0, "x"), "expected the numbers of folds, got 0 x: name them as in -f 0 1 2"),
        ((0, -1), "expected the numbers of folds, got 0 -1"),
        ((0, 1, 0), "expected each fold once, got 0 0 1"),
        ((0,), "expected at least two folds, since a fold is judged by the temperature of others, got 0: name more "),
        ((), "expected at least two folds, since a fold is judged by the temperature of others, got none"),
    ],
)
def test_folds(model, folds, text):
    """Numbers, two or more, each once."""
    assert text in refusal(model, folds)


def test_missing_fold(model):
    """What to type to train it, or to do without."""
    shutil.rmtree(model.folder / "fold_1")
    (model.folder / "fold_1").touch()
    text = refusal(model)
    assert f"expected fold 1 in {model.folder}, found none: train it with {RUN}, or name those there" in text


@pytest.mark.parametrize("what", ["summary.json", "cases", ""])
def test_fold_without_statistics(model, what):
    """A fold that another trainer trained, or whose validation was killed: what to run."""
    path = model.calibration(1) / what
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    text = refusal(model)
    command = f"nnunet_calib validate -d Dataset004_Synthetic -c 3d_fullres -tr {TRAINER} -p nnUNetPlans -f 1"
    assert text.endswith(f"the calibration statistics of fold 1 in {model.calibration(1)}, found none: run {command}")


def test_missing_cases(model):
    """By name and fold; --chill leaves them out and names them, in the file too."""
    case_file(model.calibration(0), "case.1").unlink()
    model.write(2, model.cases[2], also=("case.9",))
    model.cases[2]["case.9"] = None
    model.write_splits()
    text = refusal(model)
    assert "found none for fold 0: case.1; fold 2: case.9: measure them with nnunet_calib validate" in text
    assert "or leave these cases out with --chill" in text
    folder = merge_folds(model.model_folder, (0, 1, 2), allow_missing=True)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["missing_cases"] == ["case.1", "case.9"]
    assert len(summary["metric_per_case"]) == 5


def test_cases_that_only_the_splits_know(model):
    """The splits' cases are expected even where the fold's files know nothing of them; the first ten are named."""
    model.write_splits(val1=["case.2", "case.3", *(f"new.{i:02}" for i in range(12))])
    expected = ", ".join(f"new.{i:02}" for i in range(10)) + " and 2 more: measure them"
    assert f"found none for fold 1: {expected}" in refusal(model)


def test_changed_splits(model):
    """Cases that the splits do not give to the fold: refused by name, allowed with --chill."""
    model.write_splits(val1=["case.3"])
    text = refusal(model)
    assert f"expected fold 1 to validate the cases of {model.splits}, found case.2 in {model.calibration(1)}" in text
    assert text.endswith("with --chill")
    summary = json.loads((merge_folds(model.model_folder, (0, 1, 2), allow_missing=True) / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == 6
    assert summary["missing_cases"] == []


def test_trained_on_its_validation_cases(model):
    """Splits whose lists overlap; no flag allows it."""
    model.write_splits(train1=["case.0", "case.3"])
    for allow in (False, True):
        text = refusal(model, allow_missing=allow)
        assert "expected fold 1 to be trained without its validation cases, found case.3 in both lists" in text


def test_recorded_training_cases(model, monkeypatch):
    """What the fold has recorded counts, also without splits_final.json, and where that has been put right."""
    split = Split.of(["case.0", "case.3"], model.cases[1])
    model.write(1, model.cases[1], split=split)
    for _ in range(2):
        for allow in (False, True):
            text = refusal(model, allow_missing=allow)
            assert "expected fold 1 to be trained without its validation cases, found case.3 among its training" in text
            assert text.endswith("leave the fold out with -f")
        monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    content = json.loads((model.calibration(1) / "temperature.json").read_text())
    assert content["in_sample"] is True
    assert content["seen_in_training"] == ["case.3"]
    model.write(1, model.cases[1], split=Split.of(["case.0"], model.cases[1]))
    assert json.loads((model.calibration(1) / "temperature.json").read_text())["in_sample"] is False
    merge_folds(model.model_folder, (0, 1, 2))


def test_older_temperatures(model):
    """Files from before the cases were recorded: splits_final.json tells what is not deployed."""
    file = model.calibration(1) / "temperature.json"
    content = json.loads(file.read_text())
    assert content.pop("seen_in_training") is None
    file.write_text(json.dumps(content))
    assert find_temperature(model.model_folder, [1]).calibrator.value == content["temperature"]
    model.write_splits(train1=["case.0", "case.3"])
    with pytest.raises(ValueError, match=r"found .* fitted on training cases \(case\.3\): fit one to a hold-out set"):
        find_temperature(model.model_folder, [1])
    assert find_temperature(model.model_folder, [1], str(file)).content["in_sample"] is False


def test_split_of_the_training(model):
    """What the training has written down is expected of the fold, and splits_final.json may have changed since."""
    model.write_splits(val1=["case.3"], train1=["case.2", "case.3"])
    assert "found case.3 in both lists" in refusal(model)
    write_json(Split.of(["case.0"], ["case.2", "case.3"]).as_json(), model.folder / "fold_1" / FILE)
    merge_folds(model.model_folder, (0, 1, 2))
    shutil.rmtree(model.folder / "crossval_results_folds_0_1_2")
    write_json(Split.of(["case.0"], ["case.2", "case.3", "lost"]).as_json(), model.folder / "fold_1" / FILE)
    assert "expected statistics of every validation case with its fold's network, found none for fold 1: lost" in (
        refusal(model)
    )
    (model.folder / "fold_1" / FILE).write_text("[]")
    assert f"in {model.folder / 'fold_1' / FILE}: remove it, and restore the splits_final.json" in refusal(model)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"checkpoint": "checkpoint_best.pth"}, "found 'checkpoint_final.pth' in fold 0 and 'checkpoint_best.pth' in"),
        ({"checkpoint": None}, "found 'checkpoint_final.pth' in fold 0 and None in fold 1"),
        ({"plans_sha256": "other"}, "found other ones (plans_sha256) in fold 0 than in fold 1"),
    ],
)
def test_mixed_checkpoints(model, changed, text):
    """Networks of one training that cannot be deployed together: what measures them alike."""
    model.write(0, model.cases[0], plans_sha256="ours")
    model.write(1, model.cases[1], **changed)
    for allow in (False, True):
        said = refusal(model, allow_missing=allow)
        assert text in said
        assert f"nnunet_calib validate -d {DATASET} -c 3d_fullres -tr {TRAINER} -p nnUNetPlans -f 0 1" in said


def test_what_is_kept(model, capsys):
    """Checkpoint, plans, splits and versions are in both files; the checkpoint and what differs are told."""
    for fold in range(3):
        other = {"other"} if fold == 2 else set()
        split = Split.of({f"case.{i}" for i in range(6)} - {*model.cases[fold]} | other, model.cases[fold])
        model.write(fold, model.cases[fold], split=split, checkpoint="checkpoint_best.pth", plans_sha256="ours")
    file = model.calibration(1) / "summary.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"nnunet_calib": "0.0.1"}))
    assert cli.main([*CROSSVAL, "-f", "0", "1", "2"]) == 0
    out = capsys.readouterr().out
    assert "\ncheckpoint: checkpoint_best.pth\n" in out
    assert "fold 1 with 0.0.1" in out
    assert "The splits of fold 2 were made of other cases than those of fold 0." in out
    for name in ("summary.json", "temperature.json"):
        merged = json.loads((model.folder / "crossval_results_folds_0_1_2" / "calibration" / name).read_text())
        assert merged["model"]["checkpoint"] == "checkpoint_best.pth"
        assert merged["model"]["plans_sha256"] == "ours"
        assert merged["model"]["measured_with"] == {"0": __version__, "1": "0.0.1", "2": __version__}
        assert len({*merged["model"]["split_sha256"].values()}) == 3


def test_trained_without_its_loss(model, capsys):
    """One fold whose training did without a promised loss is enough for the merged files to say so."""
    model.write(1, model.cases[1], hyperparameters={"nacl_weight": 0.01, "not_trained_with": ["NACLLoss"]})
    assert cli.main([*CROSSVAL, "-f", "0", "1", "2"]) == 0
    assert "A network of these folds was trained without NACLLoss, at least in its last" in capsys.readouterr().out
    merged = json.loads((model.folder / "crossval_results_folds_0_1_2" / "calibration" / "summary.json").read_text())
    assert merged["model"]["hyperparameters"] == {"not_trained_with": ["NACLLoss"]}
    model.write(1, model.cases[1], hyperparameters={"not_trained_with": "NACLLoss"})
    shutil.rmtree(model.folder / "crossval_results_folds_0_1_2")
    assert "not_trained_with" in refusal(model)


def test_case_in_two_folds(model):
    """By name, with both folds; no flag allows it."""
    model.write(2, model.cases[2] | {"case.1": made(1)})
    for allow in (False, True):
        text = refusal(model, allow_missing=allow)
        assert "expected each case in one fold, found case.1 in folds 0 and 2" in text


def test_case_in_two_folds_beyond_the_splits(model):
    """A fold beyond splits_final.json, which nnU-Net splits at random, may hold a case of another one."""
    model.write(2, model.cases[2] | {"case.0": made(0)})
    model.splits.write_text(json.dumps(json.loads(model.splits.read_text())[:2]))
    assert "found case.0 in folds 0 and 2" in refusal(model)


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"plans": "mine"}, "found plans 'nnUNetPlans' in fold 0 and 'mine' in fold 1"),
        ({"trainer": "nnUNetTrainerNACL"}, "found trainer 'nnUNetTrainerCalib' in fold 0 and 'nnUNetTrainerNACL' in"),
        ({"configuration": "2d"}, "found configuration '3d_fullres' in fold 0 and '2d' in fold 1"),
        ({"heads": replace(LABELS, names=("a", "b", "c"))}, "found heads (names) ('background', 'bright', 'dark') in"),
        ({"heads": replace(LABELS, ignore_label=9)}, "found heads (ignore_label) None in fold 0 and 9 in fold 1"),
        ({"weights_sha256": "weights of 0"}, "found the same weights in folds 0 and 1"),
        ({"options": {"boundary_mm": 3.0}}, "(heads, regions, boundary_mm) = (3, False, 2.0), found (3, False, 3.0)"),
    ],
)
def test_mixed(model, changed, text):
    """Folds of two models, of two label sets, of two ways to measure, or of one network."""
    model.write(1, model.cases[1], **changed)
    for allow in (False, True):
        assert text in refusal(model, allow_missing=allow)


def test_hyperparameters(tmp_path):
    """Another value is another model; a name that only one fold has is of another version of the trainer."""
    model = Model(tmp_path)
    for fold, weight in enumerate((0.1, 0.2)):
        model.write(fold, {f"case{fold}": made(fold)}, hyperparameters={"nacl_weight": weight, f"new{fold}": 1})
    with pytest.raises(ValueError, match=r"found hyperparameter nacl_weight 0\.1 in fold 0 and 0\.2 in fold 1"):
        merge_folds(model.model_folder, (0, 1))
    model.write(1, model.cases[1], hyperparameters={"nacl_weight": 0.1})
    merge_folds(model.model_folder, (0, 1))


@pytest.mark.parametrize(
    ("content", "text"), [("{", "expected JSON, found"), ('{"format_version": 99}', "expected format 1, found 99 in")]
)
def test_damaged_summary(model, content, text):
    """A damaged file and one of another version are named."""
    path = model.calibration(1) / "summary.json"
    path.write_text(content)
    said = refusal(model)
    assert text in said
    assert str(path) in said


def test_damaged_case(model):
    """It is named, not left out."""
    path = case_file(model.calibration(1), "case.2")
    path.write_bytes(b"PK")
    for allow in (False, True):
        assert f"expected calibration statistics of a case, found {path} unreadable" in refusal(
            model, allow_missing=allow
        )


def test_fold_without_a_voxel(model):
    """Nothing to fit its temperature on."""
    for name in model.cases[1]:
        case_file(model.calibration(1), name).unlink()
    text = refusal(model, allow_missing=True)
    assert "expected cases with a voxel that counts in each fold, found none in fold 1: leave it out with -f" in text


def said(capsys, arguments) -> str:
    """The only line on stderr that is ours, and nothing on stdout."""
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = (line for line in captured.err.splitlines() if line.startswith("nnunet_calib: "))
    return line


def test_command(model, capsys, monkeypatch):
    """One sentence and status 2 for an unknown dataset, model or fold, and without nnUNet_results."""
    text = said(capsys, ["crossval", "-d", "5", *CROSSVAL[3:]])
    assert f"got '5' (in nnUNet_results: {DATASET}): Could not find a dataset with the ID 5" in text
    assert "expected the name or number of a dataset, got 'x'" in said(capsys, ["crossval", "-d", "x", *CROSSVAL[3:]])
    text = said(capsys, [*CROSSVAL, "-p", "mine"])
    assert f"expected a trained model in {model.folder.parent / f'{TRAINER}__mine__3d_fullres'}, found none" in text
    assert f"check -d, -c, -tr and -p ({model.folder.name} there)" in text
    assert "expected fold 3 in" in said(capsys, CROSSVAL)
    assert "got all" in said(capsys, [*CROSSVAL, "-f", "all"])
    monkeypatch.delenv("nnUNet_results")
    assert "expected nnUNet_results to name the folder of nnU-Net's trained models" in said(capsys, CROSSVAL)

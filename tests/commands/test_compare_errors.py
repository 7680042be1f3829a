"""What is not compared, in which words, and what is compared with a note."""

import json
import shutil
from dataclasses import replace

import pytest

from nnunet_calib import cli
from nnunet_calib.results.comparison import compare_models
from nnunet_calib.results.layout import case_file
from nnunet_calib.results.training_split import Split
from tests.worlds.compared_folds import COMPARE, DATASET, DICE, OTHER, TRAINER, two_models, write_dice
from tests.worlds.measured_folds import LABELS, Model, made


@pytest.fixture
def models(tmp_path, monkeypatch):
    """Two models with two folds of two cases each, and nnU-Net's variables for them."""
    made_here = two_models(tmp_path, cases=2)
    for name, value in made_here[0].environment().items():
        monkeypatch.setenv(name, value)
    return made_here


def refusal(models, folds=(0, 1), **options) -> str:
    """What is said instead of comparing."""
    with pytest.raises(ValueError, match="expected") as error:
        compare_models([model.model_folder for model in models], folds, **options)
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("folds", [(0, 1), (0,)])
def test_not_measured(models, folds):
    """With the model that lacks it, and what to type."""
    shutil.rmtree(models[1].calibration(0))
    text = refusal(models, folds)
    assert text.startswith(f"{models[1].folder.name}: expected the calibration statistics of fold 0 in ")
    assert text.endswith(f"run nnunet_calib validate -d {DATASET} -c 3d_fullres -tr {OTHER} -p nnUNetPlans -f 0")


@pytest.mark.parametrize("folds", [(0, 1), (1,)])
def test_case_not_measured(models, folds):
    """A killed validation."""
    case_file(models[1].calibration(1), "case.3").unlink()
    text = refusal(models, folds)
    assert text.startswith(f"{models[1].folder.name}: expected statistics of every validation case")
    assert "found none for fold 1: case.3: measure them with nnunet_calib validate, or leave" in text


@pytest.mark.parametrize(
    ("folds", "text"),
    [
        ((0, "all"), "got all: fold all was trained on the cases that it validates"),
        (("all",), "got all: fold all was trained on the cases that it validates"),
        ((0, 0), "expected each fold once, got 0 0"),
        ((0, 7), "expected fold 7 in"),
    ],
)
def test_folds(models, folds, text):
    """As where they are merged, but one will do."""
    assert text in refusal(models, folds)


def test_number_of_models(models):
    """Two or more, each once."""
    name = models[0].folder.name
    assert f"expected at least two models, got {name}: name more with -tr" in refusal(models[:1])
    text = refusal([*models, models[0]])
    assert text == f"expected each model once, got {name} twice: name each of -c, -tr and -p once"


def test_other_cases(models):
    """Those that one model has and the other has not, named; --chill compares the rest."""
    for fold, names in ((0, ("case.0",)), (1, ("case.2", "case.3", "more"))):
        models[1].write(fold, {name: made(fold, 1.1) for name in names})
    models[1].splits.unlink()
    text = refusal(models)
    assert f"expected the same cases of each model, found more of {OTHER} and not of {TRAINER}: name" in text
    assert text.endswith("with --chill")
    assert f"found case.1 of {TRAINER} and not of {OTHER}: name" in refusal(models[::-1])
    comparison = compare_models([model.model_folder for model in models], (0, 1), allow_missing=True)
    assert comparison["cases"] == ["case.0", "case.2", "case.3"]
    assert [row["case"] for row in comparison["left_out"]] == ["case.1", "more"]


def test_no_shared_case(models):
    """Nothing is left to compare."""
    for fold in range(2):
        models[1].write(fold, {f"other.{fold}{i}": made(fold + 4 * i, 1.1) for i in range(2)})
    models[1].splits.unlink()
    text = refusal(models, allow_missing=True)
    assert f"expected cases that all models have, found none for {TRAINER} and {OTHER}: name folds" in text


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"names": ("background", "a", "b")}, "found heads (names) ('background', 'bright', 'dark') of nnUNetTrainerC"),
        ({"keys": ("0", "1", "3")}, "found heads (keys) ('0', '1', '2') of nnUNetTrainerCalib and ('0', '1', '3') of"),
        ({"ignore_label": 9}, "found heads (ignore_label) None of nnUNetTrainerCalib and 9 of nnUNetTrainerNACL"),
    ],
)
def test_other_labels(models, changed, text):
    """Models of other heads do not answer the same question; no flag allows it."""
    heads = replace(LABELS, **changed)
    for fold, cases in models[1].cases.items():
        models[1].write(fold, cases, heads)
        write_dice(models[1], fold, DICE, keys=heads.foreground)
    for allow in (False, True):
        said = refusal(models, allow_missing=allow)
        assert text in said
        assert said.endswith("train them on the same dataset.json")


def test_regions_against_labels(models):
    """The same number of heads, but of regions."""
    heads = replace(LABELS, keys=("(1, 2, 3)", "(2, 3)", "3"), regions=((1, 2, 3), (2, 3), (3,)))
    for fold, cases in models[1].cases.items():
        models[1].write(fold, {name: made(fold, mode="regions") for name in cases}, heads)
        write_dice(models[1], fold, {name: (0.5, 0.5, 0.5) for name in cases}, keys=heads.keys)
    assert f"found heads (keys) ('0', '1', '2') of {TRAINER} and ('(1, 2, 3)', '(2, 3)', '3') of" in refusal(models)


def test_other_label_maps(models):
    """The same case with another number of voxels."""
    cases = models[1].cases[1]
    cases["case.2"] = replace(
        cases["case.2"], labels=cases["case.2"].labels[1:], probabilities=cases["case.2"].probabilities[:, 1:]
    )
    models[1].write(1, cases)
    assert f"found 486 voxels of case.2 for {TRAINER} and 432 for {OTHER}: measure both again" in refusal(models)


def test_copied_model(models, tmp_path):
    """One network under two names."""
    copy = Model(tmp_path, trainer="nnUNetTrainerCopy", weights=TRAINER)
    shutil.copytree(models[0].folder, copy.folder)
    text = refusal([models[0], copy])
    assert f"found the same weights in fold 0 of {TRAINER} and fold 0 of nnUNetTrainerCopy" in text


def test_without_dice(models):
    """Calibration is compared all the same; a note says whose Dice is missing, and from which file."""
    (models[1].calibration(1).parent / "summary.json").unlink()
    comparison = compare_models([model.model_folder for model in models], (0, 1))
    first, other = comparison["results"][0]["models"]
    assert (first["cases"], other["cases"], other["pairs"]) == (4, 2, 2)
    assert f"No Dice of {OTHER} from fold_1/validation/summary.json, which nnU-Net writes at the end" in "\n".join(
        comparison["notes"]
    )


def test_dice_of_other_classes(models):
    """A summary.json of other labels is not taken for less."""
    file = models[1].calibration(1).parent / "summary.json"
    file.write_text(file.read_text().replace('"2"', '"4"'))
    text = refusal(models)
    assert f"expected metric_per_case[0].metrics.2, found none in {file}: validate again with" in text


def test_no_dice_at_all(models, capsys):
    """Null in the file, a dash in the tables, and no figure: not even that of a run before."""
    arguments = [*COMPARE, "-f", "0", "1", "-o", str(models[0].results / "out")]
    assert cli.main(arguments) == 0
    assert len([*(models[0].results / "out").glob("dice_against_ace.*")]) == 3
    for model in models:
        for fold in range(2):
            (model.calibration(fold).parent / "summary.json").unlink()
    assert cli.main(arguments) == 0
    assert not [*(models[0].results / "out").glob("dice_against_ace.*")]
    dice = json.loads((models[0].results / "out" / "comparison.json").read_text())["results"][0]["models"][1]
    assert dice["mean"] is dice["difference"] is dice["p"] is dice["p_holm"] is None
    assert dice["interval"] == dice["difference_interval"] == [None, None]
    assert "| - (- to -), p = - |" in (models[0].results / "out" / "comparison.md").read_text()
    rows = (models[0].results / "out" / "comparison.csv").read_text().splitlines()
    row = next(row for row in rows if row.startswith(f"{OTHER},dice,foreground_mean,image,both,"))
    known = dict(zip(rows[0].split(","), row.split(","), strict=True))
    assert {name for name, value in known.items() if value} - {"folds", "test_to_train"} == {
        "model",
        "metric",
        "of",
        "scope",
        "stage",
        "cases",
        "pairs",
    }
    assert known["cases"] == known["pairs"] == "0"
    capsys.readouterr()


@pytest.mark.parametrize(("folds", "cases", "noted"), [(2, 2, 0.125), (1, 5, 0.0625), (2, 3, None)])
def test_few_cases(tmp_path, monkeypatch, folds, cases, noted):
    """Where the smallest p that the test can give is above .05, a note says so: fewer than six cases."""
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    models = two_models(tmp_path, folds=folds, cases=cases)
    comparison = compare_models([model.model_folder for model in models], range(folds))
    said = [note for note in comparison["notes"] if "no corrected p can be below" in note]
    if noted is None:
        assert not said
        assert any(row["p_holm"] == 2 / 2**6 for group in comparison["results"] for row in group["models"][1:])
    else:
        (note,) = said
        assert note.startswith(f"With {folds * cases} cases and 1 other model, ")
        assert f"below {noted}," in note


def test_single_case(tmp_path, monkeypatch):
    """There is no temperature that was fitted without it, and so nothing calibrated."""
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    models = two_models(tmp_path, folds=1, cases=1)
    comparison = compare_models([model.model_folder for model in models], (0,))
    for group in comparison["results"]:
        for row in group["models"]:
            assert row["cases"] == (group["stage"] != "calibrated")


def test_bound(models):
    """A temperature on the bound of the search is told."""
    for fold, cases in models[1].cases.items():
        for case in cases.values():
            case.labels[:] = case.probabilities.argmin(0)
        models[1].write(fold, cases)
    comparison = compare_models([model.model_folder for model in models], (0, 1))
    assert f"A temperature of {OTHER} lies on the bound of the search: do not use it." in comparison["notes"]


def test_command(models, capsys):
    """One sentence and status 2; every combination of -c, -tr and -p must be there."""
    for extra, text in (
        ([], "expected fold 2 in"),
        (["-f", "all"], "got all"),
        (["-c", "3d_fullres", "2d", "-f", "0"], f"in {models[0].folder.parent / TRAINER}__nnUNetPlans__2d, found none"),
        (["-tr", TRAINER, "-f", "0"], "expected at least two models, got"),
        (["-tr", TRAINER, TRAINER, "-f", "0"], "expected each model once, got"),
    ):
        assert cli.main([*COMPARE, *extra]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        (line,) = (line for line in captured.err.splitlines() if line.startswith("nnunet_calib: "))
        assert text in line
    assert not (models[0].results / DATASET / "calibration_comparisons").exists()


def test_widths_of_the_boundary_scope(models):
    """Bands of two widths are two scopes; no flag compares them."""
    for fold in (0, 1):
        measured = models[1].cases[fold]
        models[1].write(fold, measured, options={"boundary_mm": 1.0})
    for allow in (False, True):
        assert "expected models measured with one width of the boundary scope, found 2 mm for" in refusal(
            models, allow_missing=allow
        )


def test_other_checkpoints(models, capsys):
    """Models of different checkpoints are named by them in every table, and the Dice is said to be of any."""
    for fold in range(2):
        models[1].write(fold, models[1].cases[fold], checkpoint="checkpoint_best.pth")
    assert cli.main([*COMPARE, "-f", "0", "1"]) == 0
    name = f"{OTHER}, checkpoint_best.pth"
    (folder,) = (models[0].results / DATASET / "calibration_comparisons").iterdir()
    comparison = json.loads((folder / "comparison.json").read_text())
    assert [model["name"] for model in comparison["models"]] == [f"{TRAINER}, checkpoint_final.pth", name]
    assert [m["checkpoint"] for m in comparison["models"]] == ["checkpoint_final.pth", "checkpoint_best.pth"]
    (note,) = (note for note in comparison["notes"] if "its Dice is that of" in note)
    assert note.startswith(f"The calibration of {name} is that of checkpoint_best.pth")
    for text in (capsys.readouterr().out, *((folder / f"comparison.{kind}").read_text() for kind in ("md", "csv"))):
        assert name in text


def test_one_checkpoint_that_is_not_the_final_one(models, capsys):
    """It is told once for all models."""
    for model in models:
        for fold in range(2):
            model.write(fold, model.cases[fold], checkpoint="checkpoint_best.pth")
    assert cli.main([*COMPARE, "-f", "0", "1"]) == 0
    assert "cases of folds 0, 1, checkpoint: checkpoint_best.pth. Difference: " in capsys.readouterr().out


def test_other_training_cases(models):
    """Trained on more cases than the first model, or on its own validation cases: told, and refused."""
    for model, more in zip(models, ((), ("more",)), strict=True):
        for fold in range(2):
            split = Split.of([*models[0].cases[1 - fold], *more], model.cases[fold])
            model.write(fold, model.cases[fold], split=split)
    notes = compare_models([model.model_folder for model in models], (0, 1))["notes"]
    assert f"{OTHER} was not trained on the same cases as {TRAINER} in folds 0, 1." in notes
    models[1].write(0, models[1].cases[0], split=Split.of(["case.1"], models[1].cases[0]))
    for folds in ((0, 1), (0,)):
        assert "expected fold 0 to be trained without its validation cases, found case.1" in refusal(models, folds)

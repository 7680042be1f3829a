"""`nnunet_calib thresholds`: of folds, of a labelled hold-out, and what is refused."""

import json

import numpy as np
import pytest

from nnunet_calib import CaseStatistics, cli
from nnunet_calib.decisions.risk_control import THRESHOLDS, controlled_index, missed_shares
from nnunet_calib.results.layout import case_file
from tests.worlds.measured_folds import TRAINER, made
from tests.worlds.predicted_folder import write_world

FOLDS = ["thresholds", "-d", "4", "-c", "3d_fullres", "-tr", TRAINER, "-f", "0", "1", "2"]


def test_folds(model, capsys):
    """By structure a threshold of all cases; each fold is judged by that of the other folds' cases."""
    assert cli.main([*FOLDS, "--recall", ".6", ".7", "--precision", ".5"]) == 0
    file = model.model_folder.crossval([0, 1, 2]) / "thresholds.json"
    content, table = json.loads(file.read_text()), capsys.readouterr().out
    assert [(row["of"], row["level"]) for row in content["levels"]] == [
        ("recall", 0.6),
        ("recall", 0.7),
        ("precision", 0.5),
    ]
    losses = {
        fold: np.array(
            [
                missed_shares(CaseStatistics.load(case_file(model.calibration(fold), name)).histograms.scope("image"))
                for name in cases
            ]
        )
        for fold, cases in model.cases.items()
    }
    row = content["levels"][1]
    for key, head in (("1", 1), ("2", 2)):
        everything = np.concatenate(list(losses.values()))[:, head]
        position = controlled_index(everything.sum(0), 6, 0.3, rising=True)
        assert row["structures"][key]["threshold"] == THRESHOLDS[position]
        assert row["structures"][key]["found"]["mean"] == pytest.approx(1 - everything[:, position].mean())
        kept = []
        for fold in range(3):
            others = np.concatenate([losses[other] for other in range(3) if other != fold])[:, head]
            position = controlled_index(others.sum(0), 4, 0.3, rising=True)
            judged = row["per_fold"][fold]["structures"][key]
            assert judged["threshold"] == THRESHOLDS[position]
            assert judged["cases"] == 4
            kept += [*(1 - losses[fold][:, head, position])]
        assert row["by_other_folds"][key]["mean"] == pytest.approx(np.mean(kept))
    wide, narrow = (level["structures"]["1"]["threshold"] for level in (content["levels"][1], content["levels"][0]))
    assert wide <= narrow  # masks of a higher recall hold those of a lower one
    assert "recall 0.7" in table
    assert content["promise"] in table
    assert str(file) in table
    assert content["model"]["weights_sha256"]["2"] == "weights of 2"


def test_too_few_cases(model, capsys):
    """A promise that six cases cannot give has no threshold, and the output says from how many on it can be given."""
    assert cli.main([*FOLDS, "--recall", ".95"]) == 0
    content = json.loads((model.model_folder.crossval([0, 1, 2]) / "thresholds.json").read_text())
    assert content["levels"][0]["structures"]["1"]["threshold"] is None
    assert content["levels"][0]["structures"]["1"]["found"] == {"mean": None, "interval": [None, None]}
    assert "A recall of 0.95 can be promised from 19 cases on; structure 1, 2 has fewer." in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["labels", "regions_ignore"])
def test_hold_out(tmp_path, mode):
    """The same from predictions with labels; nothing but the file is left."""
    cases = write_world(tmp_path, mode, seeds=range(4))
    command = ["thresholds", "-i", str(tmp_path / "pred"), "-gt", str(tmp_path / "labels"), "-np", "1"]
    assert cli.main([*command, "--recall", ".6"]) == 0
    folder = tmp_path / "pred" / "calibration"
    assert [path.name for path in folder.iterdir()] == ["thresholds.json"]
    content = json.loads((folder / "thresholds.json").read_text())
    heads = [(i, key) for i, key in enumerate(content["heads"]["keys"]) if key != "0"]
    for head, key in heads:
        losses = [missed_shares(case.measure().histograms.scope("image"))[head] for case in cases.values()]
        position = controlled_index(np.sum(losses, 0), 4, 0.4, rising=True)
        assert content["levels"][0]["structures"][key]["threshold"] == THRESHOLDS[position]
    assert "per_fold" not in content["levels"][0]
    assert content["folds"] is None


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--recall", ".9"], "expected the folds of a model (-d, -c and -tr), or predictions with their labels"),
        (["-i", "somewhere", "--recall", ".9"], "(-i and -gt): name one of the two in full"),
        ([*FOLDS[1:], "-i", "somewhere", "-gt", "labels", "--recall", ".9"], "name one of the two in full"),
        (FOLDS[1:], "expected a recall or a precision to promise, got none: name one as in --recall .95"),
    ],
)
def test_refusals(model, capsys, arguments, sentence):
    """In one sentence, before anything is read."""
    assert cli.main(["thresholds", *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_levels(capsys):
    """A level is between 0 and 1."""
    with pytest.raises(SystemExit):
        cli.main([*FOLDS, "--recall", "95"])
    assert "expected a number between 0 and 1, got 95: write .95 for 95 %" in capsys.readouterr().err


def test_other_numbers(model, capsys):
    """They go with the numbers they were chosen from; those of these numbers stay, whichever came first."""
    file = model.model_folder.crossval([0, 1, 2]) / "thresholds.json"
    merge = ["crossval", *FOLDS[1:]]
    assert cli.main([*FOLDS, "--recall", ".6"]) == 0
    assert cli.main(merge) == 0
    assert file.is_file()
    model.write(2, model.cases[2], weights_sha256="others")
    assert cli.main(merge) == 0
    assert not file.exists()
    assert "thresholds.json" in capsys.readouterr().err
    assert cli.main([*FOLDS, "--recall", ".6"]) == 0
    model.write(2, {**model.cases[2], "case.9": made(9)}, weights_sha256="others")
    (file.parent / "summary.json").unlink()
    assert cli.main(merge) == 0
    assert not file.exists()

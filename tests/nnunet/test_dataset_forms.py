"""Forms of dataset.json that nnU-Net takes, or refuses in words that do not say what is wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_calib import cli
from nnunet_calib.nnunet.labels import check_dataset
from nnunet_calib.results.compared_models import dice_per_case
from nnunet_calib.results.heads import Heads
from nnunet_calib.trainers import nnUNetTrainerCalib
from tests.worlds.command_line import sentence
from tests.worlds.odd_cases import write_case
from tests.worlds.predicted_folder import arguments, run, write_world

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # nnU-Net's imports


def change_dataset(folder: Path, **changes: object) -> Path:
    """What a user has written; `labels` with the numbers of `write_world`."""
    file = folder / "pred" / "dataset.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return file


ACCEPTED = {
    "text": {"labels": {"background": "0", "bright": "1", "dark": "2"}},
    "text in lists": {"labels": {"background": 0, "bright": ["1"], "dark": [" 2 "]}},
    "whole floats": {"labels": {"background": 0.0, "bright": 1.0, "dark": [2.0]}},
    "null as ignore label": {"labels": {"background": 0, "bright": 1, "dark": 2, "ignore": None}},
    "order without regions": {"regions_class_order": "none"},
    "number as name": {"name": 7},
    "list as name": {"name": ["a", "b"]},
}


@pytest.mark.parametrize("form", ACCEPTED)
@pytest.mark.parametrize("plans", [True, False])
def test_accepted(tmp_path, form, plans):
    """As nnU-Net: the same numbers as of the plain form."""
    for name in "ab":
        write_world(tmp_path / name, seeds=range(2))
        if not plans:
            (tmp_path / name / "pred" / "plans.json").unlink()
    content = json.loads(change_dataset(tmp_path / "a", **ACCEPTED[form]).read_text())
    assert LabelManager(content["labels"], content.get("regions_class_order")).num_segmentation_heads == 3
    a, b = (run(tmp_path / name) for name in "ab")
    assert (a["heads"], a["metrics"]) == (b["heads"], b["metrics"])
    if not plans and form == "number as name":
        assert a["model"]["dataset"] == "7"


def test_whole_floats_in_regions(tmp_path):
    """With which nnU-Net trains; its summary.json has them in its keys."""
    for name in "ab":
        write_world(tmp_path / name, "regions", seeds=range(2))
    labels = {"background": 0.0, "any": [1.0, 2.0], "dark": 2}
    change_dataset(tmp_path / "a", labels=labels, regions_class_order=["1", "2"])
    a, b = (run(tmp_path / name) for name in "ab")
    assert (a["heads"], a["metrics"]) == (b["heads"], b["metrics"])
    metrics = {"(1.0, 2.0)": {"Dice": 0.5}, "2": {"Dice": 1.0}}
    file = tmp_path / "summary.json"
    file.write_text(json.dumps({"metric_per_case": [{"prediction_file": "x/c.nii.gz", "metrics": metrics}]}))
    assert dice_per_case(file, ".nii.gz", Heads.of_summary(a["heads"])) == {"c": 0.75}


REFUSED = {
    "swapped": (
        {"labels": {"0": "background", "1": "bright", "2": "dark"}},
        "expected a whole number, or a list of them, for each name in the labels of {file}, found 'background' for "
        "'0': write the name first, as in 'background': 0",
    ),
    "words": ({"labels": {"background": 0, "bright": "one", "dark": 2}}, "found 'one' for 'bright': correct it"),
    "fraction in text": ({"labels": {"background": 0, "bright": "1.0", "dark": 2}}, "found '1.0' for 'bright'"),
    "null": ({"labels": {"background": 0, "bright": None, "dark": 2}}, "found None for 'bright': correct it"),
    "infinite": ({"labels": {"background": 0, "bright": float("inf"), "dark": 2}}, "found inf for 'bright': correct"),
    "ignore label": (
        {"labels": {"background": 0, "bright": 1, "dark": 2, "ignore": "3"}},
        "expected a whole number for the ignore label in {file}, found '3': correct it",
    ),
    "list of labels": ({"labels": ["background", "bright"]}, "expected labels to be an object, found ['background', "),
    "no dot": ({"file_ending": "nii.gz"}, "expected file_ending .nii.gz in {file}, found nii.gz: add the dot"),
    "order of another length": (
        {"labels": {"background": 0, "any": [1, 2], "dark": 2}, "regions_class_order": 2},
        "regions_class_order with 2 labels, one for each region (any, dark), found 2: add it",
    ),
}


@pytest.mark.parametrize("form", REFUSED)
def test_refused(tmp_path, capsys, form):
    """Here as by nnU-Net, in a sentence that says what to write."""
    write_world(tmp_path, seeds=range(2))
    changes, said = REFUSED[form]
    file = change_dataset(tmp_path, **changes)
    if isinstance(changes.get("labels"), dict):
        with pytest.raises((AssertionError, RuntimeError, ValueError, TypeError, OverflowError)):
            LabelManager(changes["labels"], changes.get("regions_class_order"))
    assert cli.main(arguments(tmp_path)) == 2
    assert said.format(file=file) in sentence(capsys.readouterr().err)
    assert not (tmp_path / "pred" / "calibration").exists()


def test_fractions():
    """nnU-Net cuts them off in labels and not in regions, so that it trains; measuring refuses."""
    labels = {"background": 0, "any": [1, 2.5], "dark": 2}
    check_dataset({"labels": labels, "regions_class_order": [1, 2]})
    with pytest.raises(ValueError, match=r"whole numbers as labels in dataset.json, found 2.5"):
        Heads.of(LabelManager(labels, [1, 2]))


def test_trainer():
    """Told before the training begins; what nnU-Net converts is trained on."""
    swapped = {"labels": {"0": "background", "1": "bright", "2": "dark"}, "file_ending": ".nii.gz"}
    with pytest.raises(ValueError, match=r"of dataset.json, .* write the name first, as in 'background': 0"):
        nnUNetTrainerCalib({}, "2d", 0, swapped)
    for form in ("text", "text in lists", "whole floats", "null as ignore label"):
        with pytest.raises(KeyError, match="continue_training"):  # of nnU-Net's constructor, without plans
            nnUNetTrainerCalib({}, "2d", 0, ACCEPTED[form])


TWICE = {"background": 0, "any": [1, 2], "all": [1, 2], "b": 2, "again": [2], "bs": 2}


def test_one_region_under_two_names(tmp_path):
    """Each head has its key, its name and its numbers, and what is written can be read."""
    write_world(tmp_path, seeds=range(2))
    change_dataset(tmp_path, labels=TWICE, regions_class_order=[1, 1, 2, 2, 2])
    (tmp_path / "pred" / "plans.json").unlink()
    rng = np.random.default_rng(0)
    for name in ("case.0", "case.1"):
        labels = rng.integers(0, 3, (3, 4, 5)).astype(np.uint8)
        write_case(tmp_path, name, rng.random((5, 3, 4, 5)).astype(np.float32), labels)
    summary = run(tmp_path)
    heads = Heads.of_summary(summary["heads"])
    assert heads.keys == ("(1, 2)", "(1, 2) #2", "2", "(2,)", "2 #2")
    assert heads.names == ("any", "all", "b", "again", "bs")
    assert heads.regions == ((1, 2), (1, 2), (2,), (2,), (2,))
    per_class = summary["metrics"]["uncalibrated"]["image"]["per_class"]
    assert [*per_class] == [*heads.keys]
    assert len({errors["ace"] for errors in per_class.values()}) == 5
    metrics = {"(1, 2)": {"Dice": 0.5}, "2": {"Dice": 1.0}, "(2,)": {"Dice": 1.0}}
    file = tmp_path / "summary.json"
    file.write_text(json.dumps({"metric_per_case": [{"prediction_file": "x/c.nii.gz", "metrics": metrics}]}))
    assert dice_per_case(file, ".nii.gz", heads) == {"c": pytest.approx(0.8)}


def test_one_label_under_two_names():
    """One head with both names; names stay different, whatever they are."""
    labels = {"background": 0, "left": 1, "right": [1], "left, right": 2}
    heads = Heads.of(LabelManager(labels, None))
    assert heads.keys == ("0", "1", "2")
    assert heads.names == ("background", "left, right", "left, right #2")


@pytest.mark.parametrize("entry", ["keys", "names"])
def test_read_back(entry):
    """A file in which two heads are called the same is refused."""
    content = {"keys": ["(1, 2)", "2"], "names": ["any", "b"], "regions": [[1, 2], [2]], "ignore_label": None}
    assert Heads.of_summary(content).names == ("any", "b")
    with pytest.raises(ValueError, match="all of them once"):
        Heads.of_summary(content | {entry: ["a", "a"]})

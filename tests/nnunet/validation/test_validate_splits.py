"""Which cases a fold was trained on, as its training has written down, whatever becomes of splits_final.json."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nnunet_calib import cli
from nnunet_calib.nnunet.training.recorded_split import recorded_training
from nnunet_calib.nnunet.validation import trained_fold as revalidation
from nnunet_calib.results.deployed_temperature import find_temperature
from nnunet_calib.results.layout import ModelFolder
from nnunet_calib.results.measured_folds import find_folds
from nnunet_calib.results.training_split import FILE, Split, read_split
from tests.worlds.nnunet_world import PLANS

TRAINER = "nnUNetTrainerCalib_short"

of_nnunet = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning", "ignore::ResourceWarning")


class Lab:
    """A dataset whose splits a test may change, and fold 0 of a trainer."""

    def __init__(self, world, root: Path) -> None:
        self.world, self.preprocessed = world, root / "preprocessed" / world.dataset
        self.model = ModelFolder.below(root / "results", world.dataset, TRAINER, PLANS, "2d")
        self.fold = self.model.fold(0)
        self.calibration = self.fold / "validation" / "calibration"
        shutil.copytree(world.preprocessed, self.preprocessed)
        (root / "results").mkdir()

    def split(self, training: str, validation: str) -> None:
        """Write splits_final.json with one fold; cases are named by their numbers."""
        lists = {"train": training, "val": validation}
        split = {name: [f"case.{number}" for number in numbers] for name, numbers in lists.items()}
        (self.preprocessed / "splits_final.json").write_text(json.dumps([split]))

    def train(self, **options: bool) -> None:
        """What nnUNetv2_train does."""
        from nnunetv2.run.run_training import run_training

        run_training(self.world.dataset, "2d", 0, TRAINER, PLANS, device=torch.device("cpu"), **options)

    def validate(self, *options: str) -> int:
        """Run the command in this process."""
        command = ["validate", "-d", self.world.dataset, "-c", "2d", "-tr", TRAINER, "-device", "cpu", "--no-figures"]
        return cli.main([*command, "-f", "0", *options])

    def read(self, name: str) -> dict:
        """One of the files of the fold."""
        return json.loads((self.calibration / name).read_text())

    def seen(self) -> list[str]:
        """The training cases among those measured, on which both files agree."""
        temperature, summary = self.read("temperature.json"), self.read("summary.json")["temperature"]
        assert temperature["in_sample"] is summary["in_sample"] is bool(temperature["seen_in_training"])
        assert temperature["seen_in_training"] == summary["seen_in_training"]
        return temperature["seen_in_training"]


@pytest.fixture
def lab(world, tmp_path, monkeypatch, in_threads) -> Lab:
    """See `Lab`."""
    for name in ("results", "preprocessed"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    return Lab(world, tmp_path)


@pytest.mark.slow
@of_nnunet
def test_one_case_in_both_lists(lab, capsys, monkeypatch):
    """The fold says so in all its files, and for ever: what uses T, or errors as of new cases, refuses it."""
    lab.split("012", "23")
    lab.train()
    assert lab.seen() == ["case.2"]
    assert "WARNING: this network was trained on 1 of these 2 cases (case.2)" in capsys.readouterr().out
    summary = lab.read("summary.json")
    assert summary["split"] == {"training": ["case.0", "case.1", "case.2"], "validation": ["case.2", "case.3"]}
    files = {name: (lab.calibration / name).read_bytes() for name in ("summary.json", "temperature.json")}

    lab.split("014", "23")  # put right, too late
    assert lab.validate() == 0
    assert "T was fitted on 1 case that the network was trained on" in capsys.readouterr().out
    assert files == {name: (lab.calibration / name).read_bytes() for name in files}
    for name in ("nnUNet_preprocessed", "nnUNet_raw"):
        monkeypatch.delenv(name)
    with pytest.raises(ValueError, match=r"found .* fitted on training cases \(case\.2\): fit one to a hold-out set"):
        find_temperature(lab.model, [0])
    with pytest.raises(ValueError, match=r"expected fold 0 to be trained without .*, found case\.2 among its training"):
        find_folds(lab.model, [0], at_least=1)


@pytest.mark.slow
@of_nnunet
def test_other_splits_after_the_training(lab, capsys):
    """`--val`, `--c` and a new training with other splits: what the network has seen counts."""
    lab.split("01", "23")
    lab.train()
    assert lab.seen() == []
    lab.split("34", "02")
    lab.train(only_run_validation=True)
    assert lab.seen() == ["case.0"]
    assert read_split(lab.fold) == Split(("case.0", "case.1"), ("case.2", "case.3"))

    lab.train(continue_training=True)
    assert read_split(lab.fold) == Split(("case.0", "case.1", "case.3", "case.4"), ("case.0", "case.2"))
    assert lab.seen() == ["case.0"]

    lab.train()  # over what is there
    assert lab.seen() == []
    stale = {path.name.removesuffix(".nii.gz") for path in (lab.fold / "validation").glob("*.nii.gz")}
    assert stale == {"case.0", "case.2", "case.3"}
    capsys.readouterr()
    assert lab.validate() == 0
    assert "2 of 2 cases, 2 measured before" in capsys.readouterr().err
    assert lab.seen() == []


@pytest.mark.slow
@of_nnunet
def test_best_checkpoint(lab, capsys, monkeypatch):
    """`--val_best` is told from the final checkpoint, and its .npz are not taken for that one's."""
    lab.split("012", "34")
    lab.train()
    final = lab.read("summary.json")["model"]
    assert final["checkpoint"] == "checkpoint_final.pth"
    best = lab.fold / "checkpoint_best.pth"
    content = torch.load(best, weights_only=False)
    for tensor in content["network_weights"].values():
        tensor *= 1.01
    torch.save(content, best)
    lab.train(only_run_validation=True, val_with_best=True, export_validation_probabilities=True)
    for name in ("summary.json", "temperature.json"):
        model = lab.read(name)["model"]
        assert model["checkpoint"] == "checkpoint_best.pth"
        assert model["weights_sha256"] != final["weights_sha256"]
    capsys.readouterr()
    assert lab.validate("-chk", "checkpoint_best.pth") == 0
    captured = capsys.readouterr()
    assert "2 of 2 cases, 2 measured before" in captured.err
    assert "\ncheckpoint: checkpoint_best.pth\n" in captured.out

    class Stop(Exception):
        """Instead of predicting."""

    def stop(trainer, weights, cases, *others):
        raise Stop(*cases)

    monkeypatch.setattr(revalidation, "predict", stop)
    with pytest.raises(Stop) as stopped:
        lab.validate()
    assert stopped.value.args == ("case.3", "case.4")


def trainer(folder: Path, split, epoch: int = 0, rank: int = 0) -> SimpleNamespace:
    """What is asked of a trainer when its training starts."""
    said: list[str] = []
    return SimpleNamespace(
        do_split=lambda: split,
        output_folder=str(folder),
        current_epoch=epoch,
        local_rank=rank,
        said=said,
        print_to_log_file=said.append,
    )


def start(made: SimpleNamespace) -> object:
    """Start the training; returns what nnU-Net gets of `do_split`."""
    own = made.do_split
    with recorded_training(made):
        result = made.do_split()
    assert made.do_split is own
    return result


def test_recorded_in_any_order(tmp_path):
    """Sorted, once each; the first rank alone writes."""
    assert start(trainer(tmp_path, (["b", "a", "a"], ["c"]), rank=1)) == (["b", "a", "a"], ["c"])
    assert read_split(tmp_path) is None
    start(trainer(tmp_path, (["b", "a", "a"], ["c"], "more")))
    assert read_split(tmp_path) == Split(("a", "b"), ("c",))


@pytest.mark.parametrize("split", [None, {"train": ["a"]}, (["a"], 7)])
def test_other_forms_of_a_split(tmp_path, split):
    """A trainer with a way of its own gets what it made, and no older record is taken for its training's."""
    start(trainer(tmp_path, (["a"], ["b"])))
    made = trainer(tmp_path, split)
    assert start(made) == split
    assert made.said == []
    assert read_split(tmp_path) is None


def test_recording_fails(tmp_path):
    """It is logged and costs the training nothing."""
    (tmp_path / FILE / "in the way").mkdir(parents=True)
    made = trainer(tmp_path, (["a"], ["b"]))
    start(made)
    (text,) = made.said
    assert str(tmp_path / FILE) in text
    assert "Traceback" in text


def test_continued_over_a_damaged_record(tmp_path):
    """What it held is lost: nothing is recorded rather than half of it."""
    (tmp_path / FILE).write_text("{")
    made = trainer(tmp_path, (["a"], ["b"]), epoch=3)
    start(made)
    assert len(made.said) == 1
    assert read_split(tmp_path) is None

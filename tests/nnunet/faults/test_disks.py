"""Commands on a disk that is full or only reads: one sentence that names the file, and nothing is left of it."""

from pathlib import Path

import pytest

from nnunet_calib import cli
from nnunet_calib.report import fold_page as report_page
from tests.nnunet.faults.disks import full_disk, read_only_disk
from tests.nnunet.faults.processes import ended, forked, half_written, needs_fork, one_figure, visible
from tests.worlds.command_line import sentence
from tests.worlds.measured_folds import CROSSVAL, TRAINER, Model, made
from tests.worlds.predicted_folder import arguments, write_world

pytestmark = [needs_fork, pytest.mark.filterwarnings("ignore::UserWarning")]  # nnU-Net's imports


# command -> its arguments, and the folder that it writes to
COMMANDS = {
    "evaluate": (lambda f: arguments(f, "evaluate", "-o", str(f / "disk" / "out")), "disk"),
    "fit": (lambda f: arguments(f, "fit", "-o", str(f / "disk" / "out")), "disk"),
    "export": (lambda f: ["export", "-i", str(f / "pred"), "-np", "1", "-o", str(f / "disk" / "out")], "disk"),
    "report": (lambda f: ["report", *CROSSVAL[1:], "-f", "0", "--no-images", "-o", str(f / "disk" / "r.html")], "disk"),
    "compare": (
        lambda f: [
            "compare",
            "-d",
            "4",
            "-c",
            "3d_fullres",
            "-tr",
            TRAINER,
            "nnUNetTrainerNACL",
            "-f",
            "0",
            "-o",
            str(f / "disk" / "out"),
        ],
        "disk",
    ),
    "crossval": (
        lambda f: [*CROSSVAL, "-f", "0", "1", "2"],
        f"results/Dataset004_Synthetic/{TRAINER}__nnUNetPlans__3d_fullres/crossval_results_folds_0_1_2",
    ),
}


@pytest.fixture
def world(tmp_path, model, monkeypatch):
    """Predictions, and two models of which one has three folds."""
    write_world(tmp_path, seeds=range(1))
    other = Model(tmp_path, trainer="nnUNetTrainerNACL", weights="others")
    other.write(0, {name: made(9 + i) for i, name in enumerate(model.cases[0])})
    model.write_splits()
    monkeypatch.setattr(report_page, "FIGURES", ())
    with one_figure(monkeypatch):
        yield tmp_path


def told(run, file: Path) -> str:
    """The sentence of a command, run in a process of its own, that could not do its work."""
    assert ended(forked(run, file)) == 2
    return sentence(file.read_text().splitlines()[-1])


@pytest.mark.parametrize("name", COMMANDS)
def test_full(world, tmp_path_factory, name):
    """The disk holds nothing of it; with room, the same command does its work."""
    command, place = COMMANDS[name]
    said = tmp_path_factory.mktemp("said") / "stderr"
    with full_disk(world / place) as limit:
        text = told(lambda: (limit and limit(), cli.main(command(world)))[1], said)
        assert not visible(world / place)
        assert not half_written(world / place)
    assert f"{world / place}/" in text
    assert "could not (" in text
    assert text.endswith("is there space and permission?")
    assert cli.main(command(world)) == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_read_only(world, tmp_path_factory, name):
    """Before anything is measured, where there is something to measure."""
    command, place = COMMANDS[name]
    said = tmp_path_factory.mktemp("said") / "stderr"
    with read_only_disk(world / place):
        text = told(lambda: cli.main(command(world)), said)
    assert str(world / place) in text
    assert "expected a folder that can be written, got" in text or "could not (" in text
    assert "measuring:" not in said.read_text()
    assert not visible(world / place)


def test_old_results_stay(world, tmp_path_factory):
    """Where the disk is full or only reads, what an earlier run has written is kept as it was."""
    command, place = COMMANDS["crossval"]
    said = tmp_path_factory.mktemp("said") / "stderr"
    assert cli.main(command(world)) == 0
    before = visible(world / place)
    with read_only_disk(world / place):
        told(lambda: cli.main(command(world)), said)
        assert visible(world / place) == before

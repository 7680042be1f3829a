"""Commands that are killed in the middle of each of their files: no half of one is read, and a new run mends it."""

import shutil
from itertools import count

import pytest

from nnunet_calib import cli
from nnunet_calib.report import fold_page as report_page
from nnunet_calib.results.layout import case_file
from tests.nnunet.faults.processes import half_written, killed, needs_fork, one_figure, visible
from tests.worlds.measured_folds import CROSSVAL, TRAINER, Model, made, three_folds
from tests.worlds.predicted_folder import arguments, write_world

pytestmark = [needs_fork, pytest.mark.filterwarnings("ignore::UserWarning")]  # nnU-Net's imports


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """One small figure for all of them."""
    monkeypatch.setattr(report_page, "FIGURES", ())
    with one_figure(monkeypatch):
        yield


def check_every_kill(command, folder, writes, hidden=0):
    """Kill a run in its first file, a new one in its second, and so on; the last one comes to its end.

    At any time each file is there as a run that was not killed writes it, or not at all. `hidden` files are written
    besides, which the run itself removes.
    """
    assert cli.main(command) == 0
    expected = visible(folder)
    assert len(expected) == writes
    for name in expected:
        (folder / name).unlink()
    for write in count(1):
        if not killed(lambda: cli.main(command), write):
            break
        assert half_written(folder)
        found = visible(folder)
        assert len(found) <= write
        assert found == {name: expected[name] for name in found}
    assert write == writes + hidden + 1
    assert visible(folder) == expected


def test_evaluate(tmp_path):
    """Cases, which are written apart and moved, temperature, summary and the figures."""
    write_world(tmp_path, seeds=range(2))
    check_every_kill(arguments(tmp_path), tmp_path / "pred" / "calibration", 2 + 2 + 3, hidden=2)


def test_fit(tmp_path):
    """A single file, after the case's own, which does not stay."""
    write_world(tmp_path, seeds=range(1))
    check_every_kill(arguments(tmp_path, "fit"), tmp_path / "pred" / "calibration", 1, hidden=1)


def test_export(tmp_path):
    """maps.json, then the maps."""
    write_world(tmp_path, seeds=range(1))
    command = ["export", "-i", str(tmp_path / "pred"), "-np", "1", "--maps", "probabilities", "entropy"]
    check_every_kill(command, tmp_path / "pred" / "maps", 1 + 3 + 1)


def test_crossval(model):
    """Temperature, summary, expected volumes and figure; the folds are only read."""
    folds = visible(*(model.folder / f"fold_{fold}" for fold in range(3)))
    check_every_kill([*CROSSVAL, "-f", "0", "1", "2"], model.folder / "crossval_results_folds_0_1_2", 2 + 1 + 3)
    assert visible(*(model.folder / f"fold_{fold}" for fold in range(3))) == folds


def test_report_and_compare(model, tmp_path):
    """One page; and three tables, the figure of the logits and a page, without Dice, which these models lack."""
    (tmp_path / "page").mkdir()
    check_every_kill(
        ["report", *CROSSVAL[1:], "-f", "0", "--no-images", "-o", str(tmp_path / "page" / "report.html")],
        tmp_path / "page",
        1,
    )
    other = Model(tmp_path, trainer="nnUNetTrainerNACL", weights="others")
    other.write(0, {name: made(9 + i) for i, name in enumerate(model.cases[0])})
    check_every_kill(
        [
            "compare",
            "-d",
            "4",
            "-c",
            "3d_fullres",
            "-tr",
            TRAINER,
            other.named["trainer"],
            "-f",
            "0",
            "-o",
            str(tmp_path / "compared"),
        ],
        tmp_path / "compared",
        3 + 3 + 1,
    )


def test_over_older_results(tmp_path, capsys):
    """A fold that was trained again, and is killed while it is merged: crossval and report read neither half."""
    older, newer = three_folds(tmp_path / "older"), three_folds(tmp_path / "newer", weights="trained again")
    shutil.copytree(newer.calibration(1) / "cases", older.calibration(1) / "cases", dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in older.environment().items():
            patch.setenv(name, value)
        assert cli.main([*CROSSVAL, "-f", "0", "1", "2"]) == 2
        assert "found none for fold 1: case.2, case.3: measure them" in capsys.readouterr().err
        assert cli.main(["report", *CROSSVAL[1:], "-f", "1", "--no-images"]) == 2
        file = case_file(older.calibration(1), "case.2")
        assert f"expected the case that summary.json tells of, found {file} of other weights" in capsys.readouterr().err
        file.unlink()
        assert cli.main(["report", *CROSSVAL[1:], "-f", "1", "--no-images"]) == 2
        assert f"expected the statistics of a case in {file}, found none: measure the fold" in capsys.readouterr().err

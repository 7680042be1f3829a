"""Numbers that are replaced take with them what was made of them."""

import json

import pytest

from nnunet_calib.figures import fold_figures
from nnunet_calib.results import fold_summary, layout
from nnunet_calib.results.crossval import merge_folds
from tests.worlds.measured_folds import Model, made, three_folds

MADE = ("reliability.png", "worst_cases.pdf", "report.html")


def leave(folder) -> None:
    """What commands leave in a calibration folder, and a file of the user's."""
    for name in (*MADE, "mine.png"):
        (folder / name).write_text("of the numbers before")


def test_names():
    """Numbers that are replaced know all figures that are drawn."""
    assert [spec.name for spec in fold_figures.FIGURES] == [*layout.FIGURES]


def test_fold(tmp_path, capsys):
    """Of other numbers figures, page and other cases go, and it is told; of the same, they stay."""
    model = Model(tmp_path)
    model.write(0, {"case.0": made(0), "case.1": made(1)})
    folder = model.calibration(0)
    leave(folder)
    model.write(0, {"case.0": made(0), "case.1": made(1)})
    assert all((folder / name).is_file() for name in MADE)
    assert capsys.readouterr().err == ""
    model.write(0, {"case.0": made(2)}, weights_sha256="others")
    assert not any((folder / name).exists() for name in MADE)
    assert (folder / "mine.png").is_file()
    assert [path.name for path in (folder / "cases").iterdir()] == ["case.0.npz"]
    assert f"removed from {folder}, since it was of other numbers: 2 figures, 1 case file, report.html" in (
        capsys.readouterr().err
    )


def test_folder_in_the_way(tmp_path):
    """A folder with the name of a case file is not a case: it stays, and costs no results."""
    model = Model(tmp_path)
    (model.calibration(0) / "cases" / "case.1.npz").mkdir(parents=True)
    model.write(0, {"case.0": made(0)})
    assert (model.calibration(0) / "summary.json").is_file()
    assert (model.calibration(0) / "cases" / "case.1.npz").is_dir()


def test_merged_folds(tmp_path):
    """The page of a cross-validation goes with its numbers."""
    model = three_folds(tmp_path)
    folder = merge_folds(model.model_folder, (0, 1, 2))
    leave(folder)
    model.write(1, {"case.2": made(7), "case.3": made(8)}, weights_sha256="others")
    merge_folds(model.model_folder, (0, 1, 2))
    assert not any((folder / name).exists() for name in MADE)


@pytest.mark.parametrize("step", range(6))
def test_killed(tmp_path, monkeypatch, step):
    """Wherever it ends, no summary.json stands beside files of other numbers."""
    model = Model(tmp_path)
    model.write(0, {"case.0": made(0), "case.1": made(1)})
    folder = model.calibration(0)
    leave(folder)
    before = json.loads((folder / "summary.json").read_text())
    left = [step]

    def counted(work):
        def call(*args):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return work(*args)

        return call

    for name in ("forget", "json_text"):
        monkeypatch.setattr(fold_summary, name, counted(getattr(fold_summary, name)))
    with pytest.raises(KeyboardInterrupt):
        model.write(0, {"case.0": made(2)}, weights_sha256="others")
    if step < 2:  # nothing of the results before has gone
        assert json.loads((folder / "summary.json").read_text()) == before
        assert all((folder / name).is_file() for name in MADE)
    else:
        assert not (folder / "summary.json").exists()

"""Odd names of classes and cases, and pipes where files should be, in the commands that meet them."""

import json
import os
import signal

import pytest

from nnunet_calib import cli
from nnunet_calib.io.names import shown
from nnunet_calib.report import fold_page
from nnunet_calib.results.fold_summary import write_fold
from nnunet_calib.results.heads import Heads
from tests.nnunet.faults.processes import one_figure, one_format
from tests.worlds.command_line import sentence
from tests.worlds.measured_folds import TRAINER
from tests.worlds.predicted_folder import arguments, write_world
from tests.worlds.predicting import change_json

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # nnU-Net's imports

LABELS = {"background": 0, "$x_{$": 1, "half \ud800\nof \\it": 2}


@pytest.fixture
def in_time():
    """A command that waits for a pipe is ended."""

    def waits(*_):
        raise TimeoutError("it waits")

    before = signal.signal(signal.SIGALRM, waits)
    signal.alarm(240)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_classes(tmp_path, capsys, monkeypatch):
    """Evaluated with every figure, and exported; each file that is written is UTF-8, with the names escaped."""
    one_format(monkeypatch, "svg")
    write_world(tmp_path, seeds=range(2))
    change_json(tmp_path / "pred" / "dataset.json", labels=LABELS)
    assert cli.main(arguments(tmp_path)) == 0
    assert shown([*LABELS][2]) in capsys.readouterr().out
    folder = tmp_path / "pred" / "calibration"
    assert json.loads((folder / "summary.json").read_text())["heads"]["names"] == [*map(shown, LABELS)]
    drawn = [*folder.glob("*.svg")]
    assert len(drawn) >= 7
    assert all(path.read_text(encoding="utf-8") for path in drawn)
    assert cli.main(["export", "-i", str(tmp_path / "pred"), "-np", "1"]) == 0
    assert len([*(tmp_path / "pred" / "maps" / "probabilities").iterdir()]) == 3


def test_folds(model, monkeypatch):
    """What folds with such names say, as older versions wrote them, is merged, reported and compared."""
    for fold in range(3):
        file = model.calibration(fold) / "summary.json"
        heads = json.loads(file.read_text())["heads"]
        change_json(file, heads=heads | {"names": [*LABELS][: len(heads["names"])]})
    options = ["-d", "4", "-c", "3d_fullres", "-tr", TRAINER, "-f", "0", "1", "2"]
    monkeypatch.setattr(fold_page, "FIGURES", ())  # `test_classes` draws them with these names
    with one_figure(monkeypatch):
        assert cli.main(["crossval", *options]) == 0
        assert cli.main(["report", *options, "--no-images"]) == 0
    page = model.folder / "crossval_results_folds_0_1_2" / "calibration" / "report.html"
    assert "half \\ud800\\nof \\it" in page.read_text(encoding="utf-8")


@pytest.mark.skipif(os.name == "nt", reason="names that it does not have")
@pytest.mark.parametrize("name", [b"case\xff", b"a\\b", b"a\nb"])
@pytest.mark.parametrize("command", ["evaluate", "fit", "export"])
def test_cases(tmp_path, capsys, command, name):
    """Refused by who takes them in, rather than by who reads the results."""
    write_world(tmp_path, seeds=range(2))
    for where in ("pred", "labels"):
        for path in [*(tmp_path / where).glob("case.1.*")]:
            os.rename(path, os.fsencode(path).replace(b"case.1", name))
    words = arguments(tmp_path, command) if command != "export" else ["export", "-i", str(tmp_path / "pred")]
    assert cli.main(words) == 2
    last = sentence(capsys.readouterr().err.splitlines()[-1])
    assert f"found {os.fsdecode(name)!a}: rename its files" in last
    assert not {path.name for path in (tmp_path / "pred").iterdir()} & {"calibration", "maps"}


def test_cases_of_a_training(tmp_path):
    """They are told in its log, rather than written into a summary that nothing reads."""
    heads = Heads(("0", "1"), ("background", "x"), None, None)
    with pytest.raises(ValueError, match="expected names of cases that are UTF-8"):
        write_fold(tmp_path, ["a\\b"], heads, {"fold": 0, "weights_sha256": "x"})
    assert not [*tmp_path.iterdir()]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
@pytest.mark.parametrize("name", ["case.1.pkl", "dataset.json", "plans.json", "case.1.npz", "case.1.nii.gz"])
def test_pipes(tmp_path, capsys, in_time, name):
    """Refused, whatever waits for them to be written to."""
    write_world(tmp_path, seeds=range(2))
    (tmp_path / "pred" / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / "pred" / name)
    more = ["-djfile", str(tmp_path / "pred" / name)] if name == "dataset.json" else []
    more += ["-pfile", str(tmp_path / "pred" / name)] if name == "plans.json" else []
    command = ["export", "-i", str(tmp_path / "pred"), "-np", "1"] if name.endswith(".nii.gz") else arguments(tmp_path)
    assert cli.main([*command, *more]) == 2
    last = sentence(capsys.readouterr().err.splitlines()[-1])
    assert "expected" in last
    assert "case.1" in last or "found a pipe or a device at" in last


def test_device_as_temperature(tmp_path, capsys, in_time):
    """One that never ends is not read."""
    write_world(tmp_path, seeds=range(1))
    assert cli.main([*arguments(tmp_path), "--temperature", "/dev/zero"]) == 2
    assert "found a pipe or a device at /dev/zero" in sentence(capsys.readouterr().err.splitlines()[-1])

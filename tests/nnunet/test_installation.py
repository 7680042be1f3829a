"""`nnunet_calib doctor`: what is found, and what it tells to type."""

import os
import re

import pytest

from nnunet_calib import cli
from nnunet_calib.nnunet import installation
from nnunet_calib.nnunet.lookup import trainers_folder

pytestmark = pytest.mark.filterwarnings("ignore")  # nnU-Net's imports


@pytest.fixture
def ready(tmp_path, monkeypatch):
    """The variables of an installation that lacks nothing."""
    for variable in installation.FOLDERS:
        (tmp_path / variable).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.setenv("nnUNet_extTrainer", str(trainers_folder()))
    monkeypatch.delenv("NNUNET_CALIB_LOSSES", raising=False)
    return tmp_path


def doctor(capsys):
    """Status, lines by their subject, and the error."""
    status = cli.main(["doctor"])
    captured = capsys.readouterr()
    lines = re.findall(r"^(ok|!!)  (\S+) +(.*)(?:\n +-> (.*))?", captured.out, re.MULTILINE)
    return status, {subject: (mark, text, remedy) for mark, subject, text, remedy in lines}, captured.err


def test_ready(ready, capsys):
    """All is well, with the backend of each device."""
    status, lines, error = doctor(capsys)
    assert (status, error) == (0, "")
    assert {mark for mark, _, _ in lines.values()} == {"ok"}
    assert "nnU-Net finds nnUNetTrainerNACL" in lines["nnUNet_extTrainer"][1]
    assert "losses by the backend cpu" in lines["cpu"][1]
    assert not [*ready.glob("*/*")]  # nothing is left behind


def test_next_is_the_baseline(ready, capsys):
    """The trainer to begin with is the one that the documents begin with."""
    assert cli.main(["doctor"]) == 0
    assert capsys.readouterr().out.endswith("FOLD -tr nnUNetTrainerCalib\n")


def test_nothing_is_set(ready, monkeypatch, capsys):
    """Each variable with the line that sets it."""
    for variable in (*installation.FOLDERS, "nnUNet_extTrainer"):
        monkeypatch.delenv(variable)
    status, lines, error = doctor(capsys)
    assert status == 2
    for variable in (*installation.FOLDERS, "nnUNet_extTrainer"):
        mark, text, remedy = lines[variable]
        assert (mark, remedy[: len(variable) + 8]) == ("!!", f"export {variable}=")
        assert "is not set" in text
        assert variable in error


def test_folders(ready, monkeypatch, capsys):
    """A folder that is none, and one that cannot be written."""
    monkeypatch.setenv("nnUNet_raw", str(ready / "elsewhere"))

    def refuse(dir):
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr(installation.tempfile, "TemporaryFile", refuse)
    _, lines, _ = doctor(capsys)
    assert lines["nnUNet_raw"][:2] == ("!!", f"{ready / 'elsewhere'} is no folder")
    assert lines["nnUNet_results"][1] == f"{ready / 'nnUNet_results'} cannot be written (Permission denied)"


def test_trainers(ready, monkeypatch, capsys):
    """Our folder is not among those that are named; a broken module of another plugin; a trainer of the same name."""
    other = ready / "other"
    other.mkdir()
    (other / "theirs.py").write_text("")
    monkeypatch.setenv("nnUNet_extTrainer", str(other))
    assert doctor(capsys)[1]["nnUNet_extTrainer"][2].endswith(
        f"or add {os.pathsep}{trainers_folder()} to the folders there"
    )

    (other / "theirs.py").write_text("import no_such_module\n")
    monkeypatch.setenv("nnUNet_extTrainer", os.pathsep.join([str(other), str(trainers_folder())]))
    mark, _, remedy = doctor(capsys)[1]["nnUNet_extTrainer"]
    assert mark == "!!"
    assert "theirs.py broken" in remedy
    assert "no_such_module" in remedy

    (other / "theirs.py").write_text(
        "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n\n\n"
        "class nnUNetTrainerNACL(nnUNetTrainer):\n    pass\n"
    )
    mark, text, _ = doctor(capsys)[1]["nnUNet_extTrainer"]
    assert (mark, text) == ("!!", "nnU-Net finds another nnUNetTrainerNACL, of the module theirs")


def test_losses(ready, monkeypatch, capsys):
    """A backend that is none, and one that was chosen."""
    monkeypatch.setenv("NNUNET_CALIB_LOSSES", "fast")
    assert doctor(capsys)[1]["losses"][0] == "!!"
    monkeypatch.setenv("NNUNET_CALIB_LOSSES", "chunked")
    assert "the backend chunked, as NNUNET_CALIB_LOSSES says" in doctor(capsys)[1]["cpu"][1]


def test_version(capsys):
    """That of the package."""
    with pytest.raises(SystemExit) as ending:
        cli.main(["--version"])
    assert ending.value.code == 0
    assert re.fullmatch(r"nnunet_calib \d+\.\d+\.\d+\n", capsys.readouterr().out)

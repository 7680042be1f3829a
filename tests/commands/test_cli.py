"""The command line: what it prints, what it costs to ask, and one sentence for each error."""

import argparse
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from nnunet_calib import cli
from nnunet_calib.commands import crossval
from nnunet_calib.nnunet import require_nnunet
from nnunet_calib.nnunet.lookup import trainers_folder
from tests.worlds.command_line import content, sentence


def run_python(*arguments: str, cwd: Path | None = None, **changed: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=os.environ | changed, capture_output=True, text=True, check=False
    )


def commands() -> list[str]:
    """The commands that there are."""
    actions = cli._parser()._actions
    (subparsers,) = (action for action in actions if isinstance(action, argparse._SubParsersAction))
    return [*subparsers.choices]


def test_path():
    """Exactly the folder, for $(...) in a shell profile; without the seconds that PyTorch and nnU-Net take."""
    code = (
        "import sys; from nnunet_calib.cli import main; status = main(['trainers', '--path']); "
        "print({'torch', 'numpy', 'nnunetv2', 'nnunet_calib.nnunet'} & set(sys.modules), file=sys.stderr); "
        "sys.exit(status)"
    )
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{trainers_folder()}\n"
    assert done.stderr == "{'nnunet_calib.nnunet'}\n"


@pytest.mark.filterwarnings("ignore::UserWarning")  # nnU-Net's imports
def test_trainers(capsys):
    """Every trainer with the first line of its docstring, and the line that makes nnU-Net find them."""
    assert cli.main(["trainers"]) == 0
    from nnunet_calib.trainers import TRAINERS

    lines = capsys.readouterr().out.splitlines()
    lines = [line for line in lines if not line.startswith("nnUNet_")]  # nnU-Net on its unset paths
    for trainer, line in zip(TRAINERS, lines, strict=False):
        assert line.split(maxsplit=1) == [trainer.__name__, trainer.__doc__.splitlines()[0]]
    assert lines[len(TRAINERS) :] == ["", f'export nnUNet_extTrainer="{trainers_folder()}"']


@pytest.mark.parametrize("command", [["trainers", "--path"], ["demo", "-o", "nowhere"]])
def test_older_nnunet(tmp_path, command):
    """Where nnU-Net knows no nnUNet_extTrainer: what is needed, what is there and what to type."""
    info = tmp_path / "nnunetv2-2.7.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: nnunetv2\nVersion: 2.7.0\n")
    done = run_python("-m", "nnunet_calib.cli", *command, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert done.stdout == ""
    text = sentence(done.stderr)
    assert text.endswith("needs nnunetv2 2.8 or newer, found 2.7.0: run pip install --upgrade 'nnunetv2>=2.8'")
    assert [p.name for p in tmp_path.iterdir()] == [info.name]


def test_without_nnunet(monkeypatch, capsys):
    """The same where there is none."""

    def not_there(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", not_there)
    for name in [name for name in sys.modules if name.startswith("nnunet_calib.nnunet")]:
        monkeypatch.delitem(sys.modules, name)
    assert cli.main(["trainers", "--path"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "needs nnunetv2 2.8 or newer, found none: run pip install" in sentence(captured.err)


@pytest.mark.parametrize(
    ("version", "fine"),
    [("2.8", True), ("2.8.1", True), ("2.10.0", True), ("3.0", True), ("2.7.9", False), ("1.9", False)],
)
def test_versions(monkeypatch, version, fine):
    """Versions are compared as numbers: 2.10 is newer than 2.8."""
    monkeypatch.setattr(metadata, "version", lambda name: version)
    if fine:
        require_nnunet()
    else:
        with pytest.raises(ImportError, match=f"found {version}"):
            require_nnunet()


@pytest.fixture
def no_demo(monkeypatch):
    """A demo that is not refused fails at once instead of training."""

    def started(*arguments):
        raise AssertionError("the demo was started")

    monkeypatch.setattr("nnunet_calib.demo._write_dataset", started)


def test_demo_in_a_foreign_folder(tmp_path, capsys, no_demo):
    """A folder with something else in it is refused and left as it is, even where names are those of the demo."""
    (tmp_path / "nnUNet_results").mkdir()
    (tmp_path / "nnUNet_results" / "weeks of training").write_text("precious")
    before = content(tmp_path)
    assert cli.main(["demo", "-o", str(tmp_path)]) == 2
    text = sentence(capsys.readouterr().err)
    assert f"expected a new or empty folder, or that of an earlier demo, got {tmp_path}: name one with -o" in text
    assert content(tmp_path) == before


@pytest.mark.parametrize("below", ["", "demo", "a/b/c"])
def test_demo_where_a_file_is(tmp_path, capsys, no_demo, below):
    """A file in the way, or in the place of a parent folder."""
    (tmp_path / "file").write_text("precious")
    assert cli.main(["demo", "-o", str(tmp_path / "file" / below)]) == 2
    text = sentence(capsys.readouterr().err)
    assert str(tmp_path / "file") in text
    assert below or "expected a new or empty folder" in text
    assert content(tmp_path) == {"file": b"precious"}


@pytest.mark.parametrize("command", commands())
def test_help(capsys, command):
    """Each command explains itself with an example that begins as it is typed."""
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0
    example = " ".join(capsys.readouterr().out.partition("Example: ")[2].split())
    assert f"nnunet_calib {command}" in example


@pytest.mark.parametrize("arguments", [[], ["unheard-of"], ["demo", "-o"]])
def test_misuse(capsys, arguments):
    """The message is argparse's own, and status 2."""
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2
    assert "usage: nnunet_calib" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["trainers", "--paht"], "got --paht: did you mean --path? nnunet_calib trainers --help lists them"),
        (["validate", "-d", "4", "-c", "2d", "-tr", "x", "--boundary_mm", "2"], "did you mean --boundary-mm?"),
        (["doctor", "4"], "expected the options of doctor, got 4: nnunet_calib doctor --help lists them"),
    ],
)
def test_unknown_option(capsys, arguments, told):
    """One sentence with the option that it resembles."""
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


def test_next(capsys, monkeypatch):
    """After its results on stdout a command says on stderr what to type next, with the model that was typed."""
    monkeypatch.setattr(crossval, "_run", lambda args: print("results"))
    assert cli.main(["crossval", "-d", "4", "-c", "2d", "-tr", "nnUNetTrainerNACL", "-f", "0", "1"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "results\n"
    typed = "-d 4 -c 2d -tr nnUNetTrainerNACL -p nnUNetPlans -f 0 1"
    assert captured.err == f"next: nnunet_calib report {typed}, or nnunet_calib bake {typed}\n"


@pytest.mark.parametrize("command", [name for name in commands() if name not in ("demo", "doctor", "trainers")])
def test_each_command_has_a_next(command):
    """Those that say it themselves aside, and what is said can be typed."""
    named = {"dataset": "4", "configuration": "2d", "trainer": "x", "predictions": "p", "folds": [0], "output": None}
    args = argparse.Namespace(command=command, **named)
    said = cli._following(args)
    assert said
    assert not {*said} & {*"{}"}


def test_reader_that_has_enough():
    """`nnunet_calib ... | head` ends in silence."""
    command = [sys.executable, "-m", "nnunet_calib.cli", "trainers", "--path"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0

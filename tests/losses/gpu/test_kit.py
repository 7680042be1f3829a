"""The measurements for a machine with a GPU, as far as they can be tried without one."""

from __future__ import annotations

import subprocess

import pytest

from benchmarks.gpu import __main__ as kit
from benchmarks.gpu import losses, pack
from benchmarks.gpu.setting import Setting
from tests.losses.gpu.test_kernels import ROOT, run


@pytest.mark.slow
def test_on_a_cpu():
    """Every part runs at tiny sizes; each trainer takes steps, and the backends that are here agree."""
    ran = run("-m", "benchmarks.gpu", "--cpu", extra={"nnUNet_compile": "f"})
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    assert [line[3:] for line in ran.stdout.splitlines() if line.startswith("## ")] == list(kit.PARTS)
    assert "| cpu | labels | (6, 7, 9) | mL1-ACE |" in ran.stdout
    assert "| nnUNetTrainerNACLML1ACE | auto |" in ran.stdout
    assert "wrong" not in ran.stdout
    assert ran.stdout.count("value off by") == 2


def test_without_a_gpu(monkeypatch, capsys):
    """It is said what to do."""
    monkeypatch.setattr(kit.torch.cuda, "is_available", lambda: False)
    assert kit.main([]) == 2
    assert "expected a GPU that PyTorch can use, found none: run with --cpu to try the code" in capsys.readouterr().err


def test_a_wrong_backend_is_seen(monkeypatch, capsys):
    """A difference from the formulas is an error, for the backend that is measured."""
    monkeypatch.setattr(losses, "compared", lambda *arguments: (0.5, 0.0))
    monkeypatch.setattr(losses, "_repeats", lambda *arguments: (True, ""))
    monkeypatch.setattr(Setting, "backends", ["reference", "triton"])
    assert not losses.correctness(Setting.tiny())
    assert "**wrong**" in capsys.readouterr().out


def test_pack(monkeypatch, tmp_path):
    """The kit holds the wheels of nnU-Net's rarer dependencies, the measurements, and a script that Bash can read."""
    commands = []
    run_really = subprocess.run

    def built(command, **options):
        commands.append(command)
        (tmp_path / "kit" / "wheels").mkdir()

    monkeypatch.setattr(pack.subprocess, "run", built)
    size = pack.pack(tmp_path / "kit", ("nnunetv2", "nibabel"))
    assert 0 < size < pack.LARGEST
    (command,) = commands
    assert command[-1] == str(ROOT)
    assert [part.partition("==")[0] for part in command[-3:-1]] == ["nnunetv2", "nibabel"]
    assert (tmp_path / "kit" / "benchmarks" / "gpu" / "losses.py").exists()
    assert run_really(["bash", "-n", str(tmp_path / "kit" / "run.sh")], check=False).returncode == 0


def test_pack_elsewhere(tmp_path, capsys):
    """An existing folder is left alone."""
    assert pack.main([str(tmp_path)]) == 2
    assert "expected a folder that does not exist yet" in capsys.readouterr().err

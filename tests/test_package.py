"""The wheel: what is in it, and that nnU-Net finds the trainers through it. Needs pip to reach the build backend."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
IN_THE_WHEEL = "nnunet_calib/_trainers/nnunet_calib_trainers.py"

FIND = """
import os, pathlib, sys
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
import nnunet_calib.trainers
found = recursive_find_trainer_class_by_name("nnUNetTrainerNACL")
assert found is nnunet_calib.trainers.nnUNetTrainerNACL
print("FOUND IN", sys.modules[found.__module__].__file__)
"""


def run(*command: str, **options) -> str:
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel of the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    run("-m", "pip", "wheel", "--no-deps", "-w", str(folder), str(ROOT))
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A folder with the installed wheel."""
    folder = tmp_path_factory.mktemp("installed")
    run("-m", "pip", "install", "--no-deps", "--target", str(folder), str(wheel))
    return folder


def test_content(wheel):
    """Every module and template, the trainers, the type marker and the licence; no tests, nothing else at the top."""
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    package = ROOT / "nnunet_calib"
    modules = {p.relative_to(ROOT).as_posix() for ending in ("*.py", "*.j2") for p in package.rglob(ending)}
    files = {name for name in names if not name.split("/")[0].endswith(".dist-info")}
    assert files == modules | {IN_THE_WHEEL, "nnunet_calib/py.typed"}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_trainers_are_found(installed, tmp_path):
    """From another folder, with the wheel before the checkout: the command names the wheel's folder, which works."""
    environment = os.environ | {"PYTHONPATH": str(installed)}
    environment.pop("nnUNet_extTrainer", None)
    code = "from nnunet_calib.cli import main; main(['trainers', '--path'])"
    folder = run("-c", code, cwd=tmp_path, env=environment).removesuffix("\n")
    assert folder == str((installed / IN_THE_WHEEL).parent.resolve())
    assert [p.name for p in Path(folder).glob("*.py")] == [Path(IN_THE_WHEEL).name]

    output = run("-c", FIND, cwd=tmp_path, env=environment | {"nnUNet_extTrainer": folder})
    assert f"FOUND IN {installed.resolve() / 'nnunet_calib' / 'trainers.py'}" in output.splitlines()

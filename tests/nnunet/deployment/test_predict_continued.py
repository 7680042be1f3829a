"""A prediction that is killed, at any point, and continued leaves the files of one that was not."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from nnunet_calib import cli
from tests.worlds.predicting import MARKS, files

pytestmark = MARKS

OPTIONS = ("--maps", "probabilities", "entropy")

# Kills its own process at the n-th call of a function of nnU-Net's or ours, half of that call's file being written.
KILLED = """
import os, signal, sys
from nnunet_calib import cli
from nnunet_calib.nnunet.deployment import map_images

def kill(*arguments, **options):
    global left
    left -= 1
    if left:
        return original(*arguments, **options)
    target = [a for a in arguments if str(a).endswith(".nii.gz")][-1]
    with open(target, "wb") as file:
        file.write(b"half of it")
    os.kill(os.getpid(), signal.SIGKILL)

where, left = sys.argv[1], int(sys.argv[2])
if where == "map":
    original = map_images._WRITERS["SimpleITKIO"]
    map_images._WRITERS["SimpleITKIO"] = kill
else:
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
    original = SimpleITKIO.write_seg
    SimpleITKIO.write_seg = kill
cli.main(sys.argv[3:])
"""


def environment(deployed) -> dict[str, str]:
    return os.environ | deployed.environment() | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def without_arguments(folder) -> dict[str, bytes]:
    """All files but the one in which nnU-Net notes whether it continued."""
    found = files(folder)
    del found["predict_from_raw_data_args.json"]
    return found


# Two cases, each with a segmentation, three probabilities and one entropy.
@pytest.mark.usefixtures("warm_python")
@pytest.mark.parametrize(("where", "call"), [("segmentation", 1), ("map", 7)])
def test_killed(deployed, where, call):
    """While a segmentation of the first case or a map of the second is being written."""
    expected = without_arguments(deployed.predict(*OPTIONS))
    assert len([name for name in expected if name.endswith(".nii.gz")]) == 2 * (1 + 3 + 1)
    command = [sys.executable, "-c", KILLED, where, str(call), *deployed.command(*OPTIONS, output="killed")]
    done = subprocess.run(command, env=environment(deployed), capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = without_arguments(deployed.root / "killed")
    assert left != expected
    assert b"half of it" in left.values()
    folder = deployed.predict(*OPTIONS, "--continue_prediction", output="killed")
    assert without_arguments(folder) == expected


def test_workers_killed(deployed):
    """All processes at once, after the first map."""
    options = (*OPTIONS, "-npp", "1", "-nps", "1")
    expected = without_arguments(deployed.predict(*OPTIONS))
    command = [sys.executable, "-m", "nnunet_calib.cli", *deployed.command(*options, output="killed")]
    folder = deployed.root / "killed"
    with subprocess.Popen(
        command, env=environment(deployed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        while not [*folder.glob("maps/[!.]*/*/*.nii.gz")] and process.poll() is None:
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
    folder = deployed.predict(*options, "--continue_prediction", output="killed")
    assert without_arguments(folder) == expected


def test_only_what_is_missing(deployed):
    """A finished case is not predicted again; one without a map is, though nnU-Net's segmentation is there."""
    folder = deployed.predict(*OPTIONS)
    expected = without_arguments(folder)
    times = {p: p.stat().st_mtime_ns for p in folder.rglob("*.nii.gz")}
    (folder / "maps" / "entropy" / "case.2.nii.gz").unlink()
    deployed.predict(*OPTIONS, "--continue_prediction")
    assert without_arguments(folder) == expected
    again = {p.name for p, t in times.items() if p.stat().st_mtime_ns != t}
    assert again == {"case.2.nii.gz"}
    # nothing is left to do; then, with nnU-Net's .npz wanted, everything is
    times = {p: p.stat().st_mtime_ns for p in folder.rglob("*.nii.gz")}
    deployed.predict(*OPTIONS, "--continue_prediction")
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*.nii.gz")} == times
    deployed.predict(*OPTIONS, "--continue_prediction", "--save_probabilities")
    assert sorted(p.name for p in folder.glob("*.npz")) == ["case.1.npz", "case.2.npz"]


def test_other_settings(deployed, capsys):
    """Maps of another temperature are neither continued nor mixed with; a folder of its own is fine."""
    folder = deployed.predict(*OPTIONS)
    before = files(folder)
    deployed.set_temperature(1.9)
    for more in ((), ("--continue_prediction",)):
        assert cli.main(deployed.command(*OPTIONS, *more)) == 2
        text = capsys.readouterr().err.splitlines()[-1]
        assert f"in {folder / 'maps'}, found others (temperature): name another folder with -o" in text
        assert files(folder) == before
    other = deployed.predict(*OPTIONS, output="other")
    assert json.loads((other / "maps" / "maps.json").read_text())["temperature"] == {"0": 1.9}

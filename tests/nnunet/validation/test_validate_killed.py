"""A run that is killed, in processes of its own, and taken up again."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.worlds.trained_fold import snapshot

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm_python")]


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_killed(trained, tmp_path):
    """Killed when the first case file appears, then run again: the same bytes, and the first file is kept."""
    hook = trained.results()
    trained.without_results()
    before = snapshot(trained.model)
    command = [sys.executable, "-m", "nnunet_calib.cli", *trained.command("-np", "1")]
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONWARNINGS": "ignore"}
    run = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    cases, end = trained.calibration / "cases", time.monotonic() + 300
    # files that are being written are hidden
    while not (done := list(cases.glob("case.*.npz"))) and run.poll() is None and time.monotonic() < end:
        time.sleep(0.0005)
    os.killpg(run.pid, signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    done = {path: path.stat().st_mtime_ns for path in cases.glob("case.*.npz")}
    assert 0 < len(done) < len(trained.cases)
    assert not (trained.calibration / "summary.json").exists()

    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert f"{len(done)} measured before, 0 with .npz, {5 - len(done)} to predict" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert trained.results() == hook
    assert snapshot(trained.model) == before
    # the killed run could not remove its folder, which holds nnU-Net's log
    scratch = list(tmp_path.glob("nnunet_calib_*"))
    assert len(scratch) == 1
    assert sum(path.stat().st_size for path in scratch[0].rglob("*") if path.is_file()) < 10_000

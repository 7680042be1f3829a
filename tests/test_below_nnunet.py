"""What lies below the wall to nnU-Net works where nnU-Net is not installed."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# pytest with an nnU-Net that cannot be imported; this file's own process has it
WITHOUT = """
import sys
sys.modules["nnunetv2"] = None
import pytest
status = pytest.main(sys.argv[1:])
try:
    import nnunet_calib.trainers
except ImportError:
    sys.exit(status)
sys.exit("nnU-Net was there")
"""
# a quick test of each folder, which needs its modules; the others are all run with nnU-Net in the same process
TESTS = (
    "tests/io",
    "tests/measuring/test_picture_slice.py",
    "tests/metrics/test_catalogue.py",
    "tests/posthoc/test_apply_temperature.py",
    "tests/results/test_fold_summary.py::test_values",
    "tests/figures/test_dice_against_ace.py::test_points",
    "tests/report/test_fold_page.py::test_numbers",
    "tests/losses/test_pooling.py",
)


@pytest.mark.slow
def test_without_nnunet():
    """Tests of measuring, results, figures, pages and losses pass, in a process whose trainers find no nnU-Net."""
    command = [sys.executable, "-c", WITHOUT, "-q", "-p", "no:cacheprovider", "-n", "0", *TESTS]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:]

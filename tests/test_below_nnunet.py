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
sys.exit(pytest.main(sys.argv[1:]))
"""
# a quick part of each folder; the others are all run with nnU-Net in the same process
TESTS = (
    "tests/io",
    "tests/measuring/test_picture_slice.py",
    "tests/metrics/test_catalogue.py",
    "tests/posthoc/test_apply_temperature.py",
    "tests/results/test_judged_cases.py",
    "tests/results/test_fold_summary.py",
    "tests/figures/test_dice_against_ace.py",
    "tests/report/test_fold_page.py::test_numbers",
    "tests/losses/test_pooling.py",
)


@pytest.mark.slow
def test_without_nnunet():
    """The tests of measuring, results, figures, pages and losses pass; those of nnU-Net itself cannot be collected."""
    command = [sys.executable, "-c", WITHOUT, "-q", "-p", "no:cacheprovider", *TESTS]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:]
    command[-len(TESTS) :] = ["tests/nnunet/test_lookup.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode != 0
    assert "nnunetv2" in done.stdout

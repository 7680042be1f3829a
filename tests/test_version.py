"""The version stands in one place, and what repeats it agrees."""

import re
from pathlib import Path

import nnunet_calib

ROOT = Path(__file__).resolve().parents[1]


def test_citation():
    """CITATION.cff names the version of the package."""
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.*)$", text, re.MULTILINE)[1] == nnunet_calib.__version__


def test_changelog():
    """The changelog has a section for the version."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\n## [{nnunet_calib.__version__}]" in text

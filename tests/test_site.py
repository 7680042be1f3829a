"""The documentation site: builds without a warning, needs no network, and shows formulas."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FETCHED = re.compile(
    r'<(?:script|img|iframe)[^>]*\ssrc="?(https?:[^">\s]+)|<link[^>]*rel="?stylesheet[^>]*(https?:[^">\s]+)'
)


@pytest.fixture(scope="module")
def formulas():
    """The module that MkDocs loads by its path."""
    spec = importlib.util.spec_from_file_location("formulas", ROOT / "docs" / "site" / "formulas.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_site(tmp_path):
    """Each page is in the navigation, each link leads somewhere, and nothing is fetched."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    pages = {path: path.read_text(encoding="utf-8") for path in (tmp_path / "site").rglob("*.html")}
    documents = [path for path in (ROOT / "docs").rglob("*.md") if path.name != "README.md"]
    assert len(pages) >= len(documents)
    for path, page in pages.items():
        assert not FETCHED.findall(page), path
        assert ".. math::" not in page, path
    losses = pages[tmp_path / "site" / "api" / "losses" / "index.html"]
    assert losses.count('<math xmlns="http://www.w3.org/1998/Math/MathML" display="block"') >= 9  # one for each loss
    assert 'class="arithmatex"' not in losses
    assert '<code class="option">--portable</code>' in pages[tmp_path / "site" / "deploy" / "index.html"]


def test_formulas(formulas):
    """Directives of one line and of several, indented as in a list too, and formulas in the text."""
    docstring = (
        "Return :math:`a_b`.\n\n.. math:: x = \\frac{1}{2}\n\nThen\n\n    .. math::\n        y = z,\n\n        w\n"
    )
    found = [line for line in formulas.in_markdown(docstring).splitlines() if line.strip()]
    assert found == ["Return $a_b$.", "$$", "x = \\frac{1}{2}", "$$", "Then", "    $$", "    y = z, w", "    $$"]
    page = '<p><span class="arithmatex">\\(a &lt; b\\)</span></p><div class="arithmatex">\\[x^2\\]</div>'
    shown = formulas.in_mathml(page)
    assert "arithmatex" not in shown
    assert "<msup><mi>x</mi><mn>2</mn></msup>" in shown
    assert "&#x0003C;" in shown  # <

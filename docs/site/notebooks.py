"""Notebooks of the documentation site: each becomes a page with its outputs, and can be downloaded."""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

_LINK = re.compile(r"(\]\([^)\s]*)\.ipynb(\)|#)")


def in_markdown(notebook: dict[str, Any]) -> str:
    """Return a page with the texts, the code and the outputs of a notebook in nbformat 4."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        else:
            parts.append(f"```python\n{source}\n```")
            parts += map(_output, cell["outputs"])
    return "\n\n".join(parts) + "\n"


def _output(output: dict[str, Any]) -> str:
    """Return an output: a picture, or text in a block of its own."""
    data = output.get("data", {})
    if "image/png" in data:
        encoded = "".join(data["image/png"]).strip()
        return f'<img alt="Figure drawn by the code above" src="data:image/png;base64,{encoded}">'
    text = "".join(output.get("text", data.get("text/plain", "")))
    return f"```text\n{text.rstrip()}\n```"


def on_files(files: Files, config: Any) -> Files:
    """Add a page for each notebook, as a hook of MkDocs."""
    for file in [*files]:
        if file.src_uri.endswith(".ipynb"):
            uri = PurePosixPath(file.src_uri)
            page = in_markdown(json.loads(Path(file.abs_src_path).read_text(encoding="utf-8")))
            title, _, rest = page.partition("\n")
            page = f"{title}\n\n[Download this notebook]({uri.name})\n{rest}"
            files.append(File.generated(config, str(uri.with_suffix(".md")), content=page))
    return files


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """Let links to a notebook lead to its page, as a hook of MkDocs; the link to download it stays."""
    return "\n".join(
        line if line.startswith("[Download this notebook]") else _LINK.sub(r"\1.md\2", line)
        for line in markdown.split("\n")
    )

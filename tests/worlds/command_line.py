"""What a command says and leaves, for tests."""

from __future__ import annotations

from pathlib import Path


def sentence(stderr: str) -> str:
    """The only line of an error."""
    (line,) = stderr.splitlines()
    assert line.startswith("nnunet_calib: ")
    return line


def content(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}

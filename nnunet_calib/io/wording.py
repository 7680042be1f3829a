"""Format texts, lists and numbers for messages and tables."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

_SHOWN = 10
_LONGEST = 600  # characters; nnU-Net names its three folders in an error


def one_line(text: str) -> str:
    """Collapse a text to one line, and shorten it."""
    line = " ".join(text.split())
    return line if len(line) < _LONGEST else f"{line[:_LONGEST]}..."


def reason(error: BaseException) -> str:
    """Return the message of an error on one line; if long, its beginning and its end, which may name the cause."""
    line = " ".join(str(error).split()) or type(error).__name__
    return line if len(line) < _LONGEST else f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"


def last_line(error: Exception) -> str:
    """Return the last line of an error's message."""
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__


def number(value: float | None, decimals: int = 4, sign: str = "") -> str:
    """Format a value with so many decimals and, with `sign` "+", a sign in any case; "-" for a missing value."""
    return "-" if missing(value) else f"{value:{sign}.{decimals}f}"


def missing(value: float | None) -> bool:
    """Return whether a value is missing: null in a file, NaN in memory."""
    return value is None or math.isnan(value)


def shortened(names: Sequence[str]) -> str:
    """Join names, at most ten of them."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield a line for each row, with its cells under each other."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()

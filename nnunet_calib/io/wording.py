"""Words of messages and tables: other people's text on one line, shortened lists, numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

_SHOWN = 10
_LONGEST = 600  # characters; nnU-Net names its three folders in an error


def one_line(text: str) -> str:
    """Collapse other people's text to one line, shortened."""
    line = " ".join(text.split())
    return line if len(line) < _LONGEST else f"{line[:_LONGEST]}..."


def reason(error: BaseException) -> str:
    """Return what an error says, on one line; of a long one the beginning and the end, where causes stand."""
    line = " ".join(str(error).split()) or type(error).__name__
    return line if len(line) < _LONGEST else f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"


def last_line(error: Exception) -> str:
    """Return the last line of what an error says."""
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__


def number(value: float | None, decimals: int = 4, sign: str = "") -> str:
    """A value with its decimals, with `sign` "+" also where it is positive; "-" where it is not there."""
    return "-" if missing(value) else f"{value:{sign}.{decimals}f}"


def missing(value: float | None) -> bool:
    """Whether there is no value: null in a file, NaN in memory."""
    return value is None or math.isnan(value)


def shortened(names: Sequence[str]) -> str:
    """Join names, shortened after ten."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")

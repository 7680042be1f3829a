"""Names of cases and classes: check them on input, and escape them for output."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from nnunet_calib.io.atomic_files import is_plain_name

_BREAKING = {"Cc", "Cs", "Zl", "Zp"}  # control characters, surrogates, line and paragraph separators


def shown(name: str) -> str:
    r"""Return a name on one line that UTF-8 can encode, with line breaks and lone surrogates as \n and \ud800.

    Applying it twice changes nothing more.
    """
    if name.isprintable():
        return name
    return "".join(
        char.encode("unicode_escape").decode("ascii") if unicodedata.category(char) in _BREAKING else char
        for char in name
    )


def in_figure(text: str) -> str:
    """Escape the dollar signs of a text, between which matplotlib would otherwise set formulas."""
    return text.replace("$", r"\$")


def check_cases(cases: Iterable[str]) -> None:
    """Raise ValueError for a case whose name later commands, which use it as a file name, would refuse."""
    wrong = next((case for case in sorted(cases) if not is_plain_name(case)), None)
    if wrong is not None:
        raise ValueError(
            f"expected names of cases that are UTF-8 on every system, without folders and control characters, found "
            f"{wrong!a}: rename its files"
        )

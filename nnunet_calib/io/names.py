"""Names of cases and classes: checked when they are taken in, and shown so that any text can hold them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from nnunet_calib.io.atomic_files import is_plain_name

_BREAKING = {"Cc", "Cs", "Zl", "Zp"}  # control characters, halves of characters, separators of lines


def shown(name: str) -> str:
    r"""Return a name on one line that can be written as UTF-8: line breaks, half characters and the like as \n, \ud800.

    A name that is shown once is not changed by showing it again.
    """
    if name.isprintable():
        return name
    return "".join(
        char.encode("unicode_escape").decode("ascii") if unicodedata.category(char) in _BREAKING else char
        for char in name
    )


def in_figure(text: str) -> str:
    """Return a text so that matplotlib draws its dollar signs, rather than formulas between them."""
    return text.replace("$", r"\$")


def check_cases(cases: Iterable[str]) -> None:
    """Raise ValueError for a case whose name a later command would refuse to read, since it becomes a path."""
    wrong = next((case for case in sorted(cases) if not is_plain_name(case)), None)
    if wrong is not None:
        raise ValueError(
            f"expected names of cases that are UTF-8 on every system, without folders and control characters, found "
            f"{wrong!a}: rename its files"
        )

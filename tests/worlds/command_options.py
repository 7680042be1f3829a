"""Tables of options in docs/commands.md, from the parsers: `python -m tests.worlds.command_options` writes them."""

import argparse
import os
import re
from pathlib import Path

from nnunet_calib import cli

PAGE = Path(__file__).resolve().parents[2] / "docs" / "commands.md"
TABLE = re.compile(r"(<!-- options: (\w+) -->\n\n).*?(\n\n<!-- end -->)", re.DOTALL)


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Each command's."""
    (action,) = (a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(action.choices)


def _value(action: argparse.Action) -> str:
    """Return the value of an option as --help shows it; "|" would end a table's cell."""
    if action.nargs == 0:
        return ""
    choices = action.choices and action.metavar is None
    value = f"{{{','.join(map(str, action.choices))}}}" if choices else str(action.metavar)
    return f" {value} ..." if action.nargs == "+" else f" {value}"


def table(parser: argparse.ArgumentParser) -> str:
    """Return a row for each option, required ones in bold, or a sentence if there are none."""
    rows = ["| option | meaning |", "|---|---|"]
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        names = ", ".join(action.option_strings)
        option = f"`{names}{_value(action)}`"
        meaning = (action.help or "") % {"default": action.default}
        rows.append(f"| {f'**{option}**' if action.required else option} | {meaning} |")
    return "\n".join(rows) if len(rows) > 2 else "This command has no options."


def with_tables(page: str) -> str:
    """The page with the tables that the parsers give now; nnU-Net's variables are taken as unset."""
    kept = {name: os.environ.pop(name) for name in ("nnUNet_npp", "nnUNet_nps") if name in os.environ}
    try:
        known = parsers()
    finally:
        os.environ.update(kept)
    return TABLE.sub(lambda found: found[1] + table(known[found[2]]) + found[3], page)


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")

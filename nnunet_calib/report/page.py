"""Shared parts of all HTML pages: templates, embedded figures, table cells, and writing."""

from __future__ import annotations

import base64
import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Any

from nnunet_calib.figures.style import figure_bytes
from nnunet_calib.io.atomic_files import replaced_when_complete
from nnunet_calib.io.wording import number


def write_page(template: str, output: Path, content: Mapping[str, Any]) -> None:
    """Fill in a template and write the page atomically."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("nnunet_calib.report"),
        autoescape=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    page = environment.get_template(template).render(content)
    with replaced_when_complete(output) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace", newline="\n")


def inline_figure(draw: Callable[[], Any], title: str, caption: str) -> dict[str, Any]:
    """Return a figure to embed in a page, as SVG."""
    content = figure_bytes(draw, "svg")["svg"]
    size = re.search(rb'width="([\d.]+)pt" height="([\d.]+)pt"', content)
    assert size is not None
    width, height = (round(float(points) * 4 / 3) for points in size.groups())  # a pixel is 3/4 of a point
    return {
        "title": title,
        "caption": caption,
        "uri": data_uri(content, "image/svg+xml"),
        "width": width,
        "height": height,
    }


def data_uri(content: bytes, kind: str) -> str:
    """Return content as a data URI, to embed in a page."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def csv_file(name: str, content: str) -> dict[str, str]:
    """Return a CSV file to download from a page, which needs neither network nor script for it."""
    # Excel takes a file for Latin 1 unless it begins with the byte order mark
    return {"name": name, "uri": data_uri(content.encode("utf-8-sig", "backslashreplace"), "text/csv")}


def table_csv(name: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> dict[str, str]:
    """Return the CSV file of a table; missing values are empty."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return csv_file(name, text.getvalue())


def sortable_table(
    name: str, columns: Sequence[dict[str, Any]], rows: Sequence[Sequence[dict[str, Any]]], shown: int | None = None
) -> dict[str, Any]:
    """Return a table whose columns sort by a click, with all rows and digits as a CSV file.

    Args:
        name: its anchor, and the file's name.
        columns: from `column`.
        rows: cells from `cell` and `text_cell`.
        shown: number of rows on the page; None for all.
    """
    values = [[cell["sort"] if cell["number"] else cell["text"] for cell in row] for row in rows]
    header = [column["name"] for column in columns]
    return {"name": name, "columns": columns, "rows": rows[:shown], "csv": table_csv(f"{name}.csv", header, values)}


def column(name: str, title: str, *, is_number: bool = True) -> dict[str, Any]:
    """Return a column of the table of cases; its title is the tooltip."""
    return {"name": name, "number": is_number, "title": title}


def cell(value: float, decimals: int = 4) -> dict[str, Any]:
    """Return a cell of the table of cases with a number."""
    return {
        "number": True,
        "link": "",
        "text": number(value, decimals),
        "sort": "" if isnan(value) else repr(float(value)),
    }


def text_cell(text: str, link: str = "") -> dict[str, Any]:
    """Return a cell of the table of cases with a text, and the anchor that it links to."""
    return {"number": False, "text": text, "link": link}


def definitions(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield each name with its meaning, nested names with their prefix."""
    for name, meaning in tree.items():
        if isinstance(meaning, Mapping):
            yield from definitions(meaning, f"{name}: ")
        else:
            yield f"{prefix}{name}", str(meaning)

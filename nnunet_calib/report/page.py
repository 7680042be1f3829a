"""What all pages of HTML share: templates, figures that a page carries in itself, and writing."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator, Mapping
from math import isnan
from pathlib import Path
from typing import Any

from nnunet_calib.figures.style import figure_bytes
from nnunet_calib.io.atomic_files import replaced_when_complete
from nnunet_calib.io.wording import number


def write_page(template: str, output: Path, content: Mapping[str, Any]) -> None:
    """Fill in a template; the file appears when it is complete."""
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
    """A figure for a page, as vectors."""
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
    """Content that a page carries in itself."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def column(name: str, title: str, *, is_number: bool = True) -> dict[str, Any]:
    """A column of the table of cases; the title is shown where a mouse rests on it."""
    return {"name": name, "number": is_number, "title": title}


def cell(value: float, decimals: int = 4) -> dict[str, Any]:
    """A number in the table of cases."""
    return {
        "number": True,
        "link": "",
        "text": number(value, decimals),
        "sort": "" if isnan(value) else repr(float(value)),
    }


def text_cell(text: str, link: str = "") -> dict[str, Any]:
    """A text in the table of cases, with the place of the page that it links to."""
    return {"number": False, "text": text, "link": link}


def definitions(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Each name with its meaning."""
    for name, meaning in tree.items():
        if isinstance(meaning, Mapping):
            yield from definitions(meaning, f"{name}: ")
        else:
            yield f"{prefix}{name}", str(meaning)

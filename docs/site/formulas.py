"""Formulas of the documentation site: from the docstrings' notation to MathML, which browsers show without a script."""

from __future__ import annotations

import html
import re
from textwrap import dedent
from typing import Any

import griffe
from latex2mathml.converter import convert

_BLOCK = re.compile(r"^( *)\.\. math::(.*(?:\n(?:\1 +.*| *(?=\n\1 )))*)", re.MULTILINE)
_INLINE = re.compile(r":math:`([^`]*)`")
_DISPLAYED = re.compile(r'<div class="arithmatex">\\\[(.*?)\\\]</div>', re.DOTALL)
_IN_TEXT = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)


def in_markdown(docstring: str) -> str:
    """Return a docstring with its formulas between dollar signs."""
    displayed = _BLOCK.sub(lambda m: f"{m[1]}\n{m[1]}$$\n{m[1]}{' '.join(dedent(m[2]).split())}\n{m[1]}$$\n", docstring)
    return _INLINE.sub(r"$\1$", displayed)


def in_mathml(page: str) -> str:
    """Return a rendered page with MathML in the place of its formulas."""
    page = _DISPLAYED.sub(lambda m: convert(html.unescape(m[1]), display="block"), page)
    return _IN_TEXT.sub(lambda m: convert(html.unescape(m[1])), page)


class Formulas(griffe.Extension):
    """Extension of mkdocstrings that rewrites the formulas of each docstring."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = in_markdown(obj.docstring.value)


def on_page_content(html: str, **kwargs: Any) -> str:
    """Rewrite a page, as a hook of MkDocs."""
    return in_mathml(html)

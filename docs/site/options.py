"""Options in the text of the documentation site: `--npz` is not broken after its hyphens."""

from __future__ import annotations

import re
from typing import Any

_OPTION = re.compile(r"<code>(-[^<\n]{1,28})</code>")


def on_page_content(html: str, **kwargs: Any) -> str:
    """Give a class to each option in the text, as a hook of MkDocs."""
    return _OPTION.sub(r'<code class="option">\1</code>', html)

"""Hook of mkdocs: lists are read as they are in the repository, where GitHub's Markdown is meant.

Python's Markdown wants a blank line before a list and four spaces before an item of an inner one.
"""

from __future__ import annotations

import re
from typing import Any

_ITEM = re.compile(r"( *)(?:[-*]|\d+\.) ")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return the page with a blank line before each list, and four spaces before each item of an inner list."""
    lines: list[str] = []
    fenced = listed = False
    for line in markdown.split("\n"):
        fenced ^= line.lstrip().startswith("```")
        item = None if fenced else _ITEM.match(line)
        if item and lines and lines[-1].strip() and not listed:
            lines.append("")
        if item and 0 < len(item[1]) < 4:
            line = f"    {line.lstrip()}"
        listed = bool(item) or (listed and bool(line.strip()))
        lines.append(line)
    return "\n".join(lines)

"""HTML pages without scripts and without anything to load: elements, number formats, the file."""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from xml.etree.ElementTree import Element, tostring

from .files import write_atomic
from .html_style import STYLE

Child = Element | str | None


def node(tag: str, *children: Child, cls: str = "", **attributes: str) -> Element:
    """An element with its children in order; strings become text, None is left out.

    ``cls`` is its class; ``aria_label="x"`` becomes ``aria-label``, ``viewBox`` stays.
    """
    element = Element(tag, {name.replace("_", "-"): value for name, value in attributes.items()})
    if cls:
        element.set("class", cls)
    last: Element | None = None
    for child in children:
        if child is None:
            continue
        if isinstance(child, Element):
            element.append(child)
            last = child
        elif last is None:
            element.text = (element.text or "") + child
        else:
            last.tail = (last.tail or "") + child
    return element


def percent(share: float | None, missing: str = "–") -> str:
    """``0.8333`` as ``83.3 %`` (with a space that does not break)."""
    return missing if share is None or not math.isfinite(share) else f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def count(number: int, one: str, many: str = "") -> str:
    """``4 silos``, ``1 silo``, ``10,619 clips``."""
    return f"{number:,}\N{NO-BREAK SPACE}{one if number == 1 else many or one + 's'}"


def duration(seconds: float) -> str:
    """``48 s`` or ``2 min 23 s``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def timestamp(moment: str) -> str:
    """RFC 3339 in a readable form, ``2026-11-23 13:40 UTC``; unchanged if it is not UTC."""
    utc = moment.endswith(("Z", "+00:00")) and len(moment) >= len("2026-11-23T13:40")
    return f"{moment[:10]} {moment[11:16]} UTC" if utc else moment


def data_size(size: int) -> str:
    """Bytes with a decimal unit: ``12.80 MB``."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.2f}\N{NO-BREAK SPACE}{unit}"
    return f"{size}\N{NO-BREAK SPACE}B"


def meter_bar(name: Child, value: float, kind: str = "accent", note: str = "") -> Element:
    """A name, a share (0 … 1) in percent, and a bar of that length; ``kind`` is the bar's class.

    ``note`` is a line of explanation below the name. A share below a tenth of a percent is shown as such.
    """
    share = min(max(value, 0.0), 1.0)
    shown = "<\N{NO-BREAK SPACE}0.1\N{NO-BREAK SPACE}%" if 0 < value < 0.0005 else percent(value)
    return node(
        "div",
        node("span", name, node("small", note) if note else None, cls="name"),
        node("span", shown, cls="value"),
        node("span", node("span", cls=kind, style=f"width:{100 * share:.1f}%"), cls="track"),
        cls="bar",
    )


def table(rows: Sequence[Sequence[Child]], cls: str = "") -> Element:
    """A table; the first row is its head, and the first cell of each row is a heading."""
    head, *body = rows
    return node(
        "table",
        node("thead", node("tr", *(node("th", cell, scope="col") for cell in head))),
        node(
            "tbody",
            *(
                node("tr", node("th", first, scope="row"), *(node("td", cell) for cell in rest))
                for first, *rest in body
            ),
        ),
        cls=cls,
    )


def section(title: str, *children: Child, cls: str = "") -> Element:
    """A part of the page with its heading."""
    return node("section", node("h2", title), *children, cls=cls)


def image(data: bytes, alt: str) -> Element:
    """A picture that the page holds itself; PNG or JPEG."""
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return node("img", src=f"data:image/{kind};base64,{b64encode(data).decode()}", alt=alt)


def definitions(facts: Sequence[tuple[str, Child]]) -> Element:
    """A list of names and values."""
    return node("dl", *(node("div", node("dt", name), node("dd", value)) for name, value in facts))


def scroll(content: Element, label: str, cls: str = "scroll") -> Element:
    """``content`` in a box that scrolls sideways in narrow windows, also by keyboard."""
    return node("div", content, cls=cls, role="region", aria_label=label, tabindex="0")


def write_document(path: Path, title: str, parts: Sequence[Element], style: str = "") -> None:
    """Write a page with the shared style (and ``style``) around ``parts``, whole or not at all. Raises StorageError."""
    head = node(
        "head",
        node("meta", charset="utf-8"),
        node("meta", name="viewport", content="width=device-width, initial-scale=1"),
        node("meta", name="color-scheme", content="light dark"),
        node("title", title),
        node("style", STYLE + style),
    )
    page = node("html", head, node("body", node("main", *parts)), lang="en")
    html = "<!DOCTYPE html>\n" + tostring(page, encoding="unicode", method="html") + "\n"
    # A file name that is not UTF-8 contains lone surrogates, which cannot be encoded.
    write_atomic(Path(path), html.encode("utf-8", errors="replace"))

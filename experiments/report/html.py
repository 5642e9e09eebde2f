"""Elements of a report page, and the formatting of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.etree.ElementTree import Element

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


def meter_bar(name: str, value: float, kind: str = "accent") -> Element:
    """A name, a share (0 … 1) in percent, and a bar of that length; ``kind`` is the bar's class."""
    share = min(max(value, 0.0), 1.0)
    return node(
        "div",
        node("span", name, cls="name"),
        node("span", percent(value), cls="value"),
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


def definitions(facts: Sequence[tuple[str, str]]) -> Element:
    """A list of names and values."""
    return node("dl", *(node("div", node("dt", name), node("dd", value)) for name, value in facts))


def scroll(content: Element, label: str, cls: str = "scroll") -> Element:
    """``content`` in a box that scrolls sideways in narrow windows, also by keyboard."""
    return node("div", content, cls=cls, role="region", aria_label=label, tabindex="0")

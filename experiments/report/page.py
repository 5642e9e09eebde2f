"""The demo's report: one HTML page without scripts and without anything to load.

The page is a tree of elements, written by the standard library's serialiser, so that all text (labels, captions,
file names) is escaped; only the style sheet is written unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element

from ...base.html import count, duration, node, timestamp, write_document
from .clips import examples
from .computation import computation, reproduction
from .record import DemoReport
from .results import headline, rounds, silos


def write_report(path: Path, report: DemoReport) -> None:
    """Write ``report`` as one HTML file to ``path``, whole or not at all. Raises StorageError."""
    parts = [part for part in _sections(report) if part is not None]
    write_document(path, "FLAMeST demo report", [_header(report), *parts])


def _sections(report: DemoReport) -> Iterator[Element | None]:
    yield headline(report)
    yield silos(report)
    yield rounds(report)
    yield examples(report)
    yield computation(report)
    yield reproduction(report)


def _header(report: DemoReport) -> Element:
    facts = [
        count(len(report.silos), "silo"),
        f"{count(sum(silo.clips for silo in report.silos), 'clip')} in the silos",
        f"{count(report.test_clips, 'clip')} to test on",
        count(len(report.labels), "class", "classes"),
        count(len(report.rounds), "round"),
    ]
    if report.seconds is not None:
        facts.append(f"{duration(report.seconds)} in all")
    stamp = node("time", timestamp(report.created), datetime=report.created)
    return node(
        "header",
        node("p", "FLAMeST demo report", cls="eyebrow"),
        node("h1", f"{count(len(report.silos), 'silo')}, one action recogniser, no shared video"),
        node("p", report.inputs.summary, cls="lede"),
        node("ul", *(node("li", fact) for fact in facts), cls="facts"),
        node("p", "Finished ", stamp, cls="muted") if report.created else None,
    )

"""XML of other tools, parsed as a stream within limits: no document type, no entities, bounded depth and number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from xml.parsers import expat

from ...base.errors import DataError

MAX_XML = 512 << 20  # bytes, unpacked
MAX_DEPTH = 24
MAX_EVENTS = 40_000_000  # elements that begin or end
MAX_ATTRIBUTES = 64  # of an element
MAX_TEXT = 65_536  # characters of an element's text that are kept
CHUNK = 1 << 20
MAX_STILL = 32  # chunks in which no element begins or ends

Start = Callable[[list[str], dict[str, str]], None]  # the open elements' names, from the root; this one's attributes
End = Callable[[list[str], str], None]  # the open elements' names; this one's text


class _Limit(Exception):
    """The document is not as one of a tool can be."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


def parse_xml(read: Callable[[int], bytes], name: str, start: Start, end: End) -> None:
    """Parse a document piece by piece; ``read(n)`` gives its next n bytes, ``name`` is the file's, for messages.

    Raises DataError ``annotations_xml`` for a document that is not well-formed or names a document type, ``too_large``.
    """
    events = _Events(start, end)
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = _refuse_doctype
    parser.EntityDeclHandler = _refuse_doctype
    parser.StartElementHandler = events.start
    parser.EndElementHandler = events.end
    parser.CharacterDataHandler = events.text
    size = moved = still_since = 0
    try:
        while chunk := read(CHUNK):
            size += len(chunk)
            if size > MAX_XML:
                raise _Limit("too_large", f"is larger than {MAX_XML} bytes")
            parser.Parse(chunk, False)
            if events.count != moved:
                moved, still_since = events.count, size
            elif size - still_since > MAX_STILL * CHUNK:
                raise _Limit("too_large", f"has an element of more than {MAX_STILL * CHUNK} bytes")
        parser.Parse(b"", True)
    except expat.ExpatError as error:
        problem = expat.errors.messages.get(error.code, "damaged")
        raise _no_xml(name, f"is not well-formed XML: line {error.lineno}: {problem}") from error
    except _Limit as limit:
        raise _no_xml(name, limit.reason, limit.code) from limit
    except (LookupError, ValueError) as error:  # an encoding that Python does not have, or not as expat needs it
        raise _no_xml(name, "has an encoding that is not known, expected UTF-8") from error


class _Events:
    def __init__(self, start: Start, end: End) -> None:
        self._start, self._end = start, end
        self._open: list[str] = []
        self._text: list[list[str]] = []  # of each open element, as is the length
        self._length: list[int] = []
        self.count = 0

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self.count += 1
        if len(self._open) >= MAX_DEPTH:
            raise _Limit("annotations_xml", f"is nested deeper than {MAX_DEPTH} elements")
        if self.count > MAX_EVENTS:
            raise _Limit("too_large", f"has more than {MAX_EVENTS // 2:,} elements")
        if len(attributes) > MAX_ATTRIBUTES:
            raise _Limit("annotations_xml", f"has an element with more than {MAX_ATTRIBUTES} attributes")
        self._open.append(name)
        self._text.append([])
        self._length.append(0)
        self._start(self._open, attributes)

    def text(self, text: str) -> None:
        self._length[-1] += len(text)
        if self._length[-1] <= MAX_TEXT:
            self._text[-1].append(text)

    def end(self, _: str) -> None:
        self.count += 1
        text = "".join(self._text.pop()).strip()
        self._length.pop()
        self._end(self._open, text)
        self._open.pop()


def _refuse_doctype(*_: Any) -> None:
    raise _Limit("annotations_xml", "names a document type or entities, which no tool's export does")


def _no_xml(name: str, problem: str, code: str = "annotations_xml") -> DataError:
    return DataError(f"{name} {problem}", fix="export it again from the tool: CVAT for video 1.1", code=code)

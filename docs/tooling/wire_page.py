"""The calls and messages of the wire protocol, from fedproto/flamest_v1.proto."""

from __future__ import annotations

import re
from pathlib import Path

from .words import cell, sentence, table

PROTO = Path(__file__).resolve().parent.parent.parent / "fedproto" / "flamest_v1.proto"
_BLOCK = re.compile(r"^(message|enum) (\w+) \{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
_CALL = re.compile(r"((?:^ +//[^\n]*\n)*)^ +rpc (\w+)\((.*?)\) returns \((.*?)\);", re.MULTILINE)
_FIELD = re.compile(
    r"^ +(?:(?P<kind>(?:repeated )?\w+) )?(?P<name>\w+) = (?P<number>\d+);(?: *// *(?P<why>.*))?$", re.MULTILINE
)


def messages() -> str:
    """Return a table of the calls, and one for each message and enumeration."""
    text = PROTO.read_text()
    calls = [
        (f"`{name}`", f"`{sent}`", f"`{answer}`", cell(re.sub(r"\s*//\s*", " ", comment)))
        for comment, name, sent, answer in _CALL.findall(text)
    ]
    parts = [table(("call", "silo sends", "coordinator answers", "meaning"), calls)]
    for sort, name, body in _BLOCK.findall(text):
        rows = [
            (f"`{field['name']}`", *([f"`{field['kind']}`"] if sort == "message" else []), field["number"], _why(field))
            for field in _FIELD.finditer(body)
        ]
        head = ("field", "type", "number", "meaning") if sort == "message" else ("value", "number", "meaning")
        parts += [f"### {name}", table(head, rows)]
    return "\n\n".join(parts)


def _why(field: re.Match[str]) -> str:
    return cell(sentence(field["why"] or ""))

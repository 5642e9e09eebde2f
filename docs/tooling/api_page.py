"""The Python API: the names of ``flamest.__all__`` with their signatures and docstrings.

The sections of a docstring (``Args``, ``Attributes``, ``Returns``, ``Raises``) become tables and sentences.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from typing import Any

import flamest

from .words import cell, docstring, field_comments, paragraphs, sentence, table

_SECTION = re.compile(r"^(Args|Attributes|Returns|Raises):\n((?:[ ]+.*(?:\n|$)|\n(?=[ ]))+)", re.MULTILINE)
_ENTRY = re.compile(r"^ {4}(\w[\w.]*): ((?:.|\n(?: {8}|$))*)", re.MULTILINE)
_WIDTH = 100  # of a signature on one line


def python_api() -> str:
    """Return a section for each name, in the order of ``flamest.__all__``."""
    links = ", ".join(f"[`{name}`](#{name.lower()})" for name in flamest.__all__)
    return "\n\n".join([f"Names: {links}.", *(_section(name, getattr(flamest, name)) for name in flamest.__all__)])


def undocumented_names() -> list[str]:
    """Return the public names, and public members of classes, that have no docstring."""
    return [
        name
        for public in flamest.__all__
        for name, thing in ((public, getattr(flamest, public)), *_members(public, getattr(flamest, public)))
        if callable(thing) or isinstance(thing, property)
        if not docstring(thing)
    ]


def _section(name: str, thing: Any) -> str:
    text, sections = _parsed(docstring(thing))
    parts = [f"## {name}"]
    if not isinstance(thing, type) or "Attributes" not in sections:  # others are made by functions
        parts.append(_call(f"fl.{name}", thing))
    parts += [text, _fields(thing, _inherited(thing) | sections.pop("Attributes", {})), *_rest(sections)]
    for member, inner in _members(name, thing):
        text, sections = _parsed(docstring(inner))
        parts.append(f"### {member}")
        if not isinstance(inner, property):
            parts.append(_call(_spoken(member, thing), inner))
        parts += [text, *_rest(sections)]
    return "\n\n".join(part for part in parts if part)


def _parsed(text: str) -> tuple[str, dict[str, dict[str, str]]]:
    """Split a docstring into its text and its sections: entries by name, or one entry without a name."""
    sections: dict[str, dict[str, str]] = {}
    for title, body in _SECTION.findall(f"{text}\n"):
        entries = dict(_ENTRY.findall(body)) if title != "Returns" else {"": inspect.cleandoc(f"\n{body}")}
        sections[title] = {name: " ".join(words.split()) for name, words in entries.items()}
    return paragraphs(_SECTION.sub("", f"{text}\n").strip()), sections


def _rest(sections: dict[str, dict[str, str]]) -> list[str]:
    """Return the tables and sentences of a docstring's sections."""
    parts = []
    if arguments := sections.get("Args"):
        parts.append(table(("argument", "meaning"), [(f"`{name}`", cell(words)) for name, words in arguments.items()]))
    if returned := sections.get("Returns"):
        parts.append(f"**Returns** {cell(returned[''])}")
    if raised := sections.get("Raises"):
        parts.append("**Raises** " + " ".join(f"`{name}`: {cell(sentence(words))}" for name, words in raised.items()))
    return parts


def _call(shown: str, thing: Any) -> str:
    """Return the call as one writes it, in a block of code; on a line for each parameter when it is long."""
    signature = inspect.signature(thing)
    given = [one for one in signature.parameters.values() if one.name not in {"self", "cls"}]
    words, star = [], False
    for one in given:
        if one.kind is inspect.Parameter.KEYWORD_ONLY and not star:
            words.append("*")
            star = True
        star = star or one.kind is inspect.Parameter.VAR_POSITIONAL
        words.append(_parameter(one))
    answer = "" if isinstance(thing, type) else f" -> {_annotation(signature.return_annotation)}"
    line = f"{shown}({', '.join(words)}){answer}"
    if len(line) > _WIDTH:
        line = "\n".join([f"{shown}(", *(f"    {word}," for word in words), f"){answer}"])
    return f"```python\n{line}\n```"


def _parameter(one: inspect.Parameter) -> str:
    stars = "*" if one.kind is inspect.Parameter.VAR_POSITIONAL else ""
    stars = "**" if one.kind is inspect.Parameter.VAR_KEYWORD else stars
    annotation = "" if one.annotation is inspect.Parameter.empty else f": {_annotation(one.annotation)}"
    default = "" if one.default is inspect.Parameter.empty else f" = {one.default!r}"
    return f"{stars}{one.name}{annotation}{'' if '<factory>' in default else default}"


def _annotation(annotation: Any) -> str:
    written = getattr(annotation, "__forward_arg__", annotation)
    text = written if isinstance(written, str) else inspect.formatannotation(written)
    return text.replace("npt.NDArray", "NDArray").replace("npt.ArrayLike", "ArrayLike")


def _inherited(thing: Any) -> dict[str, str]:
    """Return the meanings of a TypedDict's fields that another public one documents."""
    if not typing.is_typeddict(thing):
        return {}
    others = [getattr(flamest, name) for name in flamest.__all__]
    meanings: dict[str, str] = {}
    for other in others:
        if typing.is_typeddict(other) and set(other.__annotations__) < set(thing.__annotations__):
            meanings |= _parsed(docstring(other))[1].get("Attributes", {})
    return meanings


def _fields(thing: Any, documented: dict[str, str]) -> str:
    """Return a table of a class's public fields: their types, and their meaning from docstring or comment."""
    types: dict[str, Any] = {}
    comments: dict[str, str] = {}
    if typing.is_typeddict(thing):
        types = dict(thing.__annotations__)
    elif isinstance(thing, type) and dataclasses.is_dataclass(thing):
        types = {one.name: one.type for one in dataclasses.fields(thing) if not one.name.startswith("_")}
        comments = field_comments(thing)
    rows = [
        (f"`{name}`", f"`{_annotation(types[name])}`".replace("|", "\\|") if name in types else "",
         cell(sentence(documented.get(name) or comments.get(name, ""))))
        for name in dict.fromkeys((*documented, *types))
    ]  # fmt: skip
    return table(("field", "type", "meaning"), rows) if rows else ""


def _spoken(member: str, thing: type) -> str:
    """Return ``run.save`` for ``Run.save``, and ``fl.Features.from_arrays`` for a class method."""
    name = member.partition(".")[2]
    made_by_class = isinstance(thing.__dict__[name], classmethod | staticmethod)
    return f"fl.{member}" if made_by_class else f"{thing.__name__.lower()}.{name}"


def _members(public: str, thing: Any) -> list[tuple[str, Any]]:
    """Return the public methods and properties that a class defines itself, with their dotted names."""
    if not isinstance(thing, type):
        return []
    return [
        (f"{public}.{name}", inner.__func__ if isinstance(inner, classmethod | staticmethod) else inner)
        for name, inner in vars(thing).items()
        if not name.startswith("_") and isinstance(inner, property | classmethod | staticmethod | type(_spoken))
    ]

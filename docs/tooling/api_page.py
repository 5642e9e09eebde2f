"""The Python API: the names of ``flamest.__all__`` with their signatures and docstrings."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from typing import Any

import flamest

from .words import attributes, cell, docstring, field_comments, paragraphs, table


def python_api() -> str:
    """Return a section for each name, in the order of ``flamest.__all__``."""
    names = [name for name in getattr(flamest, "__all__", ()) if not name.startswith("__")]
    links = ", ".join(f"[`fl.{name}`](#{name.lower()})" for name in names)
    return "\n\n".join([f"{len(names)} names: {links}.", *(_section(name, getattr(flamest, name)) for name in names)])


def undocumented_names() -> list[str]:
    """Return the public names, and public members of classes, that have no docstring."""
    missing = []
    for name in getattr(flamest, "__all__", ()):
        thing = getattr(flamest, name)
        if callable(thing):
            missing += [] if docstring(thing) else [name]
            missing += [f"{name}.{member}" for member, inner in _members(thing) if not docstring(inner)]
    return missing


def _section(name: str, thing: Any) -> str:
    heading = f"## {name} {{ #{name.lower()} }}"
    if not callable(thing):  # a module, or a constant
        return "\n\n".join([heading, paragraphs(docstring(thing)) if inspect.ismodule(thing) else f"`{thing!r}`"])
    call = [] if typing.is_typeddict(thing) else [f"```python\n{_signature(f'fl.{name}', thing)}\n```"]
    parts = [heading, *call]
    if rows := _fields(thing):
        text = re.sub(r"^Attributes:\n(?: .*\n?)+", "", docstring(thing), flags=re.MULTILINE)
        parts += [paragraphs(text), table(("field", "type", "meaning"), rows)]
    else:
        parts.append(paragraphs(docstring(thing)))
    for member, inner in _members(thing):
        parts.append(f"### {name}.{member}")
        if not isinstance(inner, property):
            parts.append(f"```python\n{_signature(f'{name.lower()}.{member}', inner)}\n```")
        parts.append(paragraphs(docstring(inner)))
    return "\n\n".join(part for part in parts if part)


def _signature(shown: str, thing: Any) -> str:
    """Return the call as one writes it; on a line for each parameter when it is long."""
    signature = inspect.signature(thing)
    given = [one for one in signature.parameters.values() if one.name not in {"self", "cls"}]
    answer = "None" if signature.return_annotation is inspect.Signature.empty else _written(signature.return_annotation)
    lines, kind = [], None
    for one in given:
        if one.kind is inspect.Parameter.KEYWORD_ONLY and kind not in {one.kind, inspect.Parameter.VAR_POSITIONAL}:
            lines.append("*")
        lines.append(_parameter(one))
        kind = one.kind
    short = f"{shown}({', '.join(lines)}) -> {answer}"
    return (
        short if len(short) <= 100 else "\n".join([f"{shown}(", *(f"    {line}," for line in lines), f") -> {answer}"])
    )


def _parameter(one: inspect.Parameter) -> str:
    """Return a parameter as it is written in the code."""
    stars = "*" if one.kind is inspect.Parameter.VAR_POSITIONAL else ""
    stars = "**" if one.kind is inspect.Parameter.VAR_KEYWORD else stars
    annotation = "" if one.annotation is inspect.Parameter.empty else f": {_written(one.annotation)}"
    default = "" if one.default is inspect.Parameter.empty else f" = {one.default!r}"
    return f"{stars}{one.name}{annotation}{default}"


def _written(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return text.replace("flamest.", "")


def _fields(thing: Any) -> list[tuple[str, ...]]:
    """Return the public fields of a dataclass, or the keys of a record of options, with their types and meanings."""
    if typing.is_typeddict(thing):
        kinds = {name: one.__forward_arg__ for name, one in thing.__annotations__.items()}
        meanings = attributes(docstring(thing)).items()
        return [(f"`{name}`", f"`{_plain(kinds[name])}`", cell(meaning)) for name, meaning in meanings]
    if not (isinstance(thing, type) and dataclasses.is_dataclass(thing)):
        return []
    comments = field_comments(thing) | attributes(docstring(thing))
    return [
        (f"`{one.name}`", f"`{_plain(one.type)}`", cell(comments.get(one.name, "")))
        for one in dataclasses.fields(thing)
        if not one.name.startswith("_")
    ]


def _plain(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    return text.replace("|", "\\|")


def _members(thing: Any) -> list[tuple[str, Any]]:
    """Return the public methods and properties that a class defines itself."""
    if not isinstance(thing, type):
        return []
    return [
        (name, inner.__func__ if isinstance(inner, classmethod | staticmethod) else inner)
        for name, inner in vars(thing).items()
        if not name.startswith("_") and isinstance(inner, property | classmethod | staticmethod | type(_plain))
    ]

"""Python's annotations, defaults, comments and docstrings in the words of a reference page."""

from __future__ import annotations

import ast
import enum
import inspect
import io
import re
import textwrap
import tokenize
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

_KINDS = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path"}


def kind_in_words(annotation: Any) -> str:
    """Return "whole number", "one of `a`, `b`", "list of text", … for an annotation."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return kind_in_words(arguments[0])
    if origin is typing.Literal:
        return "one of " + ", ".join(f"`{value}`" for value in arguments)
    if origin in {typing.Union, types.UnionType}:
        return " or ".join(kind_in_words(argument) for argument in arguments if argument is not type(None))
    if origin in {tuple, list}:
        return f"list of {kind_in_words(arguments[0])}{'s' * (arguments[0] in {int, float, Path})}"
    if origin is dict:
        return f"table of {kind_in_words(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return "one of " + ", ".join(f"`{one.value}`" for one in annotation)
    return _KINDS.get(annotation, getattr(annotation, "__name__", str(annotation)))


def default_in_words(value: Any) -> str:
    """Return a default as TOML has it; empty for None, and for one that is made."""
    if value is None or value is msgspec.NODEFAULT:
        return ""
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, float) and value == int(value) and abs(value) < 1e6:
        return f"`{value:.1f}`"
    if value == "":
        return ""
    return f"`{msgspec.json.encode(value, enc_hook=str).decode().replace(',', ', ')}`"


def field_comments(kind: type) -> dict[str, str]:
    """Return the comment of every field of a class, from its source: on its lines, or on the lines above it."""
    source = textwrap.dedent(inspect.getsource(kind))
    comments = _comments(source)
    found: dict[str, str] = {}
    (tree,) = ast.parse(source).body
    assert isinstance(tree, ast.ClassDef)
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            last = node.end_lineno or node.lineno
            own = [text for line in range(node.lineno, last + 1) for text, alone in comments.get(line, ()) if not alone]
            above: list[str] = []
            line = node.lineno - 1
            while line in comments and comments[line][0][1]:
                above.insert(0, comments[line][0][0])
                line -= 1
            found[node.target.id] = " ".join(own or above)
    return found


def _comments(source: str) -> dict[int, list[tuple[str, bool]]]:
    """Return the comments by line, each with True when the line holds nothing else."""
    found: dict[int, list[tuple[str, bool]]] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            alone = token.line[: token.start[1]].strip() == ""
            found.setdefault(token.start[0], []).append((token.string.lstrip("# ").partition("  # noqa")[0], alone))
    return found


def cell(text: str) -> str:
    """Return text for one cell of a Markdown table; code in backquotes keeps its characters."""
    parts = " ".join(text.split()).replace("``", "`").replace("|", "\\|").split("`")
    return "`".join(
        part if number % 2 else part.replace("<", "&lt;").replace("*", "\\*") for number, part in enumerate(parts)
    )


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines)


def sentence(text: str) -> str:
    """Return the text with a capital letter first and a full stop last, unless it begins with a name or a quote."""
    text = text.strip()
    if not text:
        return ""
    first = text.split()[0]
    if re.fullmatch(r"[a-z]+[,:;]?", first) and not first.endswith(":"):
        text = text[0].upper() + text[1:]
    return text if text[-1] in ".!?" else f"{text}."


def docstring(thing: Any) -> str:
    """Return the docstring of a class or function, its own one; empty without."""
    own = thing.__dict__.get("__doc__") if isinstance(thing, type) else thing.__doc__
    return inspect.cleandoc(own) if own else ""


def paragraphs(text: str) -> str:
    """Return a docstring or help text as Markdown: indented lines become blocks of code, `` ``x`` `` becomes `x`."""
    parts: list[str] = []
    for part in re.split(r"\n\s*\n", inspect.cleandoc(text).replace("\b", "")):
        if part and all(line.startswith("  ") for line in part.split("\n")):
            block = textwrap.dedent(part)
            if parts and parts[-1].startswith("```"):  # examples, each a paragraph of its own in a terminal
                parts[-1] = f"{parts[-1].removesuffix('```')}{block}\n```"
            else:
                parts.append(f"```\n{block}\n```")
        else:
            parts.append(part.strip().replace("``", "`").replace("<", "&lt;"))
    return "\n\n".join(part for part in parts if part)

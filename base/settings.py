"""TOML settings decoded into typed records; an unknown key is an error that lists the known ones."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from .errors import DataError, SettingsError, StorageError
from .files import printable_path, read_regular

T = TypeVar("T")

MAX_FILE = 1 << 20  # bytes; a settings file has a few thousand
MAX_PARTS = 32  # of a dotted key
_LONG_KEY = re.compile(rb"""(?:[\w"'-]{1,64}+[ \t]{0,9}+\.[ \t]{0,9}+){32}""")

_UNKNOWN_FIELD = re.compile(r"Object contains unknown field `(?P<key>[^`]*)`(?: - at `\$\.?(?P<where>[^`]*)`)?")
_AT = re.compile(r" - at `\$\.?(?P<where>[^`]*)`$")


def load_settings(
    path: Path, kind: type[T], *, start: str = "", complete: Callable[[dict[str, Any]], dict[str, Any]] = lambda it: it
) -> T:
    """Decode the TOML file at ``path`` into ``kind`` (a msgspec Struct with forbid_unknown_fields).

    ``start``: for a file that is not there, which command writes a first one. ``complete``: fills in what is not given,
    before the types are checked.
    Raises SettingsError naming the file, the key, and what was expected.
    """
    try:
        text = read_regular(path, largest=MAX_FILE)
    except (StorageError, DataError) as error:
        raise SettingsError(
            f"the settings file cannot be used: {error.message}",
            fix="name its folder with --dir DIR, or the file with --config FILE" + (f"; {start}" if start else ""),
        ) from error
    shown = printable_path(Path(path))
    if _LONG_KEY.search(text):  # the parser takes time by the square of its parts
        raise SettingsError(
            f"{shown}: not valid TOML: a key of more than {MAX_PARTS} parts",
            fix=f"edit {shown}: keys have at most two or three parts",
        )
    try:
        return msgspec.convert(complete(msgspec.toml.decode(text)), kind, dec_hook=_path_from_text)
    except msgspec.ValidationError as error:
        raise SettingsError(
            f"{shown}: {_explain(str(error), kind)}",
            fix=f"edit {shown}; every key is in docs/reference/agent-settings.md or coordinator-settings.md",
        ) from error
    except (msgspec.DecodeError, ValueError, RecursionError, OverflowError) as error:
        raise SettingsError(
            f"{shown}: not valid TOML: {error}",
            fix=f"edit {shown}: text needs quotes, lists need brackets, sections are [name]",
        ) from error


def _path_from_text(kind: type, value: Any) -> Any:
    """Decode a path from text; msgspec calls this for types that it does not know."""
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise ValueError(f"Expected `{'str' if kind is Path else kind.__name__}`, got `{type(value).__name__}`")


def _explain(problem: str, kind: Any) -> str:
    unknown = _UNKNOWN_FIELD.search(problem)
    if unknown:
        where = unknown["where"] or ""
        section = _section_type(kind, where)
        known = ", ".join(sorted(field.encode_name for field in msgspec.structs.fields(section)))
        place = f" in [{where}]" if where else ""
        return f"unknown key '{unknown['key']}'{place}; known: {known}"
    at = _AT.search(problem)
    if at:
        return f"{at['where'] or 'top level'}: {_AT.sub('', problem).lower()}"
    return problem


def _section_type(kind: Any, where: str) -> Any:
    """Return the Struct type at the dotted path ``where`` inside ``kind``."""
    for name in filter(None, where.split(".")):
        name = name.split("[")[0]
        for field in msgspec.structs.fields(kind):
            if field.encode_name == name:
                kind = _struct_of(field.type) or kind
    return kind


def _struct_of(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _struct_of(argument)
        if found is not None:
            return found
    return None

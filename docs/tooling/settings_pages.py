"""The settings of both daemons: every table and key of agent.toml and coordinator.toml, from their records."""

from __future__ import annotations

from typing import Any

import msgspec
from flamest.agent import settings as agent
from flamest.coordinator import settings as coordinator

from .words import cell, default_in_words, field_comments, kind_in_words, sentence, table


def agent_settings() -> str:
    """Return the tables of agent.toml."""
    return _tables(agent.AgentSettings)


def coordinator_settings() -> str:
    """Return the tables of coordinator.toml."""
    return _tables(coordinator.CoordinatorSettings)


def undocumented_keys() -> list[str]:
    """Return the keys of both files whose field has no comment in the code."""
    return [
        f"{kind.__module__}.{kind.__qualname__}.{field.name}"
        for root in (agent.AgentSettings, coordinator.CoordinatorSettings)
        for _, kind in _sections(root)
        for field in msgspec.structs.fields(kind)
        if _struct(field.type) is None and not field_comments(kind)[field.name]
    ]


def _tables(root: type) -> str:
    parts = []
    for name, kind in _sections(root):
        rows = _rows(kind)
        if rows:
            title = f"## `[{name}]`" if name else "## At the top of the file"
            parts += [title, table(("key", "type", "default", "meaning"), rows)]
    return "\n\n".join(parts)


def _rows(kind: type) -> list[tuple[str, ...]]:
    comments = field_comments(kind)
    return [
        (
            f"`{field.encode_name}`",
            cell(kind_in_words(field.type)),
            "**required**" if field.required else cell(default_in_words(field.default)) or "not set",
            cell(sentence(comments[field.name])),
        )
        for field in msgspec.structs.fields(kind)
        if _struct(field.type) is None
    ]


def _sections(kind: type, name: str = "") -> list[tuple[str, type]]:
    """Return the tables of a settings file, each with its dotted name, the file itself first."""
    found = [(name, kind)]
    for field in msgspec.structs.fields(kind):
        if inner := _struct(field.type):
            found += _sections(inner, f"{name}.{field.encode_name}".lstrip("."))
    return found


def _struct(annotation: Any) -> type | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct) else None

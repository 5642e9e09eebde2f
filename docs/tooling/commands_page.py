"""The commands and options of all programs, from their typer apps."""

from __future__ import annotations

import importlib
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from .words import cell, default_in_words, kind_in_words, paragraphs, table

ROOT = Path(__file__).resolve().parent.parent.parent
FEW = 8  # a shorter table is shown whole
_EVERYWHERE = {"install_completion", "show_completion"}


def commands() -> str:
    """Return one section for each program of pyproject.toml, one below it for each command."""
    programs = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    parts = []
    for program, target in programs.items():
        app = importlib.import_module(target.partition(":")[0]).app
        found = list(_walk((program,), typer.main.get_command(app)))
        fullest = max(found, key=lambda one: len(_options(one[1])))  # the first of those with the most options
        parts += [_section(words, command, fullest) for words, command in found]
    return "\n\n".join(parts)


def _walk(words: tuple[str, ...], command: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield a command and, in their order, all commands below it; hidden ones are left out."""
    yield words, command
    for name, inner in getattr(command, "commands", {}).items():
        if not inner.hidden:
            yield from _walk((*words, name), inner)


def _section(words: tuple[str, ...], command: Any, fullest: tuple[tuple[str, ...], Any]) -> str:
    """Return the section of a command; ``fullest`` is the program's command with most options, and its words."""
    name = " ".join(words)
    arguments = [one for one in command.params if not one.opts[0].startswith("-")]
    options = _options(command)
    inner = {key: one for key, one in getattr(command, "commands", {}).items() if not one.hidden}
    usage = " ".join([name, *(["[OPTIONS]"] if options else []), *map(_argument, arguments)])
    usage += " COMMAND" if inner and not getattr(command, "invoke_without_command", False) else ""
    parts = [f"{'#' * min(len(words) + 1, 4)} {name}", paragraphs(command.help or ""), f"```\n{usage}\n```"]
    if inner and len(words) == 1:
        parts.append("Commands: " + ", ".join(f"[`{key}`](#{'-'.join((*words, key))})" for key in inner) + ".")
    if arguments:
        rows = [(f"`{_argument(one)}`", cell(getattr(one, "help", "") or "")) for one in arguments]
        parts.append(table(("argument", "meaning"), rows))
    if options:
        parts.append(_option_table(options, words, fullest))
    return "\n\n".join(part for part in parts if part)


def _options(command: Any) -> list[Any]:
    """Return the options of a command that its help shows, without those of the shell's completion."""
    named = [one for one in command.params if one.opts[0].startswith("-") and one.name not in _EVERYWHERE]
    return [one for one in named if not one.hidden]


def _option_table(options: list[Any], words: tuple[str, ...], fullest: tuple[tuple[str, ...], Any]) -> str:
    """Return the table, or a reference to that of ``fullest`` where all options but a few are the same."""
    rows, known = [_option(one) for one in options], [_option(one) for one in _options(fullest[1])]
    if words != fullest[0] and len(rows) >= FEW and set(rows) <= set(known):
        missing = [row[0] for row in known if row not in rows]
        without = f", without {', '.join(missing)}" if missing else ""
        return f"Options: those of [`{' '.join(fullest[0])}`](#{'-'.join(fullest[0])}){without}."
    return table(("option", "value", "default", "meaning"), rows)


def _argument(one: Any) -> str:
    shown = str(one.metavar or one.name.upper())
    shown += "…" if one.nargs == -1 and not shown.endswith("…") else ""
    return shown if one.required else f"[{shown.strip('[]')}]"


def _option(one: Any) -> tuple[str, str, str, str]:
    names = ", ".join(f"`{name}`" for name in (*one.opts, *one.secondary_opts))
    kind = "" if one.is_flag else _kind(one)
    default = "**required**" if one.required else "" if one.default is False else default_in_words(one.default)
    return names, cell(kind), default, cell(one.help or "")


def _kind(one: Any) -> str:
    """Return the value in words, with its bounds and the placeholder of the help."""
    annotation = one.type_descriptor.annotation
    words = kind_in_words(annotation)
    lowest, highest = one.min, one.max
    if lowest is not None and highest is not None:
        words += f", {lowest:g} to {highest:g}"
    elif lowest is not None:
        words += f", {lowest:g} or more"
    elif highest is not None:
        words += f", at most {highest:g}"
    return f"`{one.metavar}`" if one.metavar and words in {"text", "list of text"} else words

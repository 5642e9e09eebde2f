"""The place of a program's settings, as a person gave it, and hints that repeat it.

A command names the next command to type; that one must find the same settings. ``Place`` reads ``--config`` and
``--dir``, and adds them to every command of the program in a text.
"""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from .errors import FlamestError
from .options import settings_folder, settings_path

P = ParamSpec("P")
T = TypeVar("T")
_END = re.compile(r"[`;,\n]| (?:finds|prints|shows|takes|wrote|made|makes) ")  # of a command inside a sentence


@dataclass(frozen=True)
class Program:
    """A program with a settings file."""

    name: str
    file: str  # of its settings
    commands: Sequence[str]  # that take --config, as typed: "status", "silo add"
    start: str  # the command that writes first settings

    def place(self, config: Path | None, folder: Path | None = None) -> Place:
        """Return the place that ``--config`` and ``--dir`` give."""
        return Place(self, config, folder)

    def errors_name_the_place(self, body: Callable[P, T]) -> Callable[P, T]:
        """Wrap the body of a command with the parameters ``config`` and ``folder``: hints in its errors have the place.

        Write it below ``base.console.command``.
        """

        @functools.wraps(body)
        def run(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return body(*args, **kwargs)
            except FlamestError as error:
                given: dict[str, Any] = dict(kwargs)
                place = self.place(given.get("config"), given.get("folder"))
                error.message, error.fix = place.hint(error.message), place.hint(error.fix)
                raise

        return run


@dataclass(frozen=True)
class Place:
    """Values of ``--config`` and ``--dir``; both None: the current folder."""

    program: Program
    config: Path | None
    dir: Path | None

    @property
    def path(self) -> Path:
        """The settings file, which need not exist. Raises UsageError as ``settings_path``."""
        return settings_path(self.program.file, self.config, self.dir, fix=self.program.start)

    @property
    def _file(self) -> Path:
        """The settings file as it was given, for a hint."""
        if self.config is not None and not self.config.is_dir():
            return self.config
        return (self.config or self.dir or Path()) / self.program.file

    @property
    def folder(self) -> Path:
        """The folder to work in; its settings need not exist. Raises UsageError as ``settings_folder``."""
        return settings_folder(self.program.file, self.config, self.dir)

    @property
    def option(self) -> str:
        """The option that finds this place again, with a space before it; empty for the current folder."""
        if self.config is not None:
            return f" --config {shlex.quote(str(self.config))}"
        return "" if self.dir in (None, Path()) else f" --dir {shlex.quote(str(self.dir))}"

    def hint(self, text: str) -> str:
        """Return ``text`` with ``option`` in every command of the program that takes it and has no such option.

        ``--config agent.toml`` in a text is an example, which ``option`` replaces; ``in agent.toml`` becomes the file
        that was given.
        """
        if not self.option:
            return text
        text = text.replace(f" --config {self.program.file}", "")
        text = re.sub(rf"(?<![\w-])in {re.escape(self.program.file)}(?![\w-])", lambda _: f"in {self._file}", text)
        longest_first = sorted(self.program.commands, key=len, reverse=True)
        names = "|".join(re.escape(command) for command in longest_first)

        def add(found: re.Match[str]) -> str:
            rest = _END.split(text[found.end() :], maxsplit=1)[0]
            return found[0] if "--config" in rest or "--dir" in rest else found[0] + self.option

        return re.sub(rf"(?<![\w-]){re.escape(self.program.name)} (?:{names})(?![\w-])", add, text)

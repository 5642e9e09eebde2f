"""The programs of this package as Typer apps that behave alike.

Every command has ``-h`` and ``--version``, ends a wrong command line with the fix (with ``--json`` also as an error
object) and knows its extras of the installation. How the body of a command ends is in console.py; where a program's
settings are, in place.py.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from .. import __version__
from .console import report_error
from .errors import UsageError
from .extras import role

F = TypeVar("F", bound=Callable[..., Any])


class App(typer.Typer):
    """A Typer app for a program, or for a group of its commands.

    ``name``: as typed in a shell, ``flamest-agent``; of a group, its word. ``extras``: those of the installation that
    the program's users have (extras.py); a command may need fewer: ``app.command("check", extras=("agent",))``.
    ``takes_options_of``: the command that runs where none is named; its ``--help`` lists the options.
    """

    def __init__(self, name: str, *, extras: Sequence[str] = (), takes_options_of: str = "", **options: Any) -> None:
        self._traits: dict[str, Any] = {"program": name, "extras": tuple(extras)}
        super().__init__(
            name=name,
            cls=type("Group", (AppGroup,), {**self._traits, "takes_options_of": takes_options_of}),
            context_settings={"help_option_names": ["-h", "--help"]},
            pretty_exceptions_enable=False,
            rich_markup_mode=None,
            **options,
        )

    def command(self, name: str | None = None, *, extras: Sequence[str] = (), **options: Any) -> Callable[[F], F]:
        """Declare a command of this program. ``extras``: in place of the program's."""
        traits = {**self._traits, "extras": tuple(extras) or self._traits["extras"]}
        settings = {"help_option_names": ["-h", "--help"]}
        kind = type("Command", (AppCommand,), traits)
        return super().command(name, cls=kind, context_settings=settings, **options)


class AppCommand(TyperCommand):
    """A command of a program, or a program without subcommands."""

    program = ""
    extras: tuple[str, ...] = ()
    as_json = False  # is --json on the command line?

    def get_params(self, ctx: Any) -> list[Any]:
        return _with_version(self, super().get_params(ctx))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _write_options(self, ctx, formatter)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [_usage_piece(piece) for piece in super().collect_usage_pieces(ctx)]

    def invoke(self, ctx: Any) -> Any:
        with _role_of(self):
            return super().invoke(ctx)

    def main(self, *args: Any, **options: Any) -> Any:
        return _run(self, super().main, *args, **options)


class AppGroup(TyperGroup):
    """A program with subcommands, or a group of them."""

    program = ""
    extras: tuple[str, ...] = ()
    takes_options_of = ""
    as_json = False

    def get_params(self, ctx: Any) -> list[Any]:
        return _with_version(self, super().get_params(ctx))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _write_commands(self, ctx, formatter)
        default = self.commands.get(self.takes_options_of)
        _write_options(self, ctx, formatter, hidden=[param.name for param in default.params] if default else ())

    def invoke(self, ctx: Any) -> Any:
        with _role_of(self):
            return super().invoke(ctx)

    def main(self, *args: Any, **options: Any) -> Any:
        return _run(self, super().main, *args, **options)


Command = AppCommand | AppGroup
# What click and Typer print for a value without a metavar, and the word for it.
_KINDS = re.compile(r"(?<= )(<(?:str|int|float|path)(?: range)?>|(?:TEXT|INTEGER|FLOAT|PATH)(?: RANGE)?)$")
_KIND_WORDS = {"str": "TEXT", "text": "TEXT", "int": "N", "integer": "N", "float": "X", "path": "PATH"}


def _role_of(command: Command) -> contextlib.AbstractContextManager[None]:
    """Name the command's extras while it runs; a group inside a program keeps the program's."""
    return role(*command.extras) if command.extras else contextlib.nullcontext()


def _show_version(context: typer.Context, asked: bool) -> None:
    root: Any = context.find_root().command
    if asked:
        shown = {"program": root.program, "version": __version__}
        print(json.dumps(shown) if root.as_json else f"{root.program} {__version__}")
        raise typer.Exit


def _version_option() -> Any:
    """Return the option ``--version`` as Typer makes it from a declaration."""

    def declare(
        version: Annotated[
            bool,
            typer.Option(
                "--version",
                is_eager=True,
                expose_value=False,
                callback=_show_version,
                help="Show the version and exit.",
            ),
        ] = False,
    ) -> None:
        pass

    app = typer.Typer(add_completion=False)
    app.command()(declare)
    return get_command(app).params[0]


def _with_version(command: Command, params: list[Any]) -> list[Any]:
    """Return the command's parameters with ``--version`` before ``--help``, which is the last."""
    if "version" not in vars(command):  # the same object each time: click compares them
        vars(command)["version"] = _version_option()
    return [*params[:-1], vars(command)["version"], *params[-1:]]


def _usage_piece(piece: str) -> str:
    """Return an argument of the usage line as our documentation writes it: ``DIR``, ``VIDEO…``, not ``{DIR}``."""
    found = re.fullmatch(r"\{?([^][{}]+?)\}?(\.\.\.)?", piece)
    return piece if found is None else found[1].upper() + ("…" if found[2] and not found[1].endswith("…") else "")


def _kind_word(found: re.Match[str]) -> str:
    return _KIND_WORDS[found[1].split()[0].strip("<>").lower()]


def _write_commands(group: AppGroup, ctx: Any, formatter: Any) -> None:
    """Write the commands for ``--help``, each with the first sentence of its own."""
    rows = []
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        if command is not None and not command.hidden:
            paragraph = " ".join((command.help or "").split("\n\n")[0].split())
            rows.append((name, re.split(r"(?<=\.) (?=[A-Z])", paragraph)[0]))
    if rows:
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _write_options(command: Command, ctx: Any, formatter: Any, hidden: Sequence[str | None] = ()) -> None:
    """Write arguments and options for ``--help``, by the ``rich_help_panel`` of each; those without one come last."""
    sections: dict[str, list[tuple[str, str]]] = {"Arguments": []}
    general: list[tuple[str, str]] = []
    for param in (each for each in command.get_params(ctx) if each.name not in hidden):
        panel = "Arguments" if param.param_type_name == "argument" else getattr(param, "rich_help_panel", None)
        if record := param.get_help_record(ctx):
            names = record[0].split(" ")[0].upper() if panel == "Arguments" else _KINDS.sub(_kind_word, record[0])
            (sections.setdefault(panel, []) if panel else general).append((names, record[1]))
    for title, records in (*sections.items(), ("Options", general)):
        if records:
            with formatter.section(title):
                formatter.write_dl(records)


def _run(
    command: Command,
    main: Callable[..., Any],
    args: Sequence[str] | None = None,
    *,
    standalone_mode: bool = True,
    **options: Any,
) -> Any:
    """Run a command line to the end of the process; without ``standalone_mode`` as click does."""
    words = list(sys.argv[1:] if args is None else args)
    command.as_json = "--json" in words[: words.index("--") if "--" in words else len(words)]
    if not standalone_mode:
        return main(args=words, standalone_mode=False, **options)
    try:
        status = main(args=words, standalone_mode=False, **options)
    except Exception as error:  # typer brings click's classes along, or imports click: known by what they have
        if not hasattr(error, "format_message"):
            raise
        status = _report_usage(error, as_json=command.as_json)
    sys.exit(status if isinstance(status, int) else 0)


def _report_usage(error: Any, *, as_json: bool) -> int:
    """Report a command line that cannot be parsed; return the exit code."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return UsageError.exit_code
    message = error.format_message().rstrip(".").replace(": Value error, ", ": ")  # a Literal's, in Typer's words
    fix = ""
    if error.ctx is not None:
        print(error.ctx.get_usage(), file=sys.stderr)
        fix = f"{error.ctx.command_path} --help"
    return report_error(UsageError(message[:1].lower() + message[1:], fix=fix), as_json=as_json)

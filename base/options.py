"""Command-line options that several commands share, each defined once, and records of options.

A command names its option as a parameter: ``as_json: JsonOption = False``. :func:`base.console.command`
reads ``as_json``. A command with many options takes them as a record (:func:`takes_records`).

Every command of a program finds the program's settings in the same way: ``--config FILE``, ``--config DIR``,
``--dir DIR``, or the file in the current folder (:func:`settings_path`).
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from .errors import UsageError
from .log import LogLevel

T = TypeVar("T")
JsonOption = Annotated[bool, typer.Option("--json", help="Print one machine-readable JSON object as the last line.")]
LogLevelOption = Annotated[
    LogLevel | None,
    typer.Option("--log-level", help="The least serious events to log; by default [log] level of the settings file."),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="Threads for each network; usually all cores that this process may use."),
]
TrustedKeyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--trusted-key",
        metavar="KEY",
        help="A public key (NAME.pub, or ed25519:…) that must have signed the bundle; may be given several times, "
        "then one of them must. Without it no signature is required.",
    ),
]


def config_option(name: str) -> Any:
    """Return the option ``--config`` of a program whose settings file is called ``name``; its value may be None."""
    return typer.Option(
        "--config",
        metavar="FILE",
        help=f"The settings file, {name}, or the folder that it is in; ./{name} when not given.",
    )


def dir_option(name: str) -> Any:
    """Return the option ``--dir`` of a program whose folder has the settings file ``name``; its value may be None."""
    return typer.Option(
        "--dir",
        metavar="DIR",
        help=f"The folder that {name} is in; the current one when not given.",
    )


def settings_path(name: str, config: Path | None, folder: Path | None = None, *, fix: str) -> Path:
    """Return the settings file that a command should read: the one given, or ``name`` in the current folder.

    ``config``: the value of ``--config``, a file or a folder that has ``name``; ``folder``: the value of ``--dir``.
    ``fix``: what helps a person who has no settings yet. Raises UsageError when neither option is given and the
    current folder has no ``name``, and when they name two different places.
    """
    if config is not None:
        file = config / name if config.is_dir() else config
        if folder is not None and file.resolve().parent != folder.resolve():
            raise UsageError(
                f"--config {config} is not in --dir {folder}", fix="give one of them: both name the same folder"
            )
        return file
    if folder is not None:
        return folder / name
    if not Path(name).exists():
        raise UsageError(f"there is no {name} in the current folder, and --config does not name one", fix=fix)
    return Path(name)


def settings_folder(name: str, config: Path | None, folder: Path | None = None) -> Path:
    """Return the folder that a command should work in: the one given, the settings file's, or the current one.

    Its settings need not exist. The arguments are those of ``settings_path``, as is UsageError.
    """
    if config is None:
        return Path() if folder is None else folder
    return settings_path(name, config, folder, fix="").parent


def takes_records(body: Callable[..., T]) -> Callable[..., T]:
    """Let the body of a command take records of options.

    Typer sees each field of a dataclass parameter as an option of its own, with the field's annotation and
    default; fields that are dataclasses are taken apart likewise.
    """
    hints = get_type_hints(body, include_extras=True)
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(body).parameters.values():
        if dataclasses.is_dataclass(hints[parameter.name]):
            parameters += _fields(hints[parameter.name])
        else:
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters.append(parameter.replace(kind=kind, annotation=hints[parameter.name]))

    @functools.wraps(body)
    def run(**given: Any) -> T:
        return body(**{name: _filled(hint, name, given) for name, hint in hints.items() if name != "return"})

    annotations = {parameter.name: parameter.annotation for parameter in parameters}
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {**annotations, "return": hints.get("return")}
    return run


def _fields(record: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(record, include_extras=True)
    parameters: list[inspect.Parameter] = []
    for field in dataclasses.fields(record):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            parameters += _fields(hint)
        else:
            kind = inspect.Parameter.KEYWORD_ONLY
            default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
            parameters.append(inspect.Parameter(field.name, kind, default=default, annotation=hint))
    return parameters


def _filled(hint: Any, name: str, given: dict[str, Any]) -> Any:
    """The argument ``name`` from the flat values of the command line."""
    if not dataclasses.is_dataclass(hint):
        return given[name]
    hints = get_type_hints(hint, include_extras=True)
    record: Any = hint
    return record(**{field.name: _filled(hints[field.name], field.name, given) for field in dataclasses.fields(record)})

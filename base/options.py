"""Command-line options that several commands share, each defined once, and records of options.

A command names its option as a parameter: ``as_json: JsonOption = False``. :func:`base.console.command`
reads ``as_json``. A command with many options takes them as a record (:func:`takes_records`).
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import typer

T = TypeVar("T")
LogLevel = Literal["debug", "info", "warning", "error"]

JsonOption = Annotated[bool, typer.Option("--json", help="Print one machine-readable JSON object as the last line.")]
LogLevelOption = Annotated[LogLevel, typer.Option("--log-level", help="The least serious events to show.")]
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

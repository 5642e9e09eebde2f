"""Options that several commands of ``flamest-export`` take, and records of options that are handed on whole."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

T = TypeVar("T")

CheckOption = Annotated[
    bool,
    typer.Option("--check", help="Check the graphs too as flamest-export check does; leave no bundle when one fails."),
]
BundleArgument = Annotated[Path, typer.Argument(metavar="DIR", help="The bundle folder.")]

_HUB = "a hub id (OWNER/MODEL[@REVISION]), a folder with config.json, model.safetensors"
_FILE = "a checkpoint file (.safetensors, .pth, .pyth)"
BlipOption = Annotated[
    str | None, typer.Option(metavar="SRC", help=f"The captioner: {_HUB} and tokenizer.json, or a word of --weights.")
]
ClipOption = Annotated[
    str | None, typer.Option(metavar="SRC", help=f"CLIP: {_HUB} and tokenizer.json, or a word of --weights.")
]
SlowOption = Annotated[
    str | None,
    typer.Option(
        metavar="SRC",
        help=f"The Slow network, whose first layers pick the keyframes of every extractor: slow_r50 (PyTorchVideo's "
        f"published weights), {_FILE}, or a word of --weights.",
    ),
]
I3dOption = Annotated[str | None, typer.Option(metavar="SRC", help=f"I3D: i3d_r50, {_FILE}, or a word of --weights.")]
Resnet3dOption = Annotated[
    str | None, typer.Option(metavar="SRC", help=f"ResNet-3D: r3d_18, {_FILE}, or a word of --weights.")
]
VideomaeOption = Annotated[str | None, typer.Option(metavar="SRC", help=f"VideoMAE: {_HUB}, or a word of --weights.")]


@dataclass(frozen=True)
class SourceOptions:
    """The source of each network, as typed; None where the option is not given."""

    blip: BlipOption = None
    clip: ClipOption = None
    slow: SlowOption = None
    i3d: I3dOption = None
    resnet3d: Resnet3dOption = None
    videomae: VideomaeOption = None

    def given(self) -> dict[str, str]:
        """By network the sources that are given."""
        return {network: text for network, text in dataclasses.asdict(self).items() if text is not None}


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
            parameters.append(inspect.Parameter(field.name, kind, default=field.default, annotation=hint))
    return parameters


def _filled(hint: Any, name: str, given: dict[str, Any]) -> Any:
    """The argument ``name`` from the flat values of the command line."""
    if not dataclasses.is_dataclass(hint):
        return given[name]
    hints = get_type_hints(hint, include_extras=True)
    record: Any = hint
    return record(**{field.name: _filled(hints[field.name], field.name, given) for field in dataclasses.fields(record)})

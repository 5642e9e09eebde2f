"""Command-line options that several commands share, each defined once.

A command names its option as a parameter: ``as_json: JsonOption = False``. :func:`base.console.command`
reads ``as_json``.
"""

from __future__ import annotations

from typing import Annotated, Literal

import typer

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

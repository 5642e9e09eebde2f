"""``flamest-coordinator init`` and ``renew``: a federation's keys, certificates and settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...base.console import command, say
from ...base.errors import DataError, StorageError, UsageError
from ...base.files import read_regular
from ...base.options import JsonOption
from ...fedproto.fingerprint import fingerprint_problem, imported_width
from . import COORDINATOR, SETTINGS_FILE, ConfigOption, DirOption

if TYPE_CHECKING:
    from ..admin.bundle import BundleFacts

MAX_LABELS_FILE = 16 << 20  # bytes
HostOption = Annotated[
    list[str] | None,
    typer.Option(
        "--host", metavar="NAME", help="A DNS name or address under which silos reach this server; may be repeated."
    ),
]


@command
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder for keys, settings and state.")],
    host: HostOption = None,
    labels: Annotated[
        str, typer.Option("--labels", metavar="A,B,…", help="The class names, with commas: walk,run,fall.")
    ] = "",
    labels_file: Annotated[
        Path | None, typer.Option("--labels-file", metavar="FILE", help="A text file with one class name per line.")
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(
            "--bundle",
            metavar="DIR",
            help="The bundle that all silos use: its fingerprint and the width of its embeddings are filled in. If it "
            "is on another machine: a file with what flamest-export inspect BUNDLE --json prints there.",
        ),
    ] = None,
    fingerprint: Annotated[
        str,
        typer.Option(
            "--fingerprint",
            help="Instead of --bundle: the fingerprint, 64 digits as flamest-export inspect prints it, or "
            "imported:NAME:WIDTH where silos bring their own embeddings (flamest-agent import-features).",
        ),
    ] = "",
    inputs: Annotated[
        int | None, typer.Option("--inputs", min=1, help="With --fingerprint: the width of a clip's embedding.")
    ] = None,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Make a federation: its certificate authority, the server's key and certificate, a settings file.

    Nothing that exists is overwritten. Keep ca-key.pem safe: whoever has it can enrol silos.
    """
    from ..admin.authority import init_federation
    from ..admin.bundle import BundleFacts, read_bundle_facts
    from ..admin.config_template import render_config_template

    if not host:
        raise UsageError("--host is missing", fix=f"flamest-coordinator init {folder} --host fl.example.org")
    names = _read_labels(labels, labels_file)
    facts = None if bundle is None else read_bundle_facts(bundle)
    _check_embedding(facts, fingerprint, inputs)
    facts = facts or BundleFacts(fingerprint, inputs or imported_width(fingerprint) or 0, ())
    text = render_config_template(
        names,
        facts.fingerprint,
        inputs=facts.width or None,
        blocks=facts.blocks,
        final_evaluation="model",
        calibrate=True,
    )
    init_federation(folder, host, text)
    config = folder / SETTINGS_FILE
    if not as_json:
        say(f"made {folder}: authority, server certificate for {', '.join(host)}, {config.name}")
        if facts.width:
            say(f"the run trains on {facts.width}-d embeddings of {facts.fingerprint}")
        for line in _next_steps(config, missing=not (names and facts.fingerprint and facts.width)):
            say(line)
    return {
        "dir": str(folder),
        "config": str(config),
        "hosts": host,
        "labels": len(names),
        "fingerprint": facts.fingerprint,
        "inputs": facts.width or None,
        "blocks": list(facts.blocks),
    }


def _next_steps(config: Path, *, missing: bool) -> list[str]:
    """Return the operator's next steps; ``missing``: the settings have lines to fill in."""
    edit = "fill in the lines marked TO FILL IN" if missing else "change what does not suit"
    place = COORDINATOR.place(None, config.parent)
    return [
        "next:",
        place.hint(f"  1. edit {config}: {edit}; then flamest-coordinator run --check-config"),
        "  2. at each silo: flamest-agent keygen NAME, and send the .csr file here",
        place.hint("  3. flamest-coordinator silo add NAME --csr NAME.csr"),
        place.hint("  4. flamest-coordinator run"),
    ]


def _check_embedding(facts: BundleFacts | None, fingerprint: str, inputs: int | None) -> None:
    """Raise UsageError for a fingerprint that no silo can have, and for options that contradict each other."""
    if fingerprint and (problem := fingerprint_problem(fingerprint)):
        raise UsageError(
            f"--fingerprint {fingerprint}: {problem}",
            fix="--bundle DIR fills it in; flamest-export inspect BUNDLE prints it",
        )
    width = imported_width(fingerprint)
    if facts is not None and fingerprint not in ("", facts.fingerprint):
        raise UsageError(f"--fingerprint is not that of --bundle, {facts.fingerprint}", fix="give --bundle alone")
    known = facts.width if facts is not None else width
    if None not in (inputs, known) and inputs != known:
        raise UsageError(f"--inputs {inputs}: the embeddings are {known}-d", fix="leave --inputs out")


@command
@COORDINATOR.errors_name_the_place
def renew(
    config: ConfigOption = None,
    folder: DirOption = None,
    host: HostOption = None,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Make a new certificate for the server's key: before the old one ends, or for other host names.

    Without --host it is for the names of the old one. A running server loads it on SIGHUP
    (kill -HUP PID), without a restart; open connections stay. For a silo's: `silo renew`.
    """
    from ...fedproto.tls import certificate_info, read_file
    from ..admin.authority import renew_server

    home = COORDINATOR.place(config, folder).folder
    renew_server(home, host or [])
    info = certificate_info(read_file(home / "server.pem"), whose="server.pem")
    if not as_json:
        say(f"{home / 'server.pem'}: for {', '.join(info.names)}, until {info.expires:%Y-%m-%d}")
        say("a running server uses it after SIGHUP: kill -HUP PID")
    return {"hosts": list(info.names), "expires": f"{info.expires:%Y-%m-%dT%H:%M:%SZ}"}


def _read_labels(labels: str, labels_file: Path | None) -> list[str]:
    """Return the class names that the options give. Raises UsageError."""
    if labels and labels_file:
        raise UsageError("--labels and --labels-file were both given", fix="give one of them")
    if labels_file is None:
        names = [name.strip() for name in labels.split(",") if name.strip()]
    else:
        try:
            lines = read_regular(labels_file, largest=MAX_LABELS_FILE).decode().splitlines()
        except (DataError, StorageError, UnicodeDecodeError) as error:
            reason = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error)
            raise UsageError(
                f"--labels-file {labels_file}: {reason}", fix="give a UTF-8 text file with one class name per line"
            ) from error
        numbers: dict[str, list[int]] = {}
        for number, line in enumerate(lines, start=1):
            if line.strip():
                numbers.setdefault(line.strip(), []).append(number)
        _refuse_labels_of_a_file(labels_file, numbers)
        return list(numbers)
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise UsageError(f"--labels: {', '.join(twice[:5])} twice", fix="give every class name once")
    if labels and len(names) < 2:
        only = f"'{names[0]}' alone" if names else "no class name"
        raise UsageError(f"--labels: {only}, expected 2 or more", fix="--labels walk,run,fall")
    return names


def _refuse_labels_of_a_file(file: Path, numbers: Mapping[str, Sequence[int]]) -> None:
    """Raise UsageError for a class name on several lines, and for fewer than 2. ``numbers``: of each name's lines."""
    twice = [f"'{name}' in lines {', '.join(map(str, at[:5]))}" for name, at in numbers.items() if len(at) > 1]
    if twice:
        raise UsageError(f"--labels-file {file}: {'; '.join(twice[:5])}", fix="give every class name once")
    if len(numbers) < 2:
        only = f"'{next(iter(numbers))}' alone" if numbers else "no class name"
        raise UsageError(
            f"--labels-file {file}: {only}, expected 2 or more", fix="give a text file with one class name per line"
        )

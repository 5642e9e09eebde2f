"""``flamest-coordinator init`` and ``renew``: a federation's keys, certificates and settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...base.console import command
from ...base.errors import DataError, StorageError, UsageError
from ...base.files import read_regular
from ...base.options import JsonOption
from . import DirOption

MAX_LABELS_FILE = 16 << 20  # bytes
HostOption = Annotated[
    list[str] | None,
    typer.Option("--host", help="A DNS name or address under which silos reach this server; may be repeated."),
]


@command
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder for keys, settings and state.")],
    host: HostOption = None,
    labels: Annotated[str, typer.Option("--labels", help="The class names, with commas: walk,run,fall.")] = "",
    labels_file: Annotated[
        Path | None, typer.Option("--labels-file", help="A text file with one class name per line.")
    ] = None,
    fingerprint: Annotated[
        str, typer.Option("--fingerprint", help="Of the bundle that all silos use (flamest-export inspect).")
    ] = "",
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Make a federation: its certificate authority, the server's key and certificate, a settings file.

    Nothing that exists is overwritten. Keep ca-key.pem safe: whoever has it can enrol silos.
    """
    from ..admin.authority import init_federation
    from ..admin.config_template import render_config_template

    if not host:
        raise UsageError("--host is missing", fix="flamest-coordinator init DIR --host fl.example.org")
    names = _read_labels(labels, labels_file)
    init_federation(folder, host, render_config_template(names, fingerprint))
    config = folder / "coordinator.toml"
    if not as_json:
        print(f"made {folder}: authority, server certificate for {', '.join(host)}, {config.name}")
        print("next:")
        print(f"  1. edit {config}")
        print("  2. at each silo: flamest-agent keygen NAME, and send the .csr file here")
        print(f"  3. flamest-coordinator silo add NAME --csr NAME.csr --dir {folder}")
        print(f"  4. flamest-coordinator run --config {config}")
    return {"dir": str(folder), "config": str(config), "hosts": host, "labels": len(names)}


@command
def renew(
    folder: DirOption = Path(),
    host: HostOption = None,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Make a new certificate for the server's key: before the old one ends, or for other host names.

    Without --host it is for the names of the old one. A running server loads it on SIGHUP
    (kill -HUP PID), without a restart; open connections stay. For a silo's: `silo renew`.
    """
    from ...fedproto.tls import certificate_info, read_file
    from ..admin.authority import renew_server

    renew_server(folder, host or [])
    info = certificate_info(read_file(folder / "server.pem"), whose="server.pem")
    if not as_json:
        print(f"{folder / 'server.pem'}: for {', '.join(info.names)}, until {info.expires:%Y-%m-%d}")
    return {"hosts": list(info.names), "expires": f"{info.expires:%Y-%m-%dT%H:%M:%SZ}"}


def _read_labels(labels: str, labels_file: Path | None) -> list[str]:
    if labels and labels_file:
        raise UsageError("--labels and --labels-file were both given", fix="give one of them")
    if labels_file is None:
        return [name.strip() for name in labels.split(",") if name.strip()]
    try:
        lines = read_regular(labels_file, largest=MAX_LABELS_FILE).decode().splitlines()
    except (DataError, StorageError, UnicodeDecodeError) as error:
        raise UsageError(
            f"cannot read {labels_file}: {error}", fix="expected UTF-8 text, one class name per line"
        ) from error
    return [line.strip() for line in lines if line.strip()]

"""``flamest-coordinator``: what the operator of a federation types."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...base.console import command
from ...base.errors import UsageError
from ...base.options import JsonOption, LogLevelOption
from .options import ConfigOption, DirOption
from .silo import silo_app
from .status import backup, doctor, evaluation, history, restore

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="The centre of a FLAMeST federation: enrol silos, run training rounds, hand out the model. "
    "Begin with `flamest-coordinator init`; it says what to do next.",
)
app.add_typer(silo_app, name="silo")
app.command("history")(history)
app.command("evaluation")(evaluation)
app.command("backup")(backup)
app.command("restore")(restore)
app.command("doctor")(doctor)

HostOption = Annotated[
    list[str] | None,
    typer.Option("--host", help="A DNS name or address under which silos reach this server; may be repeated."),
]


@app.command("init")
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
    """Make a federation: its certificate authority, the server's key and certificate, starter settings.

    Nothing that exists is overwritten. Keep ca-key.pem safe: who has it can let silos in.
    """
    from ..admin.authority import init_federation
    from ..admin.config_template import starter_settings

    if not host:
        raise UsageError("--host is missing", fix="flamest-coordinator init DIR --host fl.example.org")
    names = _read_labels(labels, labels_file)
    init_federation(folder, host, starter_settings(names, fingerprint))
    config = folder / "coordinator.toml"
    if not as_json:
        print(f"made {folder}: authority, server certificate for {', '.join(host)}, {config.name}")
        print("next:")
        print(f"  1. look through {config}")
        print("  2. at each silo: flamest-agent keygen NAME, and send the .csr file here")
        print(f"  3. flamest-coordinator silo add NAME --csr NAME.csr --dir {folder}")
        print(f"  4. flamest-coordinator run --config {config}")
    return {"dir": str(folder), "config": str(config), "hosts": host, "labels": len(names)}


@app.command("renew")
@command
def renew(
    folder: DirOption = Path(),
    host: HostOption = None,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Make a new certificate for the server's key: before the old one ends, or for other host names.

    Without --host it is for the names of the old one. A running server takes it on SIGHUP
    (kill -HUP PID), without a restart; connections that stand go on. For a silo's: `silo renew`.
    """
    from ...fedproto.tls import certificate_info, read_file
    from ..admin.authority import renew_server

    renew_server(folder, host or [])
    facts = certificate_info(read_file(folder / "server.pem"), whose="server.pem")
    if not as_json:
        print(f"{folder / 'server.pem'}: for {', '.join(facts.names)}, until {facts.expires:%Y-%m-%d}")
    return {"hosts": list(facts.names), "expires": f"{facts.expires:%Y-%m-%dT%H:%M:%SZ}"}


@app.command("run")
@command
def run(
    config: ConfigOption,
    check_config: Annotated[bool, typer.Option("--check-config", help="Check settings and files, and end.")] = False,
    once: Annotated[bool, typer.Option("--once", help="End when the run has finished and the silos know.")] = False,
    log_level: LogLevelOption = "info",
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Serve the run of the settings file until stopped (Ctrl-C or SIGTERM); started again, it goes on.

    A finished run is served until stopped, so that every silo can fetch the final model. The event
    `listening` on stderr says that the server is ready, and at which address.
    """
    from ..settings import load_coordinator_settings

    settings = load_coordinator_settings(config)
    if check_config:
        return _check(config, as_json=as_json)

    from ...base.log import configure_logging
    from ...base.process import Shutdown, tune_malloc
    from ..serving.server import serve

    configure_logging(level=log_level)
    tune_malloc()
    served = serve(settings, Shutdown.on_signals(), once=once)
    state = "finished" if served.finished else f"stopped after {served.closed} of {served.rounds} rounds"
    if not as_json:
        print(f"run '{served.run}' {state}")
        print(f"take the model: flamest-coordinator model --config {config} --out MODEL.safetensors")
    return {
        "run": served.run,
        "rounds": served.closed,
        "of": served.rounds,
        "finished": served.finished,
        "model_sha256": served.model_sha256,
    }


@app.command("status")
@command
def status(config: ConfigOption, as_json: JsonOption = False) -> dict[str, Any]:
    """Where the run stands; works beside a running server and without one."""
    from ..admin.report import status_lines, status_of
    from ..settings import load_coordinator_settings

    now = status_of(load_coordinator_settings(config))
    if not as_json:
        print("\n".join(status_lines(now)))
    return now


@app.command("model")
@command
def model(
    config: ConfigOption,
    out: Annotated[Path, typer.Option("--out", metavar="MODEL.safetensors", help="Where the model goes.")],
    round_number: Annotated[
        int | None, typer.Option("--round", min=0, help="After which round; the last closed one when not given.")
    ] = None,
    best: Annotated[
        bool, typer.Option("--best", help="The one that did best on the silos' held-out clips (`evaluation` shows it).")
    ] = False,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Copy a round's model out of the state folder, with its labels and fingerprint inside."""
    from ..admin.report import take_model
    from ..settings import load_coordinator_settings

    if best and round_number is not None:
        raise UsageError("--best and --round were both given", fix="give one of them")
    taken = take_model(load_coordinator_settings(config), out, "best" if best else round_number)
    if not as_json:
        print(f"{out}: model of round {taken['round']} of run '{taken['run']}', {taken['labels']} classes")
    return taken


def _read_labels(labels: str, labels_file: Path | None) -> list[str]:
    if labels and labels_file:
        raise UsageError("--labels and --labels-file were both given", fix="give one of them")
    if labels_file is None:
        return [name.strip() for name in labels.split(",") if name.strip()]
    try:
        lines = labels_file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"cannot read {labels_file}: {error}", fix="expected UTF-8 text, one class name per line"
        ) from error
    return [line.strip() for line in lines if line.strip()]


def _check(config: Path, *, as_json: bool) -> dict[str, Any]:
    """Look at the settings' files too; no network, nothing written."""
    from ...fedproto.tls import check_files
    from ..admin.authority import enrolled, read_silos
    from ..settings import load_coordinator_settings

    settings = load_coordinator_settings(config)
    facts = check_files(settings.server.files)
    silos = enrolled(read_silos(settings.server.silos))
    head = settings.run_settings().head
    if not as_json:
        print(f"{config}: fine")
        print(f"  server for {', '.join(facts.names)}, certificate until {facts.expires:%Y-%m-%d}")
        print(f"  silos: {', '.join(silos) or 'none yet'}")
        print(f"  run '{settings.run.name}': {settings.run.rounds} rounds, head of {head.parameters:,} parameters")
        if settings.run.wanted is not None and settings.run.wanted > len(silos):
            print(
                f"  note: run.wanted is {settings.run.wanted}; with {len(silos)} silos rounds last until the deadline"
            )
    return {"config": str(config), "ok": True, "silos": silos, "parameters": head.parameters}


def main() -> None:
    app()


if __name__ == "__main__":
    main()

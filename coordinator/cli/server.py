"""``flamest-coordinator run``: the server, or a check of its settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...base.console import command, say
from ...base.errors import UsageError
from ...base.options import JsonOption, LogLevelOption
from . import COORDINATOR, ConfigOption, DirOption

if TYPE_CHECKING:
    from ...base.place import Place


@command
@COORDINATOR.errors_name_the_place
def run(
    config: ConfigOption = None,
    folder: DirOption = None,
    check_config: Annotated[
        bool, typer.Option("--check-config", help="Check settings, files and address, and end; nothing is written.")
    ] = False,
    bundle: Annotated[
        Path | None,
        typer.Option(
            "--bundle",
            metavar="DIR",
            help="With --check-config: compare the run with the bundle that the silos use, or with a file of "
            "flamest-export inspect BUNDLE --json.",
        ),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="End when the run has finished and the silos know.")] = False,
    log_level: LogLevelOption = None,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Serve the run of the settings file until stopped (Ctrl-C or SIGTERM); started again, it resumes.

    A finished run is served until stopped, so that every silo can fetch the final model. The event
    `listening` on stderr shows that the server is ready, and at which address.
    """
    from ..settings import load_coordinator_settings

    place = COORDINATOR.place(config, folder)
    if check_config:
        return _check(place, bundle, as_json=as_json)
    if bundle is not None:
        raise UsageError("--bundle compares settings with a bundle", fix="give it with --check-config, or to init")
    settings = load_coordinator_settings(place.path)

    from ...base.log import Log, configure_logging
    from ...base.process import Shutdown, tune_malloc
    from ..admin.config_check import embedding_problems
    from ..serving.server import serve

    shutdown = Shutdown.on_signals()
    configure_logging(settings.log, level=log_level)
    tune_malloc()
    for problem in embedding_problems(settings.run):
        Log("coordinator").warning("unusable_settings", detail=problem, fix="flamest-coordinator run --check-config")
    served = serve(settings, shutdown, once=once)
    state = "finished" if served.finished else f"stopped after {served.closed} of {served.rounds} rounds"
    if not as_json:
        say(f"run '{served.run}' {state}")
        if not served.finished:
            say(place.hint("start it again to resume: flamest-coordinator run"))
        if served.closed:
            say(place.hint("take the model: flamest-coordinator model --out MODEL.safetensors"))
    return {
        "run": served.run,
        "rounds": served.closed,
        "of": served.rounds,
        "finished": served.finished,
        "model_sha256": served.model_sha256,
    }


def _check(place: Place, bundle: Path | None, *, as_json: bool) -> dict[str, Any]:
    """Check the settings and everything that they name; nothing is written."""
    from ..admin.config_check import check_config

    checked = check_config(place.path, bundle)
    run, head = checked.settings.run, checked.settings.run_settings().head
    if not as_json:
        say(f"{place.path}: OK")
        ends = f"{checked.certificate.expires:%Y-%m-%d}"
        say(f"  server for {', '.join(checked.certificate.names)}, certificate until {ends}")
        say(
            f"  a coordinator runs with it at {checked.address}" if checked.address else "  no coordinator runs with it"
        )
        say(f"  silos: {', '.join(checked.silos) or 'none yet'}")
        say(f"  run '{run.name}': {run.rounds} rounds, head of {head.parameters:,} parameters")
        say(f"  embeddings: {run.inputs}-d, of {run.fingerprint}")
        for note in checked.notes:
            say(place.hint(f"  note: {note}"))
    return {
        "config": str(place.path),
        "ok": True,
        "silos": list(checked.silos),
        "parameters": head.parameters,
        "address": checked.address,
        "notes": list(checked.notes),
    }

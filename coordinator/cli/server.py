"""``flamest-coordinator run``: the server, or a check of its settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...base.console import command
from ...base.options import JsonOption, LogLevelOption
from . import ConfigOption


@command
def run(
    config: ConfigOption,
    check_config: Annotated[bool, typer.Option("--check-config", help="Check settings and files, and end.")] = False,
    once: Annotated[bool, typer.Option("--once", help="End when the run has finished and the silos know.")] = False,
    log_level: LogLevelOption = "info",
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Serve the run of the settings file until stopped (Ctrl-C or SIGTERM); started again, it resumes.

    A finished run is served until stopped, so that every silo can fetch the final model. The event
    `listening` on stderr shows that the server is ready, and at which address.
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


def _check(config: Path, *, as_json: bool) -> dict[str, Any]:
    """Check the settings and the files that they name; no network, nothing written."""
    from ...fedproto.tls import check_files
    from ..admin.authority import enrolled, read_silos
    from ..settings import load_coordinator_settings

    settings = load_coordinator_settings(config)
    info = check_files(settings.server.files)
    silos = enrolled(read_silos(settings.server.silos))
    head = settings.run_settings().head
    if not as_json:
        print(f"{config}: OK")
        print(f"  server for {', '.join(info.names)}, certificate until {info.expires:%Y-%m-%d}")
        print(f"  silos: {', '.join(silos) or 'none yet'}")
        print(f"  run '{settings.run.name}': {settings.run.rounds} rounds, head of {head.parameters:,} parameters")
        if settings.run.wanted is not None and settings.run.wanted > len(silos):
            print(
                f"  note: run.wanted is {settings.run.wanted}; with {len(silos)} silos rounds last until the deadline"
            )
    return {"config": str(config), "ok": True, "silos": silos, "parameters": head.parameters}

"""`doctor`: checks of a coordinator's settings, certificates and state, with the command that fixes each problem.

Nothing is changed. Next to a running server everything is checked except what only the server itself can see.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from ...base.errors import FlamestError
from ...base.findings import Finding, State
from ...fedproto.head import params_sha256
from ...fedproto.model_file import read_model
from ...fedproto.tls import WARN_DAYS
from ..serving.health import read_health
from ..settings import CoordinatorSettings, load_coordinator_settings
from ..storage.database import DATABASE_FILE, WriterMark, read_database
from ..storage.last_round import check_last_round
from .authority import check_server_files, ending_soon, enrolled, read_silos
from .config_check import embedding_problems
from .history import History, is_served, served_address
from .status import declines, status_of

WARN_FREE_BYTES = 2 << 30


def examine(config: Path) -> list[Finding]:
    """Run every check in order; without readable settings there is nothing else to check."""
    try:
        settings = load_coordinator_settings(config)
    except FlamestError as error:
        return [Finding("settings", "wrong", error.message, error.fix)]
    restore = f"flamest-coordinator restore --config {config} --from BACKUP"
    found = [_run(settings, config)]
    for name, check in (
        ("certificate", _certificate),
        ("key", _key),
        ("silos", _silos),
        ("state", _state),
        ("database", _database),
        ("model", _model),
        ("server", _server),
        ("quarantine", _quarantine),
        ("rounds", _rounds),
    ):
        found += _run_check(name, check, settings, restore)
    return found


def _run(settings: CoordinatorSettings, config: Path) -> Finding:
    if problems := embedding_problems(settings.run):
        fix = f"edit {config}; flamest-export inspect BUNDLE prints fingerprint and width of the silos' bundle"
        return Finding("settings", "wrong", "; ".join(problems), fix)
    return Finding("settings", "ok", f"run '{settings.run.name}', {settings.run.rounds} rounds")


def _run_check(
    name: str,
    check: Callable[[CoordinatorSettings], Iterator[Finding]],
    settings: CoordinatorSettings,
    restore: str,
) -> list[Finding]:
    """Return the findings of a check; an error that it raises is a finding too."""
    try:
        return list(check(settings))
    except FlamestError as error:
        if error.code == "no_state":
            return [Finding(name, "ok", "not started yet")]
        damaged = name in ("database", "model") and error.code not in ("older_state", "newer_state")
        return [Finding(name, "wrong", error.message, restore if damaged else error.fix)]


def _certificate(settings: CoordinatorSettings) -> Iterator[Finding]:
    info = check_server_files(settings.server.files)
    state: State = "warn" if info.days_left < WARN_DAYS else "ok"
    fix = "flamest-coordinator renew, then SIGHUP (kill -HUP PID)" if state == "warn" else ""
    yield Finding("certificate", state, f"for {', '.join(info.names)}, {info.days_left:.0f} days left", fix)


def _key(settings: CoordinatorSettings) -> Iterator[Finding]:
    key = settings.server.key
    if not key.exists():
        yield Finding("key", "wrong", f"there is no {key}", "put a copy of it back")
        return
    mode = key.stat().st_mode & 0o777
    if mode & 0o077:
        yield Finding("key", "wrong", f"{key} can be read by others (mode {mode:o})", f"chmod 600 {key}")
    else:
        yield Finding("key", "ok", f"mode {mode:o}")


def _silos(settings: CoordinatorSettings) -> Iterator[Finding]:
    silos = read_silos(settings.server.silos)
    names = enrolled(silos)
    for name, entry in ending_soon(silos):
        ends = f"its certificate {'ends' if entry.days_left > 0 else 'ended'} on {entry.expires[:10]}"
        renew = f"flamest-coordinator silo renew {name} --dir {settings.server.silos.parent}"
        yield Finding("silos", "warn", f"silo '{name}': {ends}", f"{renew}; then send it the new files")
    if len(names) < settings.run.min_silos:
        yield Finding(
            "silos",
            "warn",
            f"{len(names)} enrolled, run.min_silos is {settings.run.min_silos}: no round can close",
            "flamest-coordinator silo add NAME --csr NAME.csr",
        )
    else:
        yield Finding("silos", "ok", f"{len(names)} enrolled")


def _state(settings: CoordinatorSettings) -> Iterator[Finding]:
    folder = settings.server.state
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        yield Finding("state", "wrong", f"{there} cannot be written by this user", f"chown or chmod {there}")
        return
    free = shutil.disk_usage(there).free
    health = read_health(folder)
    if is_served(folder) and health.degraded:
        yield Finding(
            "state",
            "wrong",
            f"DEGRADED {health.degraded} since {health.since}: {health.detail}",
            "free space, 2 GB or more",
        )
    elif free < WARN_FREE_BYTES:
        yield Finding("state", "warn", f"{free / 1e9:.2f} GB free in {there}", "free space: 2 GB or more")
    else:
        yield Finding("state", "ok", f"{free / 1e9:.1f} GB free in {there}")


def _database(settings: CoordinatorSettings) -> Iterator[Finding]:
    path = settings.server.state / DATABASE_FILE
    if not is_served(settings.server.state):
        WriterMark(path).check()
    check_last_round(settings.server.state, settings.run.name)
    read_database(path).close()
    yield Finding("database", "ok", "every page is intact, every round that has ended is in it")


def _model(settings: CoordinatorSettings) -> Iterator[Finding]:
    with History.open(settings.server.state, settings.run.name) as history:
        path, number = history.model_file(None)
        row = next((row for row in history.rounds() if row.round == number), None)
    found = params_sha256(read_model(path).params)
    if row is not None and row.model_sha256 != found:
        yield Finding(
            "model",
            "wrong",
            f"{path} is not the model of round {number}",
            "start the server: it resumes from the last intact round, and moves the damaged file to quarantine/",
        )
    else:
        yield Finding("model", "ok", f"round {number}, {found[:12]}…")


def _server(settings: CoordinatorSettings) -> Iterator[Finding]:
    address = served_address(settings.server.state)
    if address:
        yield Finding("server", "ok", f"listens at {address}")
    else:
        yield Finding("server", "warn", "not running", "flamest-coordinator run --config coordinator.toml")


def _quarantine(settings: CoordinatorSettings) -> Iterator[Finding]:
    with History.open(settings.server.state, settings.run.name) as history:
        quarantined = [row for row in history.silos() if row.quarantined]
    for row in quarantined:
        yield Finding(
            "quarantine",
            "warn",
            f"silo '{row.silo}' since {row.quarantined} ({row.last_refusal})",
            f"flamest-coordinator silo release {row.silo}",
        )
    if not quarantined:
        yield Finding("quarantine", "ok", "no silo")


def _rounds(settings: CoordinatorSettings) -> Iterator[Finding]:
    now = status_of(settings)
    silos = [silo for silo in now["silos"] if not silo["quarantined"]]
    last = {silo["declined_round"] for silo in silos}
    if len(last) == 1 and all(map(declines, silos)):
        yield Finding(
            "rounds",
            "warn",
            f"all {len(silos)} silos declined round {last.pop()}",
            "does the run fit their bundle? flamest-coordinator run --check-config --bundle DIR; else at a silo: "
            "flamest-agent status says why",
        )
    else:
        yield Finding("rounds", "ok", f"{now['closed']} of {now['of']} closed")

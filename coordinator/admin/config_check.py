"""The check of a coordinator's settings before it runs: what cannot work is refused, what may surprise is noted."""

from __future__ import annotations

import errno
import os
import socket
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ...base.errors import DataError, LockedError, SettingsError, StorageError
from ...fedproto.fingerprint import fingerprint_problem, imported_width
from ...fedproto.tls import CertificateInfo
from ..settings import CoordinatorSettings, RunTable, load_coordinator_settings, split_listen
from ..storage.recovery import check_same_settings
from .authority import check_server_files, enrolled, read_silos
from .bundle import BundleFacts, read_bundle_facts
from .history import History, is_served, served_address


@dataclass(frozen=True)
class CheckedConfig:
    """Settings that can work, and what is worth knowing about them."""

    settings: CoordinatorSettings
    certificate: CertificateInfo
    silos: tuple[str, ...]  # enrolled
    address: str | None  # of the coordinator that runs with these settings; None: none does
    notes: tuple[str, ...]


def check_config(config: Path, bundle: Path | None = None) -> CheckedConfig:
    """Check settings, files and address; nothing is written, and no silo is asked.

    ``bundle``: the bundle that the silos use, or a file about it (``read_bundle_facts``); fingerprint and width are
    compared with it. Raises SettingsError with every problem of the settings, and the errors of the files:
    DataError, IdentityError, StorageError, LockedError for an address in use.
    """
    facts = None if bundle is None else read_bundle_facts(bundle)
    try:
        settings = load_coordinator_settings(config)
    except SettingsError as error:
        if facts is not None:
            error.fix = f"{error.fix}; for this bundle {_lines(facts)}"
        raise
    if problems := embedding_problems(settings.run, facts):
        raise SettingsError(f"{config}: " + "; ".join(problems), fix=_fix(config, facts))
    certificate = check_server_files(settings.server.files)
    silos = enrolled(read_silos(settings.server.silos))
    _check_state(settings.server.state)
    _check_started_run(settings)
    address = served_address(settings.server.state)
    if not is_served(settings.server.state):
        _check_address(settings.server.listen)
    notes = _notes(settings, silos, compared=facts is not None)
    return CheckedConfig(settings, certificate, tuple(silos), address, tuple(notes))


def embedding_problems(run: RunTable, facts: BundleFacts | None = None) -> list[str]:
    """Return why no silo can train in this run: a fingerprint that none has, a width that does not fit it."""
    if problem := fingerprint_problem(run.fingerprint):
        return [f"run.fingerprint '{run.fingerprint}': {problem}"]
    if facts is not None:
        return facts.problems(run)
    width = imported_width(run.fingerprint)
    if width not in (None, run.inputs):
        return [f"run.inputs = {run.inputs}: the embeddings of {run.fingerprint} are {width}-d"]
    return []


def _fix(config: Path, facts: BundleFacts | None) -> str:
    if facts is None:
        return f"edit {config}; flamest-export inspect BUNDLE prints fingerprint and width of a bundle"
    return f"edit {config}: {_lines(facts)}"


def _lines(facts: BundleFacts) -> str:
    """Return the settings that fit a bundle, as they are typed."""
    blocks = f"; in [run.head] blocks = {list(facts.blocks)}"
    return f'in [run] fingerprint = "{facts.fingerprint}", inputs = {facts.width}{blocks}'


def _check_state(state: Path) -> None:
    """Raise StorageError unless the state folder can be written, or made."""
    there = next(path for path in (state, *state.parents) if path.exists())
    if not there.is_dir():
        raise StorageError(f"server.state: {there} is not a folder", fix="name a folder for the state")
    if not os.access(there, os.W_OK | os.X_OK):
        raise StorageError(f"server.state: {there} cannot be written by this user", fix=f"chown or chmod {there}")


def _check_started_run(settings: CoordinatorSettings) -> None:
    """Raise SettingsError (``other_settings``) for a run that has begun with other settings; read only."""
    run = settings.run_settings()
    try:
        with History.open(settings.server.state, run.run) as history:
            started = history.settings()
    except DataError as error:
        if error.code not in ("no_state", "older_state"):  # never started; migrated by the next start
            raise
    else:
        if started is not None:
            check_same_settings(run, started)


def _check_address(listen: str) -> None:
    """Raise unless a server can listen there now. ``listen``: address:port, or [v6]:port."""
    host, port = split_listen(listen)
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:  # socket.gaierror is one
        if error.errno == errno.EADDRINUSE:
            raise LockedError(
                f"server.listen {listen}: another program listens there",
                fix="stop it, or choose another port in server.listen",
            ) from error
        raise SettingsError(
            f"server.listen {listen}: no server can listen there ({error.strerror})",
            fix='an address of this machine, or "0.0.0.0:7443" for all of them',
        ) from error


def _notes(settings: CoordinatorSettings, silos: list[str], *, compared: bool) -> list[str]:
    """Return what works, and may still surprise."""
    run, notes = settings.run, []
    if run.wanted is not None and run.wanted > len(silos):
        notes.append(f"run.wanted is {run.wanted}; with {len(silos)} silos rounds last until the deadline")
    if run.min_silos > len(silos):
        notes.append(f"run.min_silos is {run.min_silos}, {len(silos)} enrolled: no round can close yet")
    alike = Counter(label.strip().casefold() for label in run.labels)
    if same := [label for label, times in alike.items() if times > 1]:
        notes.append(f"run.labels: '{same[0]}' is there in two spellings, which are two classes")
    if padded := [label for label in run.labels if label != label.strip()]:
        notes.append(f"run.labels: '{padded[0]}' has spaces around it; a silo's folder must have them too")
    if not compared and imported_width(run.fingerprint) is None:
        notes.append(f"run.inputs = {run.inputs} is not compared with the bundle: --bundle DIR does that")
    if run.final_evaluation == "none":
        notes.append('run.final_evaluation is "none": the accuracy of the last model will not be known')
    return notes

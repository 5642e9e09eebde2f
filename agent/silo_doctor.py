"""The checks of `flamest-agent doctor` next to an agent.toml: settings, certificate, data, coordinator, daemon.

Nothing is changed, and the coordinator is not shown this silo's certificate: ``run --check-config`` joins it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..base.errors import FlamestError
from ..fedproto.tls import WARN_DAYS, certificate_silo, check_files
from .config_check import clip_warnings
from .handshake import connection_problem, key_warning
from .settings import AgentSettings, check_enrolled, check_inputs, load_agent_settings
from .status import is_alive, renewal_fix

State = Literal["ok", "warn", "wrong"]


@dataclass(frozen=True)
class SiloFinding:
    """Result of one check."""

    check: str
    state: State
    detail: str
    fix: str = ""


def examine_silo(config: Path) -> list[SiloFinding]:
    """Run every check in order; without readable settings there is nothing else to check."""
    try:
        settings = load_agent_settings(config)
    except FlamestError as error:
        return [SiloFinding("settings", "wrong", error.message, error.fix)]
    found = [SiloFinding("settings", "ok", str(config))]
    checks: tuple[tuple[str, Callable[[AgentSettings], Iterator[SiloFinding]]], ...] = (
        ("certificate", _certificate),
        ("data", _data),
        ("coordinator", _coordinator),
        ("daemon", _daemon),
    )
    for name, check in checks:
        try:
            found += check(settings)
        except FlamestError as error:
            found.append(SiloFinding(name, "wrong", error.message, error.fix))
    return found


def _certificate(settings: AgentSettings) -> Iterator[SiloFinding]:
    check_enrolled(settings.coordinator)
    info = check_files(settings.coordinator.files)
    silo = certificate_silo(settings.coordinator.certificate)
    ending = info.days_left < WARN_DAYS
    detail = f"of silo '{silo}', until {info.expires:%Y-%m-%d}, {info.days_left:.0f} days left"
    yield SiloFinding("certificate", "warn" if ending else "ok", detail, renewal_fix(silo) if ending else "")
    if problem := key_warning(settings.coordinator.key):
        detail, _, fix = problem.partition(": ")
        yield SiloFinding("key", "warn", detail, fix)


def _data(settings: AgentSettings) -> Iterator[SiloFinding]:
    check_inputs(settings)
    warnings = clip_warnings(settings)
    source = f"videos {settings.videos}" if settings.videos is not None else f"store {settings.store}"
    unchanged = "" if settings.bundle is None else f"; every file of {settings.bundle} is as exported"
    yield SiloFinding("data", "ok", source + unchanged)
    for warning in warnings:
        yield SiloFinding("data", "warn", warning)


def _coordinator(settings: AgentSettings) -> Iterator[SiloFinding]:
    address = settings.coordinator.address
    if reason := connection_problem(address):
        fix = "check coordinator.address and this machine's network, or ask the operator if the coordinator runs"
        yield SiloFinding("coordinator", "wrong", f"{address} does not answer: {reason}", fix)
        return
    yield SiloFinding("coordinator", "ok", f"{address} answers; flamest-agent run --check-config joins its run")


def _daemon(settings: AgentSettings) -> Iterator[SiloFinding]:
    if is_alive(settings.state):
        yield SiloFinding("daemon", "ok", "running; flamest-agent status says what it does")
    else:
        yield SiloFinding("daemon", "warn", "not running", "flamest-agent run")

"""The checks of `flamest-agent doctor` next to an agent.toml: settings, certificate, data, coordinator, daemon.

Nothing is changed, and the coordinator is not shown this silo's certificate: ``run --check-config`` joins it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from ..base.errors import FlamestError
from ..base.findings import Finding
from ..fedproto.tls import WARN_DAYS, certificate_silo, check_files
from .config_check import clip_warnings
from .handshake import connection_problem, key_warning
from .settings import AgentSettings, check_enrolled, check_inputs, load_agent_settings
from .status import is_alive, renewal_fix


def examine_silo(config: Path) -> list[Finding]:
    """Run every check in order; without readable settings there is nothing else to check."""
    try:
        settings = load_agent_settings(config)
    except FlamestError as error:
        return [Finding("settings", "wrong", error.message, error.fix)]
    found = [Finding("settings", "ok", str(config))]
    checks: tuple[tuple[str, Callable[[AgentSettings], Iterator[Finding]]], ...] = (
        ("certificate", _certificate),
        ("data", _data),
        ("coordinator", _coordinator),
        ("daemon", _daemon),
    )
    for name, check in checks:
        try:
            found += check(settings)
        except FlamestError as error:
            found.append(Finding(name, "wrong", error.message, error.fix))
    return found


def _certificate(settings: AgentSettings) -> Iterator[Finding]:
    check_enrolled(settings.coordinator)
    info = check_files(settings.coordinator.files)
    silo = certificate_silo(settings.coordinator.certificate)
    ending = info.days_left < WARN_DAYS
    detail = f"of silo '{silo}', until {info.expires:%Y-%m-%d}, {info.days_left:.0f} days left"
    yield Finding("certificate", "warn" if ending else "ok", detail, renewal_fix(silo) if ending else "")
    if problem := key_warning(settings.coordinator.key):
        detail, _, fix = problem.partition(": ")
        yield Finding("key", "warn", detail, fix)


def _data(settings: AgentSettings) -> Iterator[Finding]:
    check_inputs(settings)
    warnings = clip_warnings(settings)
    source = f"videos {settings.videos}" if settings.videos is not None else f"store {settings.store}"
    unchanged = "" if settings.bundle is None else f"; every file of {settings.bundle} is as exported"
    yield Finding("data", "ok", source + unchanged)
    for warning in warnings:
        yield Finding("data", "warn", warning)


def _coordinator(settings: AgentSettings) -> Iterator[Finding]:
    address = settings.coordinator.address
    if reason := connection_problem(address):
        fix = "check coordinator.address and this machine's network, or ask the operator if the coordinator runs"
        yield Finding("coordinator", "wrong", f"{address} does not answer: {reason}", fix)
        return
    yield Finding("coordinator", "ok", f"{address} answers; flamest-agent run --check-config joins its run")


def _daemon(settings: AgentSettings) -> Iterator[Finding]:
    if is_alive(settings.state):
        yield Finding("daemon", "ok", "running; flamest-agent status says what it does")
    else:
        yield Finding("daemon", "warn", "not running", "flamest-agent run")

"""The server process: listen, end rounds when it is time, stop cleanly when asked to."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...base.clock import ClockWatch
from ...base.errors import FlamestError, LockedError, StorageError
from ...base.files import write_atomic
from ...base.log import Log
from ...base.process import Shutdown
from ...fedproto import calls
from ...fedproto.certificates import require_package
from ...fedproto.tls import WARN_DAYS, ServerTls
from ..admin.authority import AllowList, check_server_files, ending_soon
from ..settings import CoordinatorSettings, split_listen
from ..storage.run_store import RunStore
from .active_run import ServerPolicy
from .attendance import Attendance, write_attendance
from .connection_limits import ConnectionLimits
from .connections import ConnectionGuard
from .health import create_health_file, write_health
from .run_service import RunService
from .service import Service
from .sockets import raise_descriptor_limit

if TYPE_CHECKING:
    import grpc.aio

log = Log("coordinator")

WATCH_S = 0.2  # the longest that the loop sleeps before it checks for a signal
DISK_RETRY_S = 1.0
ONCE_LINGER_S = 1.0  # with --once: time for silos to fetch the final model after they know
ATTENDANCE_S = 1.0  # between two writings of it
STOP_GRACE_S = 5.0  # for calls in flight at the end
WARN_EVERY_S = 86400.0  # of certificates that end soon


@dataclass(frozen=True)
class Served:
    """The state of the run when the server stopped."""

    run: str
    closed: int
    rounds: int
    model_sha256: str

    @property
    def finished(self) -> bool:
        return self.closed >= self.rounds


def serve(settings: CoordinatorSettings, shutdown: Shutdown, *, once: bool = False) -> Served:
    """Serve the run until ``shutdown``, or with ``once`` until it has finished and every silo knows.

    Raises LockedError when the state folder or the port is in use, SettingsError, IdentityError and
    DataError for files that cannot be used.
    """
    for package in ("grpc", "google.protobuf", "apsw"):
        require_package(package, extra="coordinator")
    calls.silence_grpc()
    check_server_files(settings.server.files)
    allow_list = AllowList(settings.server.silos)
    guard = ConnectionGuard(ConnectionLimits.of(raise_descriptor_limit(), len(allow_list.names())))
    with RunStore.open(
        settings.server.state, settings.run_settings(), keep_models=settings.server.keep_models
    ) as store:
        return asyncio.run(_serve(settings, store, allow_list, guard, shutdown, once))


async def _serve(
    settings: CoordinatorSettings,
    store: RunStore,
    allow_list: AllowList,
    guard: ConnectionGuard,
    shutdown: Shutdown,
    once: bool,
) -> Served:
    server_policy = ServerPolicy(settings.run.wanted, settings.run.wanted_share, settings.checks)
    run_service = RunService(settings.run_settings(), store, server_policy, enrolled=allow_list.names)
    warning = asyncio.create_task(_warn_daily(settings, allow_list))
    try:
        tls = ServerTls(settings.server.files)
        server, port = await _listen(settings, Service(run_service, allow_list, guard), tls, guard.limits)
        guard.start(port)
        address = f"{split_listen(settings.server.listen)[0]}:{port}"
        address_file = settings.server.state / "address"
        create_health_file(settings.server.state)
        write_atomic(address_file, f"{address}\n".encode())
        log.info(
            "listening",
            address=address,
            run=run_service.run.run,
            silos=len(allow_list.names()),
            connections=guard.limits.connections,
            closed=run_service.state.closed,
        )
        try:
            await _end_rounds(run_service, settings.server.state, shutdown, tls, once=once)
        finally:
            log.info("stopping", closed=run_service.state.closed)
            await run_service.stop()
            await server.stop(STOP_GRACE_S)
            guard.stop()
            with contextlib.suppress(OSError):
                address_file.unlink()
    finally:
        warning.cancel()
        run_service.close()
    state = run_service.state
    return Served(run_service.run.run, state.closed, state.policy.rounds, state.model_sha256)


async def _listen(
    settings: CoordinatorSettings, service: Service, tls: ServerTls, limits: ConnectionLimits
) -> tuple[grpc.aio.Server, int]:
    import grpc.aio

    server = grpc.aio.server(
        options=calls.server_options(limits.connections)
    )  # calls are counted once their caller is known
    server.add_generic_rpc_handlers(service.handlers())
    try:
        port = server.add_secure_port(settings.server.listen, tls.credentials())
    except RuntimeError as error:
        raise LockedError(
            f"cannot listen on {settings.server.listen}: the port is in use, or the address is not this machine's",
            fix="stop the program that listens there, or change server.listen",
        ) from error
    await server.start()
    return server, port


async def _end_rounds(run_service: RunService, state: Path, shutdown: Shutdown, tls: ServerTls, *, once: bool) -> None:
    """End each round when it is time, until asked to stop."""
    degraded = False
    known, written_at = Attendance(), -ATTENDANCE_S
    finished_at: float | None = None
    clock = ClockWatch()
    while not shutdown.requested:
        if moved := clock.jump():
            log.warning(
                "clock_moved",
                seconds=round(moved, 1),
                fix="none needed: deadlines do not depend on it; times in the history do",
            )
            run_service.note_clock_jump(moved)
        if shutdown.take_reload():
            _reload(tls)
        try:
            await run_service.tick()
            if degraded:
                log.info("recovered")
                write_health(state, None)
            degraded = False
        except StorageError as error:
            if not degraded:
                log.error("degraded", code=error.code, detail=error.message, fix=error.fix)
                write_health(state, error)
            degraded = True
            await asyncio.sleep(DISK_RETRY_S)
        if run_service.attendance != known and time.monotonic() - written_at >= ATTENDANCE_S:
            known, written_at = run_service.attendance, time.monotonic()
            await asyncio.to_thread(write_attendance, state, known)
        if once and run_service.state.open is None:
            finished_at = finished_at or time.monotonic()
            if run_service.all_notified or time.monotonic() - finished_at > run_service.grace_s:
                await asyncio.sleep(ONCE_LINGER_S)
                return
        await run_service.round_may_end(WATCH_S)


async def _warn_daily(settings: CoordinatorSettings, allow_list: AllowList) -> None:
    """Log the certificates that end soon, the server's and the silos', at the start and once a day."""
    while True:
        with contextlib.suppress(FlamestError):  # files that cannot be read: calls and SIGHUP report them
            left = check_server_files(settings.server.files).days_left
            if left < WARN_DAYS:
                log.warning("certificate_expires", days=round(left), fix="flamest-coordinator renew")
            for name, entry in ending_soon(allow_list.silos()):
                fix = f"flamest-coordinator silo renew {name}"
                log.warning("silo_certificate_expires", silo=name, days=round(entry.days_left), fix=fix)
        await asyncio.sleep(WARN_EVERY_S)


def _reload(tls: ServerTls) -> None:
    """After SIGHUP, use the new certificate files for new handshakes; keep the old ones if they cannot be used."""
    try:
        facts = tls.reload()
    except FlamestError as error:
        log.error("certificate_reload_failed", code=error.code, detail=error.message, fix=error.fix)
    else:
        log.info("certificates_reloaded", days=round(facts.days_left))

"""The gRPC calls: identity first, then bytes in, a question to the run service, bytes or a refusal out.

The caller's name comes from its certificate and is looked up in the allow-list before a message is waited for: every
method is served as a stream, which calls of one message cannot distinguish on the wire. Messages are parsed here and
not by gRPC, so that a malformed one is INVALID_ARGUMENT.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, cast

from ...base.errors import DataError, FlamestError, IdentityError
from ...base.log import LimitedLog
from ...fedproto import calls, messages
from ...fedproto.records import PROTOCOL
from ...fedproto.tensors import payload_bytes
from ...fedproto.tls import certificate_sha256, check_not_expired, silo_name
from ..admin.authority import AllowList
from .call import Call, Connections, NoConnections, refuse
from .limits import CallRates, CallShares, SiloPlaces
from .run_service import RunService

if TYPE_CHECKING:
    import grpc

    from .call import Context

Answer = Callable[[Call], Awaitable[None]]

log = LimitedLog("coordinator")

HEALTH_CHECK = "/grpc.health.v1.Health/Check"  # https://github.com/grpc/grpc/blob/master/doc/health-checking.md
HEALTH_QUESTIONS = (b"", b"\x0a" + bytes([len(calls.SERVICE)]) + calls.SERVICE.encode())  # HealthCheckRequest.service
SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"  # HealthCheckResponse.status
PROBE, REFUSED = "a probe", "a refused caller"  # whose calls these are in the limits; names of silos have no spaces

REQUESTS_PER_SILO = 2  # messages that are being received for calls of one message, 2 MiB each at most
FETCHES_PER_SILO = 2  # models under way, each with one piece in memory; an agent fetches one


class Service:
    """Handlers of the calls; all state is in the run service and the allow-list."""

    def __init__(self, run_service: RunService, allow_list: AllowList, connections: Connections | None = None) -> None:
        self._run_service = run_service
        self._allow_list = allow_list
        self._connections = connections or NoConnections()
        self._rates = CallRates()
        self._shares = CallShares()
        self._requests = SiloPlaces(REQUESTS_PER_SILO)
        self._fetches = SiloPlaces(FETCHES_PER_SILO)
        self._answers: dict[str, Answer] = {
            calls.method_path(calls.JOIN): self._join,
            calls.method_path(calls.WAIT_FOR_ROUND): self._wait_for_round,
            calls.method_path(calls.FETCH_MODEL): self._fetch_model,
            calls.method_path(calls.SUBMIT_UPDATE): self._submit_update,
            calls.method_path(calls.REPORT_EVALUATION): self._report_evaluation,
            calls.method_path(calls.REPORT_CALIBRATION): self._report_calibration,
            HEALTH_CHECK: self._check_health,
        }

    def handlers(self) -> tuple[grpc.GenericRpcHandler[Any, Any], ...]:
        """Return the handlers of every path: the caller of one that does not exist is identified like any other."""
        return (cast("grpc.GenericRpcHandler[Any, Any]", _EveryPath(self._serve)),)

    async def _serve(self, path: str, context: Context) -> None:
        """Identify the caller, count the call, and answer it."""
        try:
            caller = self._caller(context, path)
        except IdentityError as error:
            peer = context.peer()
            self._connections.refused(peer)
            log.warning("caller_refused", who=_named(context), code=error.code, peer=peer, detail=error.message)
            await self._rates.within(REFUSED)
            await refuse(context, error, self._connections)
        except FlamestError as error:
            log.error("call_failed", who="", code=error.code, detail=error.message)
            await refuse(context, error, self._connections)
        try:
            if not await self._rates.within(caller):
                raise DataError(f"silo '{caller}' calls faster than an agent does", code="too_many_calls")
            with self._shares.call(caller):
                try:
                    await self._answers.get(path, _unknown)(Call(context, caller, self._connections))
                except FlamestError as error:
                    if not isinstance(error, DataError):
                        log.error("call_failed", who=caller, silo=caller, code=error.code, detail=error.message)
                    await refuse(context, error, self._connections)  # its share is taken until the refusal has left
        except DataError as error:
            log.warning("call_refused", who=caller, silo=caller, code=error.code, detail=error.message)
            await refuse(context, error, self._connections)

    def _caller(self, context: Context, path: str) -> str:
        """Return the calling silo. Raises IdentityError unless its certificate is the one on the allow-list.

        The health check may be asked for with a certificate of the authority that names no silo, too.
        """
        identity = context.auth_context()
        check_not_expired(identity)
        try:
            silo = silo_name(identity)
        except IdentityError:
            if path == HEALTH_CHECK and certificate_sha256(identity):
                self._connections.identified(context.peer(), PROBE)
                return PROBE
            raise
        self._allow_list.check(silo, certificate_sha256(identity))
        self._connections.identified(context.peer(), silo)
        return silo

    async def _request(self, call: Call) -> bytes:
        """Return the message of a call that has one. Raises DataError (``too_slow``, ``malformed``)."""
        async with call.time_limit(calls.CALL_S), self._requests.of(call.silo):
            return await call.request()

    async def _join(self, call: Call) -> None:
        asked = messages.decode_join_request(await self._request(call))
        if asked != PROTOCOL:
            raise DataError(f"this coordinator speaks protocol {PROTOCOL}, the agent {asked}", code="protocol")
        log.info("joined", who=call.silo, silo=call.silo)
        await call.reply(messages.encode_join_reply(PROTOCOL, self._run_service.run))

    async def _wait_for_round(self, call: Call) -> None:
        request = messages.decode_wait_request(await self._request(call))
        await call.reply(messages.encode_task_status(await self._run_service.wait(call.silo, request)))

    async def _fetch_model(self, call: Call) -> None:
        request = messages.decode_fetch_request(await self._request(call))
        seconds = calls.transfer_s(payload_bytes(self._run_service.run.head))
        async with call.time_limit(seconds), self._fetches.of(call.silo), self._run_service.transfers.place():
            async for part in self._run_service.model_parts(call.silo, request):
                self._run_service.count_sent(call.silo, len(part))
                await call.send(part)

    async def _submit_update(self, call: Call) -> None:
        receipt = await self._run_service.updates.submit(call.silo, call.parts(), call.gone)
        await call.reply(messages.encode_receipt(receipt))

    async def _report_evaluation(self, call: Call) -> None:
        report = messages.decode_evaluation_report(await self._request(call))
        receipt = await self._run_service.final_evaluation.report(call.silo, report)
        await call.reply(messages.encode_evaluation_receipt(receipt))

    async def _report_calibration(self, call: Call) -> None:
        report = messages.decode_calibration_report(await self._request(call))
        round_number = await self._run_service.final_calibration.report(call.silo, report)
        await call.reply(messages.encode_calibration_receipt(round_number))

    async def _check_health(self, call: Call) -> None:
        """grpc.health.v1.Health/Check, for load balancers and probes with a certificate of the authority."""
        if await self._request(call) not in HEALTH_QUESTIONS:
            raise DataError(f"known services: '' and {calls.SERVICE}", code="unknown_service")
        await call.reply(SERVING if self._run_service.serving else NOT_SERVING)


def _named(context: Context) -> str:
    """Return the name in a refused caller's certificate, for the log; names are few, addresses may be many."""
    try:
        return silo_name(context.auth_context())
    except IdentityError:
        return ""


async def _unknown(call: Call) -> None:
    raise DataError("this coordinator has no such call", code="unknown_call")


class _EveryPath:
    """A grpc.GenericRpcHandler; grpc is imported only where it is used."""

    def __init__(self, serve: Callable[[str, Context], Awaitable[None]]) -> None:
        self._serve = serve

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        import grpc

        path = details.method

        async def handler(_: object, context: Context) -> None:
            await self._serve(path, context)

        return grpc.stream_stream_rpc_method_handler(handler)

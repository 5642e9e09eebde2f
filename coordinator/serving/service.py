"""The gRPC calls: bytes in, a question to the run service, bytes or a refusal out.

The caller's name comes from its certificate and is looked up in the allow-list before the message is
parsed. Messages are parsed here and not by gRPC, so that a malformed one is INVALID_ARGUMENT.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

from ...base.errors import DataError, FlamestError, IdentityError, StorageError
from ...base.log import Log
from ...fedproto import calls, messages
from ...fedproto.records import PROTOCOL
from ...fedproto.tls import certificate_sha256, check_not_expired, silo_name
from ..admin.authority import AllowList
from .run_service import RunService

if TYPE_CHECKING:
    import grpc
    import grpc.aio

    Context = grpc.aio.ServicerContext[bytes, bytes]

log = Log("coordinator")

HEALTH_SERVICE = "grpc.health.v1.Health"  # https://github.com/grpc/grpc/blob/master/doc/health-checking.md
HEALTH_QUESTIONS = (b"", b"\x0a" + bytes([len(calls.SERVICE)]) + calls.SERVICE.encode())  # HealthCheckRequest.service
SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"  # HealthCheckResponse.status

STATUS = {
    # code of the refusal -> gRPC status; any other DataError is INVALID_ARGUMENT
    "protocol": "FAILED_PRECONDITION",
    "other_run": "FAILED_PRECONDITION",
    "stale_round": "FAILED_PRECONDITION",
    "stale_base": "FAILED_PRECONDITION",
    "late": "FAILED_PRECONDITION",
    "not_shared": "FAILED_PRECONDITION",
    "duplicate_identity": "ALREADY_EXISTS",
    "too_many_calls": "RESOURCE_EXHAUSTED",
    "quarantined": "FAILED_PRECONDITION",
    "already_answered": "ALREADY_EXISTS",
    "reused_id": "ALREADY_EXISTS",
    "payload_digest": "DATA_LOSS",
    "too_slow": "DEADLINE_EXCEEDED",
    "no_silo_name": "UNAUTHENTICATED",
    "no_certificate": "UNAUTHENTICATED",
    "expired": "UNAUTHENTICATED",
}


class Service:
    """Handlers of the calls; all state is in the run service and the allow-list."""

    def __init__(self, run_service: RunService, allow_list: AllowList) -> None:
        self._run_service = run_service
        self._allow_list = allow_list
        self._calls: Counter[str] = Counter()  # calls under way, by silo

    def handlers(self) -> tuple[grpc.GenericRpcHandler[Any, Any], ...]:
        """Return the coordinator's calls and the health check, without gRPC's own parsing."""
        import grpc

        health = grpc.method_handlers_generic_handler(
            HEALTH_SERVICE, {"Check": grpc.unary_unary_rpc_method_handler(self.check_health)}
        )
        ours = grpc.method_handlers_generic_handler(
            calls.SERVICE,
            {
                calls.JOIN: grpc.unary_unary_rpc_method_handler(self.join),
                calls.WAIT_FOR_ROUND: grpc.unary_unary_rpc_method_handler(self.wait_for_round),
                calls.FETCH_MODEL: grpc.unary_stream_rpc_method_handler(self.fetch_model),
                calls.SUBMIT_UPDATE: grpc.stream_unary_rpc_method_handler(self.submit_update),
                calls.REPORT_EVALUATION: grpc.unary_unary_rpc_method_handler(self.report_evaluation),
            },
        )
        return ours, health

    async def join(self, request: bytes, context: Context) -> bytes:
        try:
            with self._call(context) as silo:
                asked = messages.decode_join_request(request)
                if asked != PROTOCOL:
                    raise DataError(f"this coordinator speaks protocol {PROTOCOL}, the agent {asked}", code="protocol")
                log.info("joined", silo=silo)
                return messages.encode_join_reply(PROTOCOL, self._run_service.run)
        except FlamestError as error:
            await refuse(context, error)

    async def wait_for_round(self, request: bytes, context: Context) -> bytes:
        try:
            with self._call(context) as silo:
                return messages.encode_task_status(
                    await self._run_service.wait(silo, messages.decode_wait_request(request))
                )
        except FlamestError as error:
            await refuse(context, error)

    async def fetch_model(self, request: bytes, context: Context) -> AsyncIterator[bytes]:
        try:
            with self._call(context) as silo:
                parts = await self._run_service.model_parts(silo, messages.decode_fetch_request(request))
                async with self._run_service.transfers.place():
                    for part in parts:
                        self._run_service.count_sent(silo, len(part))
                        yield part
        except FlamestError as error:
            await refuse(context, error)

    async def submit_update(self, parts: AsyncIterator[bytes], context: Context) -> bytes:
        try:
            with self._call(context) as silo:
                return messages.encode_receipt(
                    await self._run_service.updates.submit(silo, parts, lambda: _gone(context))
                )
        except FlamestError as error:
            await refuse(context, error)

    async def report_evaluation(self, request: bytes, context: Context) -> bytes:
        try:
            with self._call(context) as silo:
                report = messages.decode_evaluation_report(request)
                receipt = await self._run_service.final_evaluation.report(silo, report)
                return messages.encode_evaluation_receipt(receipt)
        except FlamestError as error:
            await refuse(context, error)

    async def check_health(self, request: bytes, context: Context) -> bytes:
        """grpc.health.v1.Health/Check, for load balancers and probes with a certificate of the authority."""
        if request not in HEALTH_QUESTIONS:
            import grpc

            await context.abort(grpc.StatusCode.NOT_FOUND, f"known services: '' and {calls.SERVICE}")
        return SERVING if self._run_service.serving else NOT_SERVING

    @contextlib.contextmanager
    def _call(self, context: Context) -> Iterator[str]:
        """Yield the calling silo, while its call is under way. Raises IdentityError, DataError (``too_many_calls``)."""
        silo = self._caller(context)
        if self._calls[silo] >= calls.MAX_CALLS_PER_SILO:
            raise DataError(
                f"silo '{silo}' has {calls.MAX_CALLS_PER_SILO} calls under way, more than an agent needs",
                code="too_many_calls",
            )
        self._calls[silo] += 1
        try:
            yield silo
        finally:
            self._calls[silo] -= 1

    def _caller(self, context: Context) -> str:
        """Return the calling silo; IdentityError unless its certificate is the one on the allow-list."""
        identity = context.auth_context()
        silo = silo_name(identity)
        check_not_expired(identity)
        self._allow_list.check(silo, certificate_sha256(identity))
        return silo


async def _gone(context: Context) -> bool:
    """Return whether the caller's connection is lost. gRPC then only ends the stream; an attempt to send shows it."""
    from grpc.aio import BaseError

    try:
        await context.send_initial_metadata(())
    except BaseError:
        return True
    return False


async def refuse(context: Context, error: FlamestError) -> NoReturn:
    """End the call with the status, the code and the message of ``error``."""
    import grpc

    status = grpc.StatusCode[_status(error)]
    if isinstance(error, IdentityError):
        log.warning("caller_refused", code=error.code, detail=error.message)
    elif not isinstance(error, DataError):
        log.error("call_failed", code=error.code, detail=error.message)
    await context.abort(status, error.message, ((calls.CODE_KEY, error.code),))
    raise AssertionError("abort() does not return")


def _status(error: FlamestError) -> str:
    if isinstance(error, StorageError):
        return "UNAVAILABLE"  # a full disk, for example: the silo tries again
    if isinstance(error, IdentityError):
        return STATUS.get(error.code, "PERMISSION_DENIED")
    if isinstance(error, DataError):
        return STATUS.get(error.code, "INVALID_ARGUMENT")
    return "INTERNAL"

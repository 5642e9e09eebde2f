"""The silo's connection to its coordinator. The only module of the agent that opens a socket.

Every call is bounded in time and tried again, with pauses that grow and vary, while that can help.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np

from ..base.errors import DataError, IdentityError
from ..base.process import Shutdown
from ..fedproto import channel as wire
from ..fedproto import messages
from ..fedproto.certificates import require_package
from ..fedproto.codecs import apply_delta, check_size
from ..fedproto.head import Params, ParamsDigest, initial_params, params_sha256
from ..fedproto.records import PROTOCOL, GlobalModel, Receipt, RunSettings, SubjectEvaluation, TaskStatus, Update
from ..fedproto.tensors import chunks, decode_params, param_views, payload_bytes, shapes
from ..fedproto.tls import TlsFiles, certificate_silo, channel_credentials, check_dates, check_files, file_stamps
from .client_errors import ClientStopped, DuplicateIdentity, RunChanged, StaleUpdate, handshake_problem, split_address
from .retry import Backoff, RetryPolicy

if TYPE_CHECKING:
    import grpc

__all__ = [
    "Backoff",
    "ClientStopped",
    "ConnectionSettings",
    "CoordinatorClient",
    "DuplicateIdentity",
    "EgressHooks",
    "RunChanged",
    "StaleUpdate",
]


class EgressHooks(NamedTuple):
    """Whom to ask before something of this silo is sent: what they raise stops it. With the message as it will go."""

    update: Callable[[messages.UpdateHeader, bytes], None]
    evaluation: Callable[[messages.EvaluationReport, bytes], None]
    certificate: Callable[[ConnectionSettings], None]  # another one than the link began with


class ConnectionSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[coordinator] in agent.toml: where it is, and this silo's identity."""

    address: str  # host:port
    ca: Path  # PEM, from the operator
    certificate: Path  # PEM, from the operator
    key: Path  # PEM, made here by keygen

    @property
    def files(self) -> TlsFiles:
        return TlsFiles(self.ca, self.certificate, self.key)


class CoordinatorClient:
    """A silo's connection to its coordinator, used by one thread.

    ``with CoordinatorClient.open(settings) as client: run = client.join() …``


    Every call may raise UnreachableError (its patience is over), IdentityError (refused: a person must
    act), RunChanged (join again), LinkStopped (the process was asked to end) and DataError (the other
    side's message makes no sense, or ours was refused).
    """

    def __init__(
        self,
        settings: ConnectionSettings,
        retry: Backoff,
        shutdown: Shutdown | None,
        leaving: EgressHooks | None,
    ) -> None:
        self._settings = settings
        self._retry = retry
        self._shutdown = shutdown
        self._leaving = leaving
        self._mark = file_stamps(settings.files)  # before they are read: what comes later is a change
        self.certificate = check_files(settings.files)
        self._credentials = channel_credentials(settings.files)
        self._channel = self._new_channel()
        self._patience = RetryPolicy(settings.address, retry, shutdown, self._handshake_problem)
        self.silo = certificate_silo(settings.certificate)
        self._held: tuple[str, Params] | None = None  # the last model and its hash, in a run with a lossy codec
        self.sent_bytes = 0  # protobuf messages, every attempt counted; TLS and HTTP/2 come on top
        self.received_bytes = 0

    @classmethod
    def open(
        cls,
        settings: ConnectionSettings,
        *,
        shutdown: Shutdown | None = None,
        retry: Backoff | None = None,
        leaving: EgressHooks | None = None,
    ) -> CoordinatorClient:
        """Check this silo's files and make ready to connect; the first call connects.

        With ``shutdown``, a call that waits ends with LinkStopped soon after the process is asked to end. ``leaving``
        is asked before the first byte of an update or an evaluation is sent.
        Raises SettingsError, DataError or IdentityError for files that cannot work.
        """
        require_package("grpc")
        wire.silence_grpc()
        split_address(settings.address)
        if retry is None:
            retry = Backoff() if shutdown is None else Backoff(sleep=shutdown.wait)
        return cls(settings, retry, shutdown, leaving)

    def reopen(self) -> None:
        """Go on with the files as they are now, as soon as the coordinator has answered over them.

        Raises what ``open`` and ``join`` raise, and IdentityError (``other_silo``); then this link goes on as it was.
        """
        with CoordinatorClient.open(self._settings, shutdown=self._shutdown, retry=self._retry) as fresh:
            if fresh.silo != self.silo:
                raise IdentityError(
                    f"{self._settings.certificate} is of silo '{fresh.silo}', this agent is '{self.silo}'",
                    fix="put this silo's certificate there; for another silo start an agent of its own",
                    code="other_silo",
                )
            if self._leaving is not None:
                self._leaving.certificate(self._settings)
            fresh.join()
            self._mark, self.certificate, self._credentials = fresh._mark, fresh.certificate, fresh._credentials
            self._channel, fresh._channel = fresh._channel, self._channel  # the old one is closed with ``fresh``
            self.sent_bytes += fresh.sent_bytes
            self.received_bytes += fresh.received_bytes

    def redial(self) -> None:
        """A new connection with the files as they were read, in place of one that no one answers."""
        self._channel.close()
        self._channel = self._new_channel()

    def _new_channel(self) -> grpc.Channel:
        import grpc

        return grpc.secure_channel(self._settings.address, self._credentials, options=wire.client_options())

    def _handshake_problem(self) -> IdentityError | None:
        """Why no handshake succeeds. Files that are no longer those in use would explain another one."""
        try:
            check_dates(self.certificate, self._settings.certificate)
        except IdentityError as ended:
            return ended
        if self.files_changed:
            return None
        return handshake_problem(self._settings.address, self._settings.files)

    @property
    def files_changed(self) -> bool:
        """Whether certificate, key or authority were replaced since this link read them; costs three stat()."""
        return file_stamps(self._settings.files) != self._mark

    @property
    def losses(self) -> int:
        """Times that the coordinator did not answer."""
        return self._patience.losses

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> CoordinatorClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def join(self) -> RunSettings:
        """The settings of the run that the coordinator serves."""
        self._held = None  # it may be another run
        reply = self._ask(wire.JOIN, messages.encode_join_request(PROTOCOL), wire.CALL_S)
        protocol, run = messages.decode_join_reply(reply)
        if protocol != PROTOCOL:
            raise DataError(
                f"the coordinator speaks protocol {protocol}, this agent {PROTOCOL}",
                fix="install the version that the coordinator has",
                code="protocol",
            )
        payload_bytes(run.head)  # refuses a head that is too large before anything is allocated
        return run

    def wait(self, run: RunSettings, answered_round: int, seconds: float, *, instance: str = "") -> TaskStatus:
        """Where the run stands; answered at once when there is work, otherwise within ``seconds``.

        ``answered_round``: the last round that this silo answered or will not answer, 0 for none. ``instance``: tells
        this agent from another of the same identity (identity.py); DuplicateIdentity when another one speaks for it.
        """
        seconds = min(seconds, wire.MAX_WAIT_S)
        request = messages.encode_wait_request(messages.WaitRequest(run.sha256, answered_round, seconds, instance))
        return messages.decode_task_status(self._ask(wire.WAIT_FOR_ROUND, request, seconds + wire.CALL_S))

    def fetch(self, run: RunSettings, standing: TaskStatus) -> GlobalModel:
        """The model that the open round starts from, or the final one of a finished run; its hash is checked.

        Raises StaleUpdate when the round closed meanwhile.
        """
        if run.codec != "fp32" and self._held is None:
            begun = initial_params(run.head, run.seed)  # every silo has the first model
            self._held = params_sha256(begun), begun
        held = self._held[0] if self._held else ""
        request = messages.encode_fetch_request(messages.FetchRequest(run.sha256, standing.round, held))
        header, params, found = self._patience.persist(lambda: self._fetch_once(run, request))
        if not found == header.model_sha256 == standing.model_sha256 or header.round != standing.round:
            raise DataError(
                f"the model of round {header.round} has the hash {found[:12]}…, "
                f"expected {standing.model_sha256[:12]}… of round {standing.round}",
                code="digest",
            )
        if run.codec != "fp32":
            self._held = found, params
        return GlobalModel(round=header.round, params=params, sha256=found)

    def fetch_subject(self, run: RunSettings, standing: TaskStatus, subject: int) -> Params:
        """A model to measure at the end of the run: 0 the final one, from 1 single silos'; its hash is checked."""
        if subject == 0:
            return self.fetch(run, standing).params
        asked = messages.FetchRequest(run.sha256, standing.round, subject=subject)
        request = messages.encode_fetch_request(asked)
        header, params, found = self._patience.persist(lambda: self._fetch_once(run, request))
        if found != header.model_sha256 or header.round != standing.round:
            raise DataError(f"model {subject} of the evaluation is not what its header says", code="digest")
        return params

    def report_evaluation(self, run: RunSettings, round_number: int, results: Sequence[SubjectEvaluation]) -> None:
        """Hand in what was measured at the end of the run, nothing to decline; durable there when this returns."""
        report = messages.EvaluationReport(run.sha256, round_number, tuple(results))
        message = messages.encode_evaluation_report(report)
        if self._leaving is not None:
            self._leaving.evaluation(report, message)
        reply = self._ask(wire.REPORT_EVALUATION, message, wire.CALL_S)
        if messages.decode_evaluation_receipt(reply).round != round_number:
            raise DataError("the coordinator's receipt is for another evaluation", code="receipt")

    def submit(self, run: RunSettings, update: Update) -> Receipt:
        """Hand in an update; returns when the coordinator holds it durably.

        Sending the same update again, after a crash or a lost answer, gets the same receipt. Raises
        StaleUpdate when the round has no use for it.
        """
        encoded = update.encoded
        payload = param_views(run.head, update.params or {}) if encoded is None else [memoryview(encoded.payload)]
        header = messages.UpdateHeader(
            settings_sha256=run.sha256,
            round=update.round,
            base_sha256=update.base_sha256,
            update_id=update.update_id,
            examples=update.examples,
            shapes=shapes(run.head),
            payload_bytes=sum(map(len, payload)),
            payload_sha256=_sha256(payload),
            evaluation=update.evaluation,
            codec=encoded.codec if encoded else "fp32",
            codec_error=encoded.error if encoded else 0.0,
            shared=update.shared,
        )
        if self._leaving is not None:
            self._leaving.update(header, messages.encode_update_header(header))
        receipt = self._patience.persist(lambda: self._submit_once(header, payload))
        if (receipt.round, receipt.update_id, receipt.sha256) != (
            update.round,
            update.update_id,
            header.payload_sha256,
        ):
            raise DataError("the coordinator's receipt is for another update", code="receipt")
        return receipt

    # --- one attempt each ---

    def _ask(self, name: str, request: bytes, seconds: float) -> bytes:
        def attempt() -> bytes:
            self.sent_bytes += len(request)
            call = self._channel.unary_unary(wire.method_path(name), None, None).future(request, timeout=seconds)
            with self._patience.watched(call):
                reply: bytes = call.result()
            self.received_bytes += len(reply)
            return reply

        return self._patience.persist(attempt)

    def _fetch_once(self, run: RunSettings, request: bytes) -> tuple[messages.ModelHeader, Params, str]:
        """The model and its hash, which is made while the bytes of a whole one come."""
        whole = payload_bytes(run.head)
        self.sent_bytes += len(request)
        start = self._channel.unary_stream(wire.method_path(wire.FETCH_MODEL), None, None)
        call = start(request, timeout=wire.transfer_s(whole))
        with self._patience.watched(call):
            header = messages.decode_model_part(self._received(next(iter(call), b"")))
            if not isinstance(header, messages.ModelHeader):
                raise DataError("the model came without a header", code="malformed")
            self._check_model_size(run, header)
            payload, filled = np.empty(header.payload_bytes, np.uint8).data, 0
            digest = ParamsDigest(run.head)
            for raw in call:
                part = messages.decode_model_part(self._received(raw))
                if isinstance(part, messages.ModelHeader) or filled + len(part) > len(payload):
                    raise DataError(f"the model is not a header and {len(payload)} bytes", code="payload_size")
                payload[filled : filled + len(part)] = part
                filled += len(part)
                if header.codec == "fp32":
                    digest.update(part)
        if filled != len(payload):
            raise DataError(f"a model of {filled} bytes, its header says {len(payload)}", code="payload_size")
        whose = f"model of round {header.round}"
        if self._held is not None and not payload:
            return header, self._held[1], self._held[0]
        if self._held is not None and header.codec != "fp32":
            params = apply_delta(header.codec, run.head, payload, self._held[1], whose=whose)
            return header, params, params_sha256(params)
        return header, decode_params(run.head, payload, whose=whose), digest.hexdigest()

    def _check_model_size(self, run: RunSettings, header: messages.ModelHeader) -> None:
        """Before anything is allocated: what the header announces is what this link can read."""
        if self._held is None and header.codec != "fp32":
            raise DataError("the model came as a delta from one that this silo does not have", code="malformed")
        if header.payload_bytes or self._held is None:
            check_size(header.codec, run.head, header.payload_bytes, whose=f"model of round {header.round}")

    def _received(self, raw: bytes) -> bytes:
        self.received_bytes += len(raw)
        return raw

    def _submit_once(self, header: messages.UpdateHeader, payload: Sequence[memoryview]) -> Receipt:
        def parts() -> Iterator[bytes]:
            pieces = (piece for tensor in payload for piece in chunks(tensor))
            for part in itertools.chain(
                [messages.encode_update_header(header)], map(messages.encode_update_data, pieces)
            ):
                self.sent_bytes += len(part)
                yield part

        start = self._channel.stream_unary(wire.method_path(wire.SUBMIT_UPDATE), None, None)
        call = start.future(parts(), timeout=wire.transfer_s(header.payload_bytes))
        with self._patience.watched(call):
            reply: bytes = call.result()
        self.received_bytes += len(reply)
        return messages.decode_receipt(reply)


def _sha256(payload: Sequence[memoryview]) -> str:
    digest = hashlib.sha256()
    for part in payload:
        digest.update(part)
    return digest.hexdigest()

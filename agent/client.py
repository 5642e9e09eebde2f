"""The silo's connection to its coordinator. The only module of the agent that makes network calls.

Every call is bounded in time, and retried with growing, varied pauses while a retry can help.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..base.errors import DataError, IdentityError
from ..base.process import Shutdown
from ..fedproto import calls, messages
from ..fedproto.certificates import require_package
from ..fedproto.head import Params, initial_params, params_sha256
from ..fedproto.records import PROTOCOL, GlobalModel, Phase, Receipt, RunSettings, SubjectEvaluation, TaskStatus, Update
from ..fedproto.tensors import chunks, payload_bytes
from ..fedproto.tls import certificate_silo, channel_credentials, check_dates, check_files, file_stamps
from .client_errors import ClientStopped, DuplicateIdentity, RunChanged, StaleUpdate
from .egress.messages import CalibrationMessage, EvaluationMessage, UpdateMessage
from .handshake import ConnectionSettings, handshake_problem, split_address
from .incoming_model import HeldModel, receive_model
from .retry import Backoff, RetryPolicy

if TYPE_CHECKING:
    import grpc

__all__ = [
    "Backoff",
    "ClientStopped",
    "ConnectionSettings",
    "CoordinatorClient",
    "DuplicateIdentity",
    "EvaluationMessage",
    "RunChanged",
    "StaleUpdate",
    "UpdateMessage",
]


class CoordinatorClient:
    """A silo's connection to its coordinator, used by one thread.

    ``with CoordinatorClient.open(settings) as client: run = client.join() …``

    Every call may raise UnreachableError (retries did not help), IdentityError (refused: a person must
    act), RunChanged (join again), ClientStopped (the process was asked to end) and DataError (the coordinator's
    message is invalid, or it refused ours).

    The agent sends updates and evaluations through ``egress.guard`` only, which enters them in the ledger first.
    """

    def __init__(self, settings: ConnectionSettings, backoff: Backoff, shutdown: Shutdown | None) -> None:
        self.settings = settings
        self._backoff = backoff
        self._shutdown = shutdown
        self._file_stamps = file_stamps(settings.files)  # before they are read: what comes later is a change
        self.certificate = check_files(settings.files)
        self._credentials = channel_credentials(settings.files)
        self._channel = self._new_channel()
        self._retry = RetryPolicy(settings.address, backoff, shutdown, self._handshake_problem)
        self.silo = certificate_silo(settings.certificate)
        self._held: HeldModel | None = None  # the last model, in a run with a lossy codec
        self.sent_bytes = 0  # protobuf messages, every attempt counted; TLS and HTTP/2 come on top
        self.received_bytes = 0

    @classmethod
    def open(
        cls, settings: ConnectionSettings, *, shutdown: Shutdown | None = None, retry: Backoff | None = None
    ) -> CoordinatorClient:
        """Check this silo's files and prepare the connection; the first call connects.

        With ``shutdown``, a call that waits ends with ClientStopped soon after the process is asked to end.
        Raises SettingsError, DataError or IdentityError for files that cannot work.
        """
        require_package("grpc", extra="agent")
        calls.silence_grpc()
        split_address(settings.address)
        if retry is None:
            retry = Backoff() if shutdown is None else Backoff(sleep=shutdown.wait)
        return cls(settings, retry, shutdown)

    def open_renewed(self) -> CoordinatorClient:
        """Open a second client with the files as they are now, to ``switch_to``; nothing is sent yet.

        Raises what ``open`` raises, and IdentityError (``other_silo``).
        """
        renewed = CoordinatorClient.open(self.settings, shutdown=self._shutdown, retry=self._backoff)
        if renewed.silo != self.silo:
            renewed.close()
            raise IdentityError(
                f"{self.settings.certificate} is of silo '{renewed.silo}', this agent is '{self.silo}'",
                fix="put this silo's certificate there; for another silo start an agent of its own",
                code="other_silo",
            )
        return renewed

    def switch_to(self, renewed: CoordinatorClient) -> None:
        """Use the connection of ``renewed`` from now on, once the coordinator has answered over it.

        ``renewed`` gets the old connection, to close. Raises what ``join`` raises; then nothing changes.
        """
        renewed.join()
        self._file_stamps, self.certificate = renewed._file_stamps, renewed.certificate
        self._credentials = renewed._credentials
        self._channel, renewed._channel = renewed._channel, self._channel
        self.sent_bytes += renewed.sent_bytes
        self.received_bytes += renewed.received_bytes

    def reconnect(self) -> None:
        """Replace a connection that no one answers by a new one, with the files as they were read."""
        self._channel.close()
        self._channel = self._new_channel()

    def _new_channel(self) -> grpc.Channel:
        import grpc

        return grpc.secure_channel(self.settings.address, self._credentials, options=calls.client_options())

    def _handshake_problem(self) -> IdentityError | None:
        """Find out why no handshake succeeds, unless the files on disk are no longer those in use."""
        try:
            check_dates(self.certificate, self.settings.certificate)
        except IdentityError as ended:
            return ended
        if self.files_changed:
            return None
        return handshake_problem(self.settings.address, self.settings.files)

    @property
    def files_changed(self) -> bool:
        """True when certificate, key or authority were replaced since this client read them; costs three stat()."""
        return file_stamps(self.settings.files) != self._file_stamps

    @property
    def failed_attempts(self) -> int:
        """Attempts that the coordinator did not answer."""
        return self._retry.failed_attempts

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> CoordinatorClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def join(self) -> RunSettings:
        """Return the settings of the run that the coordinator serves."""
        self._held = None  # it may be another run
        reply = self._ask(calls.JOIN, messages.encode_join_request(PROTOCOL), calls.CALL_S)
        protocol, run = messages.decode_join_reply(reply)
        if protocol != PROTOCOL:
            raise DataError(
                f"the coordinator speaks protocol {protocol}, this agent {PROTOCOL}",
                fix="install the version that the coordinator has",
                code="protocol",
            )
        return run

    def wait(self, run: RunSettings, answered_round: int, seconds: float, *, instance: str = "") -> TaskStatus:
        """Ask for the state of the run; answered at once when there is work, otherwise within ``seconds``.

        ``answered_round``: the last round that this silo answered or will not answer, 0 for none. ``instance``
        distinguishes this agent from another with the same identity (identity.py). Raises DuplicateIdentity when
        another one uses it.
        """
        seconds = min(seconds, calls.MAX_WAIT_S)
        request = messages.encode_wait_request(messages.WaitRequest(run.sha256, answered_round, seconds, instance))
        return messages.decode_task_status(self._ask(calls.WAIT_FOR_ROUND, request, seconds + calls.CALL_S), run)

    def fetch(self, run: RunSettings, task: TaskStatus) -> GlobalModel:
        """Fetch the model that the open round starts from, or the final one of a finished run, and check its hash.

        Raises StaleUpdate when the round closed meanwhile.
        """
        if run.codec != "fp32" and self._held is None:
            first = initial_params(run.head, run.seed)  # every silo can compute the first model
            self._held = HeldModel(params_sha256(first), first)
        asked = messages.FetchRequest(run.sha256, task.round, self._held.sha256 if self._held else "")
        seconds = max(task.deadline_s, 1.0) if task.phase is Phase.OPEN else math.inf
        found = self._retry.call(lambda: self._fetch_once(run, asked, seconds))
        if found.sha256 != task.model_sha256:
            raise DataError(
                f"the model of round {task.round} has the hash {found.sha256[:12]}…, "
                f"expected {task.model_sha256[:12]}…",
                fix="the agent fetches it again; if it stays, tell the coordinator's operator",
                code="digest",
            )
        if run.codec != "fp32":
            self._held = found
        return GlobalModel(task.round, found.params, found.sha256, found.calibration)

    def fetch_subject(self, run: RunSettings, task: TaskStatus, subject: int) -> Params:
        """Fetch a model to evaluate at the end of the run and check its hash; 0 is the final one."""
        if subject == 0:
            return self.fetch(run, task).params
        asked = messages.FetchRequest(run.sha256, task.round, subject=subject)
        return self._retry.call(lambda: self._fetch_once(run, asked, math.inf)).params

    def submit(self, run: RunSettings, update: Update) -> Receipt:
        """Encode and send an update; see ``send_update``."""
        return self.send_update(UpdateMessage.of(run, update))

    def send_update(self, message: UpdateMessage) -> Receipt:
        """Send an update; returns when the coordinator holds it durably.

        Sending the same update again, after a crash or a lost answer, gets the same receipt. Raises
        StaleUpdate when the round does not need it.
        """
        header = message.header
        receipt = self._retry.call(lambda: self._send_update_once(message))
        if (receipt.round, receipt.update_id, receipt.sha256) != (
            header.round,
            header.update_id,
            header.payload_sha256,
        ):
            raise DataError(
                "the coordinator's receipt is for another update",
                fix="the agent sends it again; if it stays, tell the coordinator's operator",
                code="receipt",
            )
        return receipt

    def report_evaluation(self, run: RunSettings, round_number: int, results: Sequence[SubjectEvaluation]) -> None:
        """Encode and send an evaluation; see ``send_evaluation``."""
        self.send_evaluation(EvaluationMessage.of(run, round_number, results))

    def send_evaluation(self, message: EvaluationMessage) -> None:
        """Send the results measured at the end of the run (none: this silo declines); durable when it returns."""
        reply = self._ask(calls.REPORT_EVALUATION, message.encoded, calls.CALL_S)
        if messages.decode_evaluation_receipt(reply).round != message.report.round:
            raise DataError(
                "the coordinator's receipt is for another evaluation",
                fix="the agent sends it again; if it stays, tell the coordinator's operator",
                code="receipt",
            )

    def send_calibration(self, message: CalibrationMessage) -> None:
        """Send numbers for a step of the run's calibration, or that this silo declines; durable when it returns."""
        reply = self._ask(calls.REPORT_CALIBRATION, message.encoded, calls.CALL_S)
        if messages.decode_calibration_receipt(reply) != message.report.round:
            raise DataError(
                "the coordinator's receipt is for another calibration",
                fix="the agent sends it again; if it stays, tell the coordinator's operator",
                code="receipt",
            )

    # --- one attempt of each call ---

    def _ask(self, name: str, request: bytes, seconds: float) -> bytes:
        def attempt() -> bytes:
            self.sent_bytes += len(request)
            call = self._channel.unary_unary(calls.method_path(name), None, None).future(request, timeout=seconds)
            with self._retry.cancelled_on_shutdown(call):
                reply: bytes = call.result()
            self.received_bytes += len(reply)
            return reply

        return self._retry.call(attempt)

    def _fetch_once(self, run: RunSettings, asked: messages.FetchRequest, seconds: float) -> HeldModel:
        request = messages.encode_fetch_request(asked)
        self.sent_bytes += len(request)
        start = self._channel.unary_stream(calls.method_path(calls.FETCH_MODEL), None, None)
        call = start(request, timeout=min(seconds, calls.transfer_s(payload_bytes(run.head))))
        held = self._held if asked.held_sha256 else None
        with self._retry.cancelled_on_shutdown(call):
            return receive_model(run, asked.round, map(self._received, call), held)

    def _received(self, raw: bytes) -> bytes:
        self.received_bytes += len(raw)
        return raw

    def _send_update_once(self, message: UpdateMessage) -> Receipt:
        def parts() -> Iterator[bytes]:
            pieces = (piece for tensor in message.payload for piece in chunks(tensor))
            for part in itertools.chain([message.encoded_header], map(messages.encode_update_data, pieces)):
                self.sent_bytes += len(part)
                yield part

        start = self._channel.stream_unary(calls.method_path(calls.SUBMIT_UPDATE), None, None)
        call = start.future(parts(), timeout=calls.transfer_s(message.header.payload_bytes))
        with self._retry.cancelled_on_shutdown(call):
            reply: bytes = call.result()
        self.received_bytes += len(reply)
        return messages.decode_receipt(reply)

"""A coordinator that does what it is told to: a real gRPC server with mutual TLS, honest where no reply is set."""

from __future__ import annotations

import hashlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
from flamest.agent.egress.policy import Policy
from flamest.agent.extraction.store import FeatureRow, FeatureStore
from flamest.agent.settings import AgentSettings, Work
from flamest.base.files import sha256_bytes
from flamest.fedproto import calls, messages
from flamest.fedproto import flamest_v1_pb2 as pb
from flamest.fedproto.head import HeadSpec, initial_params, params_sha256
from flamest.fedproto.records import Phase, Receipt, RunSettings, TaskStatus, TrainSettings
from flamest.fedproto.tensors import chunks, encode_params
from flamest.runtime.clip_records import Clip

LABELS, WIDTH = ("fall", "run", "walk"), 6
FINGERPRINT = f"imported:test:{WIDTH}"
RUN = RunSettings(
    run="honest",
    labels=LABELS,
    head=HeadSpec(WIDTH, 3, (5,)),
    rounds=1000,
    min_silos=1,
    deadline_s=600.0,
    fingerprint=FINGERPRINT,
    train=TrainSettings(epochs=1, batch_size=8),
)


def fill_store(path: Path) -> None:
    random = np.random.default_rng(1)
    with FeatureStore.open(path) as store:
        rows = []
        for number in range(24):
            clip = Clip(
                Path(f"{number}.mp4"), sha256_bytes(str(number).encode()), LABELS[number % 3], f"group-{number // 2}"
            )
            x = (random.normal(size=WIDTH) + number % 3).astype(np.float32)
            rows.append((clip.path.name, FeatureRow(clip, x, 4, FINGERPRINT, "fp32")))
        store.add_rows(rows)


def agent_settings(folder: Path, connection) -> AgentSettings:
    policy = Policy(min_samples=1, min_samples_override=True, hold_out=0.2)
    work = Work(threads=1)
    return AgentSettings(folder / "state", folder / "store.sqlite", connection, policy=policy, work=work)


class Status:
    """A reply that is a status: its code, text, and the code of the refusal."""

    def __init__(self, code: grpc.StatusCode, text: str = "no", refusal: str = "") -> None:
        self.code, self.text, self.refusal = code, text, refusal

    def end(self, context) -> None:
        if self.refusal:
            context.set_trailing_metadata(((calls.CODE_KEY, self.refusal),))
        context.abort(self.code, self.text)


class HostileCoordinator:
    """``replies[CALL]`` is the next replies' bytes (a list of them for a model), a Status, or a function of these."""

    def __init__(self, federation_folder: Path) -> None:
        self.replies: dict[str, object] = {}
        self.run, self.round = RUN, 1
        self.params = initial_params(RUN.head, 0)
        self.updates: list[messages.UpdateHeader] = []
        self.calls: dict[str, int] = dict.fromkeys(("Join", "WaitForRound", "FetchModel", "SubmitUpdate"), 0)
        names = ("server-key.pem", "server.pem", "ca.pem")
        key, certificate, ca = ((federation_folder / name).read_bytes() for name in names)
        self._server = grpc.server(ThreadPoolExecutor(8))
        kinds = {
            calls.JOIN: grpc.unary_unary_rpc_method_handler(self._unary(calls.JOIN, self.join)),
            calls.WAIT_FOR_ROUND: grpc.unary_unary_rpc_method_handler(self._unary(calls.WAIT_FOR_ROUND, self.wait)),
            calls.FETCH_MODEL: grpc.unary_stream_rpc_method_handler(self._fetch),
            calls.SUBMIT_UPDATE: grpc.stream_unary_rpc_method_handler(self._unary(calls.SUBMIT_UPDATE, self.submit)),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(calls.SERVICE, kinds),))
        credentials = grpc.ssl_server_credentials([(key, certificate)], ca, require_client_auth=True)
        self.address = f"127.0.0.1:{self._server.add_secure_port('127.0.0.1:0', credentials)}"
        self._server.start()

    def stop(self) -> None:
        self._server.stop(0)

    @contextmanager
    def hostile(self, **replies):
        self.replies = {getattr(calls, name.upper()): reply for name, reply in replies.items()}
        try:
            yield
        finally:
            self.replies = {}

    # --- honest answers ---

    def join(self, _request: bytes) -> bytes:
        return join_reply(self.run.encode())

    def wait(self, request: bytes) -> bytes:
        answered = messages.decode_wait_request(request).answered_round
        phase = Phase.OPEN if self.round > answered and not self._has(self.round) else Phase.WAIT
        return self.task(phase)

    def task(self, phase: Phase = Phase.OPEN, /, **changes) -> bytes:
        """The reply for this round's model, with fields of the message changed."""
        status = TaskStatus(phase, self.round, params_sha256(self.params), self.run.deadline_s, 0.05)
        reply = pb.WaitReply.FromString(messages.encode_task_status(status))
        for name, value in changes.items():
            setattr(reply, name, value)
        return reply.SerializeToString()

    def model(self, **changes) -> list[bytes]:
        payload = encode_params(self.run.head, self.params)
        header = messages.ModelHeader(self.round, params_sha256(self.params), len(payload))
        part = pb.ModelPart.FromString(messages.encode_model_header(header))
        for name, value in changes.items():
            setattr(part.header, name, value)
        return [part.SerializeToString(), *map(messages.encode_model_data, chunks(payload))]

    def submit(self, parts) -> bytes:
        header = messages.decode_update_part(next(parts))
        for _ in parts:
            pass
        self.updates.append(header)
        return messages.encode_receipt(Receipt(header.round, header.update_id, header.payload_sha256))

    def _has(self, number: int) -> bool:
        return any(update.round == number for update in self.updates)

    # --- what is sent ---

    def _unary(self, name, honest):
        def answer(request, context):
            self.calls[name] += 1
            reply = self.replies.get(name)
            reply = reply(request) if callable(reply) else reply
            if isinstance(reply, Status):
                reply.end(context)
            return honest(request) if reply is None else reply

        return answer

    def _fetch(self, request, context):
        self.calls[calls.FETCH_MODEL] += 1
        reply = self.replies.get(calls.FETCH_MODEL)
        reply = reply(request) if callable(reply) else reply
        if isinstance(reply, Status):
            reply.end(context)
        yield from self.model() if reply is None else reply


def join_reply(settings: bytes, protocol: int = 1, digest: bytes | None = None) -> bytes:
    digest = hashlib.sha256(settings).digest() if digest is None else digest
    return pb.JoinReply(protocol=protocol, settings=settings, settings_sha256=digest).SerializeToString()


def changed(**changes) -> bytes:
    """Settings in which some fields are replaced; ``head__inputs=1`` replaces a field of the head."""
    fields = json.loads(RUN.encode())
    for name, value in changes.items():
        *outer, last = name.split("__")
        place = fields
        for key in outer:
            place = place[key]
        place[last] = value
    return json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")


def slowly(pieces, pause: threading.Event, seconds: float):
    """Yield ``pieces``, one every ``seconds``, until ``pause`` is set."""
    for piece in pieces:
        yield piece
        if pause.wait(seconds):
            return


__all__ = ["FINGERPRINT", "RUN", "HostileCoordinator", "Status", "agent_settings", "changed", "fill_store"]

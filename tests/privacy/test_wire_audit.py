"""Everything that an agent sends in ten rounds, decrypted and searched for private data."""

import base64
import threading
import uuid
import zlib

import numpy as np
import pytest
from flamest.agent.daemon import run_agent
from flamest.agent.egress.ledger import read_ledger
from flamest.base.process import Shutdown
from flamest.coordinator.serving.service import Service
from flamest.fedproto import flamest_v1_pb2 as pb
from flamest.fedproto.tensors import payload_bytes
from google.protobuf.message import DecodeError

ROUNDS = 10
KNOWN = ("canary-label-fall", "canary-label-run", "canary-label-walk")
# Message kind -> the fields that an agent may send, by number, with what they are. Nothing else may be on the wire.
ALLOWED = {
    "JoinRequest": {1: "protocol"},
    "WaitRequest": {1: "settings_sha256", 2: "answered_round", 3: "max_wait_ms", 4: "instance"},
    "FetchRequest": {1: "settings_sha256", 2: "round", 3: "held_sha256", 4: "subject"},
    "UpdatePart": {1: "header", 2: "data"},
    "UpdateHeader": {
        1: "settings_sha256", 2: "round", 3: "base_sha256", 4: "update_id", 5: "examples", 6: "codec", 7: "tensors",
        8: "payload_bytes", 9: "payload_sha256", 10: "evaluation", 11: "codec_error",
        12: "shared",
    },
    "TensorShape": {1: "index", 2: "dims"},
    "Evaluation": {1: "loss", 2: "correct", 3: "count", 4: "by_class"},
    "ClassCount": {1: "label", 2: "correct", 3: "count"},
    "EvaluationReport": {1: "settings_sha256", 2: "round", 3: "results"},
    "SubjectEvaluation": {1: "subject", 2: "evaluation"},
}  # fmt: skip
HEADERS = {"user-agent", "grpc-accept-encoding", "te", "content-type", "accept-encoding"}


def run_ten_rounds(federation, home, tap, policy: str = "") -> None:
    settings = home.settings(federation, address=tap.address, policy=policy)
    agent = threading.Thread(target=run_agent, args=(settings, "a", Shutdown()), kwargs={"once": True})
    agent.start()
    agent.join(60)
    assert not agent.is_alive()
    assert [row["accepted"] for row in federation.rounds()] == [1] * ROUNDS


@pytest.fixture
def heard(monkeypatch):
    """The metadata of every call that the coordinator received."""
    headers, caller = [], Service._caller  # every call of the service passes here

    def watched(self, context, path):
        headers.extend(context.invocation_metadata())
        return caller(self, context, path)

    monkeypatch.setattr(Service, "_caller", watched)
    return headers


def kind_of(raw: bytes) -> str:
    """Return the kind of an agent's message: the one that knows every field and encodes it to the same bytes."""
    for kind in ("UpdatePart", "WaitRequest", "FetchRequest", "EvaluationReport", "JoinRequest"):
        message = getattr(pb, kind)()
        try:
            message.ParseFromString(raw)
        except DecodeError:
            continue
        whole = message.SerializeToString()
        message.DiscardUnknownFields()
        if message.SerializeToString() == whole == raw and _plausible(message):
            return kind
    raise AssertionError(f"the agent sent what is none of its messages: {raw[:60]!r}")


def _plausible(message) -> bool:
    return len(getattr(message, "settings_sha256", bytes(32))) == 32


def fields_of(message, found: dict[str, set[str]]) -> None:
    """Adds the names of the fields that are set, by kind of message."""
    kind = message.DESCRIPTOR.name
    for field, value in message.ListFields():
        found.setdefault(kind, set()).add(field.name)
        assert ALLOWED[kind][field.number] == field.name
        if field.message_type is not None:
            values = value if field.is_repeated else [value]
            for each in values:
                fields_of(each, found)


@pytest.mark.parametrize("codec", ["fp32", "int8"])
def test_nothing_but_the_parameters_leaves(canary_federation, home, tap_of, find_canaries, heard, codec):
    """0 canaries in all bytes of ten rounds, both directions; 0 fields that are not allowed."""
    federation = canary_federation
    federation.config.write_text(federation.config.read_text().replace('codec = "fp32"', f'codec = "{codec}"'))
    federation.start()
    with tap_of(federation, "a") as tap:
        run_ten_rounds(federation, home, tap)
        sent = [message for connection in tap.connections for message in connection.messages()]
    mac = uuid.getnode().to_bytes(6)
    machine = (mac, mac.hex(":"))
    assert find_canaries(tap.up, (*home.canaries, *KNOWN, *machine)) == []
    assert find_canaries(tap.down, (*home.canaries, *machine)) == []
    assert find_canaries(tap.down, KNOWN) == [repr(label) for label in KNOWN]  # the search finds them where they are

    found: dict[str, set[str]] = {}
    updates = []
    for raw in sent:
        message = getattr(pb, kind_of(raw))()
        message.ParseFromString(raw)
        fields_of(message, found)
        if message.DESCRIPTOR.name == "UpdatePart" and message.HasField("header"):
            updates.append(message.header)
    assert set(found) <= set(ALLOWED)
    assert found["UpdateHeader"] >= {"update_id", "examples", "payload_sha256", "evaluation"}
    assert {key for key, _ in heard} <= HEADERS
    assert find_canaries(repr(heard).encode(), (*home.canaries, *KNOWN)) == []

    run = federation.settings().run_settings()
    payload = updates[0].payload_bytes
    assert payload == payload_bytes(run.head) if codec == "fp32" else payload < payload_bytes(run.head) // 2
    assert len(updates) == ROUNDS
    assert len(tap.up) <= ROUNDS * (payload + 2048)
    reported = [entry.sha256 for entry in read_ledger(home.folder / "state").of("update")]
    assert reported == [update.payload_sha256.hex() for update in updates]


def test_the_search_finds_canaries_in_every_disguise(home, find_canaries):
    """It bites, in every disguise."""
    caption, row = "a canary 59 as a caption", home.canaries[5]
    text = f"xx{caption}yy"
    for leak in (
        text.encode(),
        text.encode("utf-16-le"),
        text.encode("utf-16-be"),
        base64.b64encode(text.encode()),
        base64.b64encode(text[1:].encode()),
        base64.b64encode(text[2:].encode()),
        text.encode().hex().encode(),
        b"noise" + zlib.compress(text.encode()) + b"noise",
    ):
        assert find_canaries(np.random.default_rng(0).bytes(5000) + leak + b"rest", home.canaries) == [repr(caption)]
    assert find_canaries(b"before" + row + b"after", home.canaries) == [repr(row)]


def header_fields(home, federation, tap_of, policy: str) -> list[pb.UpdateHeader]:
    federation.start()
    with tap_of(federation, "a") as tap:
        run_ten_rounds(federation, home, tap, policy)
        sent = [message for connection in tap.connections for message in connection.messages()]
    headers = []
    for raw in sent:
        if kind_of(raw) == "UpdatePart":
            part = pb.UpdatePart()
            part.ParseFromString(raw)
            if part.HasField("header"):
                headers.append(part.header)
    return headers


def test_by_default_counts_are_exact_and_evaluation_is_one_figure(canary_federation, home, tap_of):
    """The exact list of fields that are sent with the parameters."""
    headers = header_fields(home, canary_federation, tap_of, "hold_out = 0.25")
    known = sum(1 for number in range(60) if number % 10)
    for header in headers:
        names = [field.name for field, _ in header.ListFields()]
        assert names == [
            "settings_sha256", "round", "base_sha256", "update_id", "examples", "codec", "tensors", "payload_bytes",
            "payload_sha256", "evaluation",
        ]  # fmt: skip
        assert {field.name for field, _ in header.evaluation.ListFields()} <= {"loss", "correct", "count"}
        assert header.examples + header.evaluation.count == known


def test_a_policy_reports_less(canary_federation, home, tap_of):
    """No accuracy of this silo, and no exact number of its clips."""
    policy = 'hold_out = 0.0\nreport_evaluation = false\nreport_counts = "power-of-two"'
    headers = header_fields(home, canary_federation, tap_of, policy)
    assert {header.examples for header in headers} == {64}  # of 54
    assert not any(header.HasField("evaluation") for header in headers)


def test_no_message_has_a_field_that_is_not_listed():
    """The protocol has exactly the fields that these tests allow."""
    seen, pending = {}, [pb.JoinRequest, pb.WaitRequest, pb.FetchRequest, pb.UpdatePart, pb.EvaluationReport]
    while pending:
        kind = pending.pop().DESCRIPTOR
        seen[kind.name] = {field.number: field.name for field in kind.fields}
        pending += [getattr(pb, field.message_type.name) for field in kind.fields if field.message_type is not None]
    assert seen == ALLOWED

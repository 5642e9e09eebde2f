"""A silo that is revoked, or put in quarantine, while a call of it lasts gets nothing more from that call."""

import threading
import time

import grpc
import pytest
from flamest.agent.client_errors import refusal_code
from flamest.base.files import sha256_bytes
from flamest.coordinator.admin import authority
from flamest.fedproto import calls, messages
from flamest.fedproto.head import initial_params
from flamest.fedproto.tensors import chunks, encode_params, shapes
from flamest.fedproto.tls import channel_credentials

SUBMIT, WAIT = calls.method_path(calls.SUBMIT_UPDATE), calls.method_path(calls.WAIT_FOR_ROUND)


@pytest.fixture
def federation(make_federation):
    federation = make_federation("a", "mallory", rounds=2, min_silos=1, quarantine_after=2)
    federation.start()
    return federation


@pytest.fixture
def channel(federation):
    settings = federation.connection_settings("mallory")
    with grpc.secure_channel(settings.address, channel_credentials(settings.files)) as channel:
        yield channel


def parts_of(federation, number: int) -> list[bytes]:
    with federation.client("mallory") as client:
        run = client.join()
        status = client.wait(run, 0, 10)
    payload = encode_params(run.head, initial_params(run.head, number))
    header = messages.UpdateHeader(
        settings_sha256=run.sha256,
        round=status.round,
        base_sha256=status.model_sha256,
        update_id=f"{number:032x}",
        examples=9,
        shapes=shapes(run.head),
        payload_bytes=len(payload),
        payload_sha256=sha256_bytes(payload),
        evaluation=None,
    )
    return [messages.encode_update_header(header), *map(messages.encode_update_data, chunks(payload, 64))]


def ended(call) -> tuple[str, str | None]:
    error = call.exception(timeout=60)
    return error.code().name, refusal_code(error)


def upload_with_a_pause(channel, parts: list[bytes], pause: threading.Event):
    def body():
        yield from parts[:2]
        assert pause.wait(30)
        yield from parts[2:]

    call = channel.stream_unary(SUBMIT, None, None).future(body(), timeout=60)
    time.sleep(0.5)
    return call


def test_an_update_whose_silo_is_revoked_during_the_upload_does_not_count(federation, channel):
    pause = threading.Event()
    call = upload_with_a_pause(channel, parts_of(federation, 1), pause)
    authority.revoke_silo(federation.folder, "mallory")
    pause.set()
    assert ended(call) == ("PERMISSION_DENIED", "revoked")
    assert federation.rounds()[0]["accepted"] == 0


def test_an_update_whose_silo_is_quarantined_during_the_upload_does_not_count(federation, channel):
    """Two uploads at a time: what is wrong in one must not be late for the other."""
    pause = threading.Event()
    parts = parts_of(federation, 1)
    call = upload_with_a_pause(channel, parts, pause)
    for _ in range(2):
        wrong = channel.stream_unary(SUBMIT, None, None).future(iter([parts[0], *parts[1:], parts[1]]), timeout=60)
        assert ended(wrong)[1] == "payload_size"
    pause.set()
    assert ended(call) == ("FAILED_PRECONDITION", "quarantined")
    assert federation.rounds()[0]["accepted"] == 0


def test_a_silo_revoked_while_it_waits_is_given_no_round(federation, channel):
    with federation.client("mallory") as client:
        run = client.join()
        client.wait(run, 0, 10)  # what it answered before the server knew it would not count
    asked = messages.encode_wait_request(messages.WaitRequest(run.sha256, 1, 3.0, ""))
    call = channel.unary_unary(WAIT, None, None).future(asked, timeout=60)
    time.sleep(0.5)
    authority.revoke_silo(federation.folder, "mallory")
    assert ended(call) == ("PERMISSION_DENIED", "revoked")

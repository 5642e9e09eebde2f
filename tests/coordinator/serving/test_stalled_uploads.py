"""Uploads that stall, and receipts that are not read, end after their time."""

import contextlib

import pytest
from flamest.base.files import sha256_bytes
from flamest.coordinator.serving import upload as upload_module
from flamest.experiments import raw_caller
from flamest.experiments.raw_caller import RawCaller, message
from flamest.fedproto import calls, messages
from flamest.fedproto.head import initial_params
from flamest.fedproto.tensors import encode_params, shapes

SUBMIT = calls.method_path(calls.SUBMIT_UPDATE)


@pytest.fixture
def federation(make_federation, monkeypatch):
    monkeypatch.setattr(calls, "CALL_S", 1.0)
    monkeypatch.setattr(calls, "transfer_s", lambda _: 4.0)
    monkeypatch.setattr(upload_module, "PART_S", 1.5)
    federation = make_federation("a", "b", rounds=3, min_silos=1, wanted=1)
    federation.start()
    return federation


@pytest.fixture
def parts(federation):
    """An update of silo b for the open round, as the messages of its stream."""
    with federation.client("b") as client:
        run = client.join()
        status = client.wait(run, 0, 5)
    payload = encode_params(run.head, initial_params(run.head, 1))
    header = messages.UpdateHeader(
        settings_sha256=run.sha256,
        round=status.round,
        base_sha256=status.model_sha256,
        update_id="ab" * 16,
        examples=9,
        shapes=shapes(run.head),
        payload_bytes=len(payload),
        payload_sha256=sha256_bytes(payload),
        evaluation=None,
    )
    return message(messages.encode_update_header(header)), message(messages.encode_update_data(payload))


STALLS = {
    "no header": lambda header, data: b"",
    "half a header": lambda header, data: header[:40],
    "no payload": lambda header, data: header,
    "half a payload": lambda header, data: header + data[:60],
    "no end": lambda header, data: header + data,
}


@pytest.mark.parametrize("stall", STALLS)
def test_an_upload_that_stalls_ends_after_its_time(federation, parts, stall):
    with contextlib.closing(RawCaller(federation.connection_settings("b"))) as caller:
        caller.open_stream(SUBMIT, STALLS[stall](*parts))
        frames = caller.frames(6.0, until_kind=raw_caller.HEADERS)
        answer = b"".join(payload for kind, _, _, payload in frames if kind == raw_caller.HEADERS)
    assert b"too_slow" in answer


def test_an_unread_receipt_costs_the_connection_and_the_update_counts(federation, parts):
    with contextlib.closing(RawCaller(federation.connection_settings("b"), window=0)) as caller:
        caller.open_stream(SUBMIT, b"".join(parts), end=True)
        assert caller.is_cut(6.0)
    assert federation.rounds()[0]["accepted"] == 1

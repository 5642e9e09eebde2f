"""A silo in good standing, or a revoked one, that calls as fast as it can is held back and does not slow others."""

import asyncio
import time

import grpc
import pytest
from flamest.coordinator.admin import authority
from flamest.coordinator.serving import limits
from flamest.coordinator.serving.limits import CallRates
from flamest.fedproto import calls, messages
from flamest.fedproto.tls import channel_credentials

JOIN = messages.encode_join_request(1)
JOIN_PATH = calls.method_path(calls.JOIN)
AT_ONCE, SLOW_S = 20, 0.3


@pytest.fixture
def federation(make_federation, monkeypatch):
    monkeypatch.setattr(limits, "CALLS_AT_ONCE", AT_ONCE)
    monkeypatch.setattr(limits, "CALL_EVERY_S", 60.0)
    monkeypatch.setattr(limits, "SLOW_S", SLOW_S)
    federation = make_federation("a", "mallory")
    federation.start()
    return federation


def answers(settings, count: int, path: str = JOIN_PATH) -> list[tuple[str, float]]:
    """Calls one after the other over one connection: each one's status and seconds."""
    found = []
    with grpc.secure_channel(settings.address, channel_credentials(settings.files)) as channel:
        for _ in range(count):
            before = time.monotonic()
            try:
                channel.unary_unary(path, None, None)(JOIN, timeout=10)
                status = "OK"
            except grpc.RpcError as error:
                status = error.code().name
            found.append((status, time.monotonic() - before))
    return found


@pytest.mark.parametrize("path", [JOIN_PATH, "/flamest.v1.Coordinator/Shutdown", "/grpc.health.v1.Health/Check"])
def test_too_many_calls_in_a_second_are_refused_slowly(federation, path):
    found = answers(federation.connection_settings("mallory"), AT_ONCE + 3, path)
    assert "RESOURCE_EXHAUSTED" not in {status for status, _ in found[:AT_ONCE]}
    assert {status for status, _ in found[AT_ONCE:]} == {"RESOURCE_EXHAUSTED"}
    assert min(seconds for _, seconds in found[AT_ONCE:]) >= SLOW_S
    assert answers(federation.connection_settings("a"), AT_ONCE)[-1][0] == "OK"


def test_too_many_calls_are_no_reason_for_a_quarantine(federation):
    answers(federation.connection_settings("mallory"), AT_ONCE + 3)
    assert federation.rounds()[0]["refused"] == 0


def test_a_refused_caller_is_answered_slowly_after_the_first_calls(federation):
    settings = federation.connection_settings("mallory")
    authority.revoke_silo(federation.folder, "mallory")
    found = answers(settings, AT_ONCE + 3)
    assert {status for status, _ in found} == {"PERMISSION_DENIED"}
    assert min(seconds for _, seconds in found[AT_ONCE:]) >= SLOW_S
    assert answers(federation.connection_settings("a"), 3)[-1][0] == "OK"


def test_callers_have_token_buckets_of_their_own_that_refill(monkeypatch):
    monkeypatch.setattr(limits, "CALL_EVERY_S", 0.05)
    monkeypatch.setattr(limits, "SLOW_S", 0.1)

    async def work() -> None:
        rates = CallRates()

        async def calls_of(caller: str, count: int) -> int:
            return sum(await asyncio.gather(*(rates.within(caller) for _ in range(count))))

        assert limits.CALLS_AT_ONCE <= await calls_of("a", 2_300) < 2_300
        assert await calls_of("b", 1_500) == 1_500
        await asyncio.sleep(0.3)
        assert await calls_of("a", 3) == 3

    asyncio.run(work())

"""Refusals of a silo that is refused over and over: in the log and in the history, bounded and without loss."""

import asyncio
import logging

import grpc
import pytest
from flamest.base.errors import DataError
from flamest.base.log import LimitedLog, configure_logging
from flamest.coordinator.admin import authority
from flamest.coordinator.serving import active_run
from flamest.coordinator.serving.active_run import ActiveRun, ServerPolicy
from flamest.coordinator.storage.run_store import RunStore
from flamest.fedproto import calls, messages
from flamest.fedproto.tls import channel_credentials


@pytest.fixture
def active(make_federation):
    settings = make_federation("a", "b", quarantine_after=3).settings()
    run = settings.run_settings()
    with RunStore.open(settings.server.state, run, keep_models=2) as store:
        policy = ServerPolicy(None, None, settings.checks)
        active = ActiveRun(run, store, policy, enrolled=lambda: frozenset({"a", "b"}))
        yield active
        active.close()


@pytest.fixture
def transactions(active, monkeypatch):
    """The times of each transaction of the history's refusals."""
    written, refuse = [], active.store.journal.refuse

    def watched(*arguments, **options):
        written.append(options["times"])
        return refuse(*arguments, **options)

    monkeypatch.setattr(active.store.journal, "refuse", watched)
    return written


def refuse(active, codes, *, silo: str = "a", message: str = "x") -> list[bool]:
    async def work() -> list[bool]:
        answers = [await active.record_refusal(silo, DataError(message, code=code)) for code in codes]
        await active.write_refusals(now=True)
        return answers

    return asyncio.run(work())


def rows(active) -> list[tuple]:
    return active.store.journal.all("SELECT silo, code, times FROM refusals ORDER BY silo, code")


@pytest.mark.parametrize("codes", [["late"], ["late", "other_run", "quarantined"]])
def test_refusals_beyond_a_few_are_written_together(active, transactions, codes):
    refuse(active, codes * (300 // len(codes)))
    assert sum(times for *_, times in rows(active)) == 300 == sum(transactions)
    assert len(rows(active)) == len(codes)
    assert len(transactions) <= active_run.REFUSALS_AT_ONCE + len(codes) + 1


def test_refusals_of_one_silo_do_not_delay_those_of_another(active, transactions):
    refuse(active, ["late"] * 200)
    before = len(transactions)
    refuse(active, ["late"], silo="b")
    assert len(transactions) == before + 1
    assert ("b", "late", 1) in rows(active)


def test_the_third_strike_is_a_quarantine_after_a_flood_too(active):
    refuse(active, ["late"] * 200)
    refuse(active, ["norm"] * 3)
    assert "a" in active.quarantined


def test_refusals_that_are_not_written_yet_are_when_the_server_stops(active, transactions):
    async def flood() -> None:
        for _ in range(100):
            await active.record_refusal("a", DataError("x", code="late"))

    asyncio.run(flood())
    assert sum(transactions) < 100
    asyncio.run(active.write_refusals(now=True))
    assert rows(active) == [("a", "late", 100)]


def test_the_log_of_refusals_is_short_whatever_the_silo_sends(active, caplog, monkeypatch):
    monkeypatch.setattr(active_run, "limited_log", LimitedLog("coordinator"))
    caplog.set_level(logging.INFO, "flamest")
    for number in range(300):
        refuse(active, ["late"], message=f"\x1b[2J{number}" * 1000)
    assert len([record for record in caplog.records if record.message == "update_refused"]) == 1


@pytest.fixture
def quiet_loggers():
    yield
    for name in ("flamest", "grpc", "asyncio"):
        logging.getLogger(name).handlers[:] = []
        logging.getLogger(name).propagate = True


CALLS = {
    "revoked": (calls.method_path(calls.JOIN), messages.encode_join_request(1)),
    "a call that does not exist": ("/flamest.v1.Coordinator/Shutdown", b""),
    "no message": (calls.method_path(calls.JOIN), b"\xff" * 50),
    "another run": (
        calls.method_path(calls.WAIT_FOR_ROUND),
        messages.encode_wait_request(messages.WaitRequest("01" * 32, 0, 1.0)),
    ),
}


@pytest.mark.parametrize("case", CALLS)
def test_a_flood_of_refused_calls_writes_few_bytes_of_log(make_federation, capfd, quiet_loggers, case):
    """2,000 calls, and what they add to a log file."""
    configure_logging()
    federation = make_federation("a", "mallory", rounds=3)
    federation.start()
    settings = federation.connection_settings("mallory")
    if case == "revoked":
        authority.revoke_silo(federation.folder, "mallory")
    path, request = CALLS[case]
    with grpc.secure_channel(
        settings.address, channel_credentials(settings.files), options=calls.client_options()
    ) as channel:
        call = channel.unary_unary(path, None, None)
        capfd.readouterr()
        for _ in range(250):
            answers = [call.future(request, timeout=30) for _ in range(8)]
            assert all(answer.exception() for answer in answers)
    written = len(capfd.readouterr().err)
    federation.stop()
    assert written < 10_000, f"{written} bytes for 2,000 calls"

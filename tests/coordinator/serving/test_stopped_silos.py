"""Silos that are stopped, killed, late, or that all return at once; real processes and threads."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from flamest.agent.client import Backoff, ClientStopped, CoordinatorClient
from flamest.base.errors import FlamestError
from flamest.base.process import Shutdown
from flamest.coordinator.admin import authority
from flamest.fedproto.head import params_sha256
from flamest.fedproto.model_file import read_model


class Silo:
    """A light silo in a process of its own."""

    def __init__(self, federation, name: str, think_s: float) -> None:
        files = federation.connection_settings(name)
        words = [files.address, files.ca, files.certificate, files.key, think_s]
        program = [sys.executable, str(Path(__file__).with_name("light_silo.py")), *map(str, words)]
        self.process = subprocess.Popen(program, stdout=subprocess.PIPE, text=True)

    def says(self, words: str) -> str:
        """Return its next line, which must begin with ``words``."""
        line = self.process.stdout.readline().strip()
        assert line.startswith(words), line
        return line

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGCONT)
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def silos(request):
    """``silos(federation, "abc", think_s)``: started together, ended at the end of the test."""
    started: list[Silo] = []

    def start(federation, names: str, think_s: float) -> dict[str, Silo]:
        made = {name: Silo(federation, name, think_s) for name in names}
        started.extend(made.values())
        return made

    yield start
    for silo in started:
        silo.end()


def until(ready, seconds: float = 60.0) -> None:
    give_up = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < give_up, "the condition did not come true in time"
        time.sleep(0.05)


@pytest.mark.parametrize(("min_silos", "status"), [(3, "closed"), (4, "abandoned")])
def test_round_ends_at_its_deadline_without_stopped_and_killed_silos(make_federation, silos, min_silos, status):
    """Five silos, one SIGSTOPped and one SIGKILLed after they have the model."""
    federation = make_federation(*"abcde", rounds=2, min_silos=min_silos, wanted=5, deadline_s=4.0)
    federation.start()
    stuck = silos(federation, "de", 600.0)
    for silo in stuck.values():
        silo.says("got 1")
    stuck["d"].signal(signal.SIGSTOP)
    stuck["e"].signal(signal.SIGKILL)
    for silo in silos(federation, "abc", 0.0).values():
        silo.says("got 1")
        silo.says("sent 1")
    assert federation.rounds()[0]["status"] == "open"  # it waits for the two until the deadline
    until(lambda: federation.rounds()[0]["status"] != "open")
    row = federation.rounds()[0]
    assert (row["status"], row["accepted"]) == (status, 3)
    assert row["seconds"] >= 4.0
    models = federation.state / "runs" / "run-1" / "models"
    start = params_sha256(read_model(models / "round-000000.safetensors").params)
    if status == "abandoned":
        assert not (models / "round-000001.safetensors").exists()
        with federation.client("d") as client:  # the next round starts from the very same model
            assert client.wait(client.join(), 0, 10).model_sha256 == start


def test_silo_stopped_past_the_deadline_is_refused_and_gets_the_open_round(make_federation, silos):
    """Its late update counts nowhere, and its next request gets it the open round."""
    federation = make_federation(*"ab", rounds=3, min_silos=1, wanted=2, deadline_s=2.0)
    federation.start()
    late = silos(federation, "a", 0.3)["a"]
    late.says("got 1")
    late.signal(signal.SIGSTOP)
    other = silos(federation, "b", 0.0)["b"]
    other.says("got 1")
    other.says("sent 1")
    until(lambda: federation.rounds()[0]["status"] == "closed")
    other.end()
    late.signal(signal.SIGCONT)
    assert late.says("refused 1").split()[-1] in ("stale_round", "late")
    assert int(late.says("got").split()[-1]) == federation.rounds()[-1]["round"] or federation.rounds()[-1]["round"] > 2
    rows = federation.rounds()
    assert (rows[0]["accepted"], [one["silo"] for one in rows[0]["updates"]]) == (1, ["b"])


# --- silos that return after an outage ---

HERD = 200


def returns(retry: Backoff, away_s: float, chance: random.Random, monkeypatch) -> list[float]:
    """When each of the herd is back, in seconds after the coordinator ended, if connecting takes no time."""
    monkeypatch.setattr("flamest.agent.retry.random", chance)
    back = []
    for _ in range(HERD):
        at, attempt = chance.uniform(0.0, 0.05), 1
        while at < away_s:
            at += retry.pause_s(attempt, away=True)
            attempt += 1
        back.append(at)
    return sorted(back)


def most_in_a_second(times: list[float]) -> int:
    return max(sum(first <= other < first + 1.0 for other in times) for first in times)


@pytest.mark.parametrize("away_s", [1.0, 2.0, 5.0, 12.0])
def test_silos_return_spread_over_time_after_an_outage(away_s, monkeypatch):
    """The pauses alone: 200 silos, at most a quarter in any second, all within 30 s of its return."""
    for seed in range(20):
        back = returns(Backoff(), away_s, random.Random(seed), monkeypatch)
        assert most_in_a_second(back) <= HERD / 4
        assert back[-1] - away_s < 30.0


class Herd:
    """Many clients in threads: each asks for work repeatedly, as the daemon does, and declines every round."""

    def __init__(self, federation, address: str, names: list[str], retry: Backoff) -> None:
        self.shutdown = Shutdown()
        settings = [federation.connection_settings(name, address=address) for name in names]
        self._threads = [threading.Thread(target=self._live, args=(one, retry)) for one in settings]
        for thread in self._threads:
            thread.start()

    def _live(self, settings, retry: Backoff) -> None:
        while not self.shutdown.requested:
            with (
                contextlib.suppress(FlamestError),
                CoordinatorClient.open(settings, shutdown=self.shutdown, retry=retry) as client,
            ):
                run = client.join()
                while not self.shutdown.requested:
                    with contextlib.suppress(ClientStopped):
                        self.shutdown.wait(client.wait(run, 99, 20.0).poll_after_s)

    def end(self) -> None:
        self.shutdown.request()
        for thread in self._threads:
            thread.join(30)


def herd_comes_back(make_federation, monkeypatch, size: int, spread_s: float, away_s: float) -> list[float]:
    """Return the seconds after the coordinator's return at which each silo called first, sorted."""
    names = [f"s{number}" for number in range(size)]
    federation = make_federation(*names, rounds=2, min_silos=1, deadline_s=600.0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    federation.config.write_text(federation.config.read_text().replace("127.0.0.1:0", address))
    seen: dict[str, float] = {}
    check = authority.AllowList.check

    def watched(self, name, sha256):
        seen.setdefault(name, time.monotonic())
        check(self, name, sha256)

    monkeypatch.setattr(authority.AllowList, "check", watched)
    federation.start()
    herd = Herd(federation, address, names, Backoff(spread_s=spread_s))
    try:
        until(lambda: len(seen) == size, 120)
        federation.stop()
        time.sleep(away_s)
        seen.clear()
        returned = time.monotonic()
        federation.start()
        until(lambda: len(seen) == size, 120)
    finally:
        herd.end()
    return sorted(at - returned for at in seen.values())


def test_every_silo_reconnects_after_a_restart(make_federation, monkeypatch):
    """12 silos, with shorter pauses."""
    assert len(herd_comes_back(make_federation, monkeypatch, 12, spread_s=2.0, away_s=0.5)) == 12


@pytest.mark.soak
def test_two_hundred_silos_reconnect_spread_over_time(make_federation, monkeypatch):
    """At most a quarter in any second, all within 30 s."""
    back = herd_comes_back(make_federation, monkeypatch, HERD, spread_s=Backoff().spread_s, away_s=2.0)
    assert most_in_a_second(back) <= HERD / 4
    assert back[-1] < 30.0

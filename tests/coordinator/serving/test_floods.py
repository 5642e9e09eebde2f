"""Short floods by an attacker's process against a coordinator's process with honest silos. `soak`: every kind.

Full size: bench/floods.py, docs/guides/network.md.
"""

import subprocess
import sys
import time

import pytest
from flamest.bench import floods
from flamest.coordinator.serving import server

SHORT_S, WAIT_S = 4.0, 12.0  # memory goes back at most five seconds after the last connection was cut
BY_NAME = {flood.name: flood for flood in floods.FLOODS}
SUITE = ("continuation_revoked", "plain_1000_per_s")
CALLS = 20


def check(figures: dict, calls: int = CALLS) -> None:
    """Rounds close, every call over a new connection is served, memory and descriptors are bounded, nothing is left."""
    before, during, after = figures["rounds_per_minute"]
    assert figures["server_alive"]
    assert during > before / 10  # the attacker takes cores of this machine, too
    assert after > before / 3
    assert figures["peak_mb"] < figures["before_mb"] + 300
    assert figures["new_connections"]["served"] == calls
    assert figures["after_mb"] < figures["before_mb"] + 50
    assert figures["peak_descriptors"] < figures["limit"] - 150  # a reserve for files


@pytest.mark.parametrize("name", SUITE)
def test_rounds_close_during_a_flood_and_memory_comes_back(name):
    check(floods.run_flood(BY_NAME[name], 1024, SHORT_S, WAIT_S, calls=CALLS))


@pytest.mark.soak
@pytest.mark.parametrize("name", [name for name in BY_NAME if name not in SUITE])
def test_rounds_close_during_every_kind_of_flood(name):
    check(floods.run_flood(BY_NAME[name], 1024, 10.0, 30.0, calls=CALLS))


@pytest.mark.parametrize("kind", ["plain", "half_handshake", "many_addresses"])
def test_a_silo_joins_while_strangers_take_every_place(make_federation, monkeypatch, kind):
    """1,024 descriptors, a thousand connections a second: those that never call make room."""
    monkeypatch.setattr(server, "raise_descriptor_limit", lambda: 1024)
    federation = make_federation("a", rounds=3, min_silos=1)
    federation.start()
    attack = [sys.executable, "-m", "flamest.bench.flood_attacks", kind, federation.address, "--connections", "100"]
    with subprocess.Popen([*attack, "--seconds", "8", "--rate", "1000"], stdout=subprocess.DEVNULL) as attacker:
        time.sleep(2)
        began = time.monotonic()
        with federation.client("a") as client:
            client.join()
        assert time.monotonic() - began < 5
        assert attacker.poll() is None
        attacker.kill()


def test_without_the_guard_a_flood_takes_memory_and_keeps_it():
    figures = floods.run_flood(BY_NAME["continuation_revoked"], 1024, SHORT_S, 1.0, guarded=False, calls=1)
    assert figures["peak_mb"] > figures["before_mb"] + 150
    assert figures["after_mb"] > figures["before_mb"] + 50

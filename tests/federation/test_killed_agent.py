"""A real agent killed while it sends its update, and restarted with the same policy or another one."""

from __future__ import annotations

import os
import signal
import time

import psutil
import pytest
from flamest.agent.egress.ledger import read_ledger
from flamest.experiments.processes import daemons, wait_until


def entries(site, what: str):
    return [entry for entry in read_ledger(site.folder / "anna" / "state").of(what) if entry.round == 1]


@pytest.mark.parametrize("min_samples", [1, 512], ids=["the same policy", "another policy"])
def test_agent_killed_mid_round_has_at_most_one_update(site, min_samples):
    """The coordinator is stopped while anna sends; anna is killed and restarted.

    With the same policy the same update arrives in the end; with another one it is withdrawn, unless it had arrived.
    """
    place = site("restart", min_silos=2, run="rounds = 3\nwanted = 3")
    settings = place.folder / "anna" / "agent.toml"
    with daemons() as start:
        server = place.start_coordinator(start)
        anna = place.start_silo("anna", start)
        until = time.monotonic() + 60
        while not psutil.Process(anna.process.pid).children() and time.monotonic() < until:
            time.sleep(0.005)  # its worker starts when the model has arrived, and takes longer to begin than this
        os.kill(server.process.pid, signal.SIGSTOP)
        wait_until(lambda: entries(place, "update") != [], "the ledger's line", seconds=60)
        anna.process.kill()
        anna.process.wait()
        settings.write_text(settings.read_text().replace("min_samples = 1\n", f"min_samples = {min_samples}\n"))
        os.kill(server.process.pid, signal.SIGCONT)
        silos = [place.start_silo(silo, start) for silo in ("anna", "berta", "carla")]
        ended = lambda: all(silo.process.poll() is not None for silo in silos)  # noqa: E731
        wait_until(ended, "the end", seconds=90, watched=[server, *silos])
    sent = {(entry.update_id, entry.sha256, entry.header_sha256) for entry in entries(place, "update")}
    assert len(sent) == 1
    accepted = place.history()[0]["accepted"]
    if min_samples == 1:
        assert (accepted, entries(place, "withdrawn")) == (3, [])
    else:
        assert len(entries(place, "update")) == 1
        assert (accepted, len(entries(place, "withdrawn"))) in ((2, 1), (3, 0))

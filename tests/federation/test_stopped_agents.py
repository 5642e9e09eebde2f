"""Real agents that are stopped past a deadline, or that share an identity."""

from __future__ import annotations

import shutil
import signal

from flamest.experiments.processes import daemons, wait_until


def silos_of(row):
    return {one["silo"] for one in row["updates"]}


def closed_without(site, silo):
    """Return whether a round closed without the silo. A busy machine may abandon one first: too few in time."""
    return any(row["status"] == "closed" and silo not in silos_of(row) for row in site.history())


def test_agent_stopped_past_the_deadline_trains_in_the_next_round(site):
    """SIGSTOP while it trains; its late update counts nowhere, and it is in a later round."""
    slow = site("slow", min_silos=2, run="wanted = 3\ndeadline_s = 9\nrounds = 6")
    with daemons() as start:
        server = slow.start_coordinator(start)
        silos = {silo: slow.start_silo(silo, start) for silo in slow.silos}
        carla = silos["carla"].process
        wait_until(lambda: slow.status("carla").doing == "training", "carla's work", seconds=60, watched=[server])
        carla.send_signal(signal.SIGSTOP)
        wait_until(lambda: closed_without(slow, "carla"), "a round without carla", seconds=90, watched=[server])
        carla.send_signal(signal.SIGCONT)
        back = lambda: slow.status("carla").updates_sent > 0  # noqa: E731
        wait_until(back, "carla's return", seconds=60, watched=[server, silos["carla"]])
        rows = slow.history()
    log = silos["carla"].log.read_text()
    assert "event=update_stale round=1 code=stale_round" in log.replace("code=late", "code=stale_round")
    took_part = ["carla" in silos_of(row) for row in rows]
    assert not took_part[0]
    assert any(took_part[1:])


def test_second_agent_with_the_same_certificate_sends_nothing(site):
    """Its status names the reason; one update in each round, and the first agent is not disturbed."""
    twins = site("twins", min_silos=3, run="rounds = 3")
    shutil.copytree(twins.folder / "anna", twins.folder / "copy")
    with daemons() as start:
        server = twins.start_coordinator(start)
        anna = twins.start_silo("anna", start)
        wait_until(lambda: twins.status("anna").doing in ("training", "waiting"), "anna", seconds=60, watched=[anna])
        copy = twins.start_silo("anna", start, home="copy")
        refused = lambda: twins.status("copy").doing == "duplicate_identity"  # noqa: E731
        wait_until(refused, "the refusal", seconds=60, watched=[server, copy])
        others = [twins.start_silo(silo, start) for silo in ("berta", "carla")]
        done = lambda: all(one.process.poll() == 0 for one in (anna, *others))  # noqa: E731
        wait_until(done, "the end", seconds=90, watched=[server, anna, copy, *others])
        status = twins.status("copy")
        assert copy.process.poll() is None
    assert (status.updates_sent, status.doing) == (0, "duplicate_identity")
    assert "another agent speaks for silo 'anna'" in status.detail
    rows = twins.history()
    assert {(row["status"], row["accepted"]) for row in rows} == {("closed", 3)}
    assert sum(row["refused"] for row in rows) >= 1

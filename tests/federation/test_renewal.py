"""Certificates renewed while real agents run: none is restarted and no update is lost."""

from __future__ import annotations

import os
import signal

from flamest.agent.egress.ledger import read_ledger
from flamest.agent.identity import make_request
from flamest.coordinator.admin import authority
from flamest.experiments.processes import daemons, wait_until


def put_in_place(site, silo: str, *, of: str | None = None) -> None:
    """Install the certificate that the operator sent, as the silo's administrator does."""
    new = site.folder / silo / "new.pem"
    new.write_bytes((site.folder / "coordinator" / "silos" / (of or silo) / "silo.pem").read_bytes())
    os.replace(new, site.folder / silo / "silo.pem")


def test_running_agents_switch_to_renewed_certificates(site):
    """anna's are new and she sees it herself, berta is asked by SIGHUP, carla's cannot be used; all end the run."""
    federation = site("renewed", run="rounds = 16")
    with daemons() as start:
        server = federation.start_coordinator(start, once=True)
        agents = {silo: federation.start_silo(silo, start) for silo in federation.silos}
        begun = lambda: all(federation.status(silo).round >= 1 for silo in federation.silos)  # noqa: E731
        wait_until(begun, "the first round", seconds=60, watched=[server, *agents.values()])
        ends = authority.renew_enrolment(federation.folder / "coordinator", "anna", None).expires
        put_in_place(federation, "anna")
        agents["berta"].process.send_signal(signal.SIGHUP)
        put_in_place(federation, "carla", of="berta")
        done = lambda: all(one.process.poll() is not None for one in (server, *agents.values()))  # noqa: E731
        wait_until(done, "the end", seconds=120)
    assert [one.process.returncode for one in (server, *agents.values())] == [0, 0, 0, 0]
    rows = federation.history()
    assert [(row["status"], row["accepted"], row["refused"]) for row in rows] == [("closed", 3, 0)] * 16
    logs = {silo: agent.log.read_text() for silo, agent in agents.items()}
    for silo, event in (("anna", "reloaded"), ("berta", "reloaded"), ("carla", "reload_failed")):
        assert logs[silo].count(f"event=certificate_{event}") == 1, logs[silo]
        assert logs[silo].count("event=joined") == 1
    assert "code=key_mismatch" in logs["carla"]
    assert str(federation.folder) not in logs["carla"]
    assert "is not the key of" in federation.status("carla").certificate_problem
    assert federation.status("anna").certificate_expires == ends
    ledgers = {silo: read_ledger(federation.folder / silo / "state") for silo in federation.silos}
    shown = {silo: len(list(ledger.of("enrolment"))) for silo, ledger in ledgers.items()}
    assert shown == {"anna": 2, "berta": 1, "carla": 1}


def test_refused_agent_continues_with_its_new_certificate(site):
    """Enrolled again while it trains: its update is refused with the old certificate, and sent with the new one."""
    federation = site("enrolled-again", min_silos=3, run="rounds = 2")
    folder = federation.folder / "coordinator"
    with daemons() as start:
        server = federation.start_coordinator(start, once=True)
        anna = federation.start_silo("anna", start)
        trains = lambda: federation.status("anna").doing == "training"  # noqa: E731
        wait_until(trains, "anna's work", seconds=60, watched=[server, anna])
        anna.process.send_signal(signal.SIGSTOP)
        authority.revoke_silo(folder, "anna")
        new = make_request("anna", federation.folder / "anna" / "new")
        authority.add_silo(folder, "anna", new.csr_path.read_bytes())
        os.replace(new.key_path, federation.folder / "anna" / "anna.key")
        put_in_place(federation, "anna")
        anna.process.send_signal(signal.SIGCONT)
        others = [federation.start_silo(silo, start) for silo in ("berta", "carla")]
        done = lambda: all(one.process.poll() is not None for one in (server, anna, *others))  # noqa: E731
        wait_until(done, "the end", seconds=90)
    assert [one.process.returncode for one in (server, anna, *others)] == [0, 0, 0, 0]
    assert [(row["status"], row["accepted"]) for row in federation.history()] == [("closed", 3)] * 2
    log = anna.log.read_text()
    assert log.count("event=certificate_reloaded") == 1
    assert log.count("event=joined") == 2

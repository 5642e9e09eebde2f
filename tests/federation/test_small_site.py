"""A real silo with too few clips to contribute: it holds nothing up, sends no update, and ends with the final model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from flamest.agent.extraction.store import FeatureRow, FeatureStore
from flamest.base.files import sha256_bytes
from flamest.experiments.processes import daemons, run_command, wait_until
from flamest.fedproto.head import params_sha256
from flamest.fedproto.model_file import read_model
from flamest.runtime.clip_records import Clip

from .conftest import FINGERPRINT, LABELS, SILOS, WIDTH

OTHERS = [silo for silo in SILOS if silo != "berta"]


def standing_aside(site):
    return lambda: site.status("berta").doing == "standing_aside"


def finished(silos):
    return lambda: all(silo.process.poll() == 0 for silo in silos)


def ledger_of(site, what):
    entries = run_command("agent", "egress", "--state", site.folder / "berta" / "state")["entries"]
    return [entry for entry in entries if entry["what"] == what]


def add_clips(site, count):
    with FeatureStore.open(site.folder / "berta" / "features.sqlite") as store:
        rows = []
        for number in range(count):
            label = number % len(LABELS)
            clip = Clip(
                Path(f"new{number}.mp4"), sha256_bytes(f"new/{number}".encode()), LABELS[label], f"new-{number // 5}"
            )
            rows.append((clip.path.name, FeatureRow(clip, np.full(WIDTH, label, np.float32), 8, FINGERPRINT, "fp32")))
        store.add_rows(rows)


def test_a_small_site_ends_with_the_final_model_and_sends_nothing(site):
    """Rounds that want three reports end at once, not at their deadline of a minute: it has declined them all."""
    small = site(
        "small", min_silos=2, min_samples={"berta": 256}, run='wanted = 3\nrounds = 6\nfinal_evaluation = "model"'
    )
    with daemons() as start:
        server = small.start_coordinator(start, once=True)
        berta = small.start_silo("berta", start)
        wait_until(standing_aside(small), "berta's word", seconds=60, watched=[server, berta])
        told = small.status("berta")
        silos = [berta, *(small.start_silo(silo, start) for silo in OTHERS)]
        wait_until(finished(silos), "the end", seconds=90, watched=[server, *silos])
    assert "(and 9 of classes with fewer than 10), this silo's policy asks for 256" in told.detail
    assert "At the end of the run this silo gets the final model; it is used" in told.detail
    status = small.status("berta")
    assert (status.doing, status.adopted, status.adopted_round, status.updates_sent) == ("finished", "final", 6, 0)
    assert "stood aside" in status.detail
    assert "the final model is in use" in status.adopted_why
    assert status.gain["clips"] == status.held_out > 0
    in_use = read_model(small.folder / "berta" / "state" / "model.safetensors")
    assert params_sha256(in_use.params) == small.final_model()
    assert [(row["status"], row["accepted"]) for row in small.history()] == [("closed", 2)] * 6
    assert ledger_of(small, "update") == []
    # Asked for an evaluation at the end, it declines.
    assert [(entry.get("models", 0), entry.get("results")) for entry in ledger_of(small, "evaluation")] == [(0, None)]
    assert len(ledger_of(small, "refused")) == 1  # for six rounds


def test_a_small_site_takes_part_once_it_has_clips_enough(site):
    growing = site("growing", min_silos=2, min_samples={"berta": 60}, run="wanted = 3\nrounds = 4\ndeadline_s = 600")
    with daemons() as start:
        server = growing.start_coordinator(start)
        silos = [growing.start_silo("berta", start)]
        wait_until(standing_aside(growing), "berta's word", seconds=60, watched=[server, *silos])
        add_clips(growing, 60)
        sent = lambda: growing.status("berta").updates_sent > 0  # noqa: E731
        wait_until(sent, "berta's update", seconds=60, watched=[server, *silos])
        silos += [growing.start_silo(silo, start) for silo in OTHERS]
        wait_until(finished(silos), "the end", seconds=90, watched=[server, *silos])
    assert growing.status("berta").detail == ""  # nothing is left of the first word
    assert [row["accepted"] for row in growing.history()] == [3] * 4

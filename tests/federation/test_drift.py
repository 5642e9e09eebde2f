"""New clips that are unlike those trained on, noticed by a real daemon after a real run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from flamest.agent.extraction.store import FeatureRow, FeatureStore
from flamest.base.files import sha256_bytes
from flamest.experiments.processes import daemons, wait_until
from flamest.runtime.clip_records import Clip

FINGERPRINT, WIDTH = "imported:test:24", 24


def add_unlike_clips(path: Path) -> None:
    random = np.random.default_rng(1)
    rows = []
    for number in range(40):
        clip = Clip(Path(f"new-{number}.mp4"), sha256_bytes(f"new {number}".encode()), None, f"new-group-{number // 4}")
        x = (random.normal(size=WIDTH) + 5).astype(np.float32)
        rows.append((clip.path.name, FeatureRow(clip, x, 8, FINGERPRINT, "fp32")))
    with FeatureStore.open(path) as store:
        store.add_rows(rows)


def test_a_daemon_says_that_new_clips_are_unlike(site):
    fed = site("fed", run="rounds = 2")
    settings = fed.folder / "anna" / "agent.toml"
    settings.write_text(settings.read_text().replace("threads = 1", "threads = 1\nrescan_s = 0.5"))
    with daemons() as start:
        server = fed.start_coordinator(start)
        silos = [start("anna", fed.folder / "anna" / "log", "agent", ["run", "--config", settings])]
        silos += [fed.start_silo(silo, start) for silo in ("berta", "carla")]
        wait_until(lambda: fed.status("anna").doing == "finished", "the end", seconds=90, watched=[server])
        before = fed.status("anna")
        assert before.drift.get("new", 0) == 0
        add_unlike_clips(fed.folder / "anna" / "features.sqlite")
        wait_until(lambda: fed.status("anna").drift.get("found"), "the drift", seconds=60, watched=[server, silos[0]])
        after = fed.status("anna")
    assert (after.drift["new"], after.drift["clips"], after.drift["groups"]) == (40, 40, 10)
    assert (after.updates_sent, after.update_bytes) == (before.updates_sent, before.update_bytes)

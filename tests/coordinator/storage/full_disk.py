"""Fills a small file system under a running store, and makes room again. A program for test_full_disk.py, run in a
name space of its own (``unshare -Urm``) where it may mount one. Prints what happened as one JSON object."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from flamest.base.errors import StorageError
from flamest.base.files import sha256_bytes
from flamest.coordinator.rounds import Cohort, RoundPolicy, Submission, UpdateSummary, after_close, on_update
from flamest.coordinator.serving.health import HEALTH_FILE, create_health_file, read_health, write_health
from flamest.coordinator.storage.journal import RoundEnd, StoredUpdate
from flamest.coordinator.storage.run_store import RunStore
from flamest.coordinator.storage.spool import Spool
from flamest.coordinator.strategies.fedavg import fedavg
from flamest.fedproto.head import HeadSpec, initial_params, params_sha256
from flamest.fedproto.records import RunSettings
from flamest.fedproto.tensors import encode_params

SPEC = HeadSpec(inputs=500, outputs=2, hidden=(200,))  # 400 kB
RUN = RunSettings("r", ("x", "y"), SPEC, rounds=2, min_silos=1, deadline_s=9.0, fingerprint="f")
COHORT = Cohort(frozenset("a"), 1)


def fill(folder: Path) -> Path:
    """Take all the space that is left."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue
    return filler


def submit(store: RunStore, state):
    content = encode_params(SPEC, initial_params(SPEC, state.open.number))
    report = UpdateSummary("a", f"{state.open.number:032x}", 5, "d")
    after, _ = on_update(state, Submission(state.open.number, state.model_sha256, report), None, 0.0)
    spool = Spool(store.spool_folder, len(content))
    try:
        spool.feed(content)
        spool.finish(sha256_bytes(content))
        store.accept(StoredUpdate(state.open.number, report, sha256_bytes(content), 1, None), spool)
    finally:
        spool.discard()
    return after


def close(store: RunStore, state):
    params = fedavg(SPEC, store.contributions(state.open.number))
    after = after_close(state, params_sha256(params), COHORT)
    store.close_round(after, params, RoundEnd(1.0, 0))
    return after


def fails(work) -> str:
    try:
        work()
    except StorageError as error:
        return error.code
    return "nothing"


def main(mount: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(mount)], check=True)
    folder = mount / "state"
    found: dict[str, object] = {}
    with RunStore.open(folder, RUN) as store:
        state, _ = store.load(RoundPolicy(2, 1, 9.0), COHORT)
        create_health_file(folder)
        state = close(store, submit(store, state))
        filler = fill(mount)
        problem = StorageError("full", code=fails(lambda: submit(store, state)))
        found["update"] = problem.code
        found["probe"] = fails(store.probe)
        write_health(folder, problem)
        found["health"] = read_health(folder).degraded
        filler.unlink()
        found["probe after"] = fails(store.probe)
        state = submit(store, state)
        filler = fill(mount)
        found["close"] = fails(lambda: close(store, state))
        filler.unlink()
        state = close(store, state)
        write_health(folder, None)
        found["health after"] = read_health(folder).degraded
        found["finished"] = state.open is None
    with RunStore.open(folder, RUN) as store:
        found["same after a restart"] = store.load(RoundPolicy(2, 1, 9.0), COHORT)[0].model_sha256 == state.model_sha256
    found["left"] = [path.name for path in folder.rglob("*") if path.name.endswith((".tmp", ".f32"))]
    found["size of health"] = os.stat(folder / HEALTH_FILE).st_size
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

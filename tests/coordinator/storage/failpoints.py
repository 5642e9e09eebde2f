"""Ends a process at every step of accepting an update and of closing a round, and resumes in the next one.

A program for test_failpoints.py: it forks, which a process with gRPC threads must not. Prints one JSON object a line:
where the child was ended, whether the silo had its receipt, and what the next start made of it.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from flamest.base import files
from flamest.base.files import sha256_bytes
from flamest.coordinator.rounds import Cohort, RoundPolicy, Submission, UpdateSummary, Verdict, after_close, on_update
from flamest.coordinator.storage import payloads as payloads_module
from flamest.coordinator.storage import spool as spool_module
from flamest.coordinator.storage.journal import RoundEnd, StoredUpdate
from flamest.coordinator.storage.run_store import RunStore
from flamest.coordinator.storage.spool import Spool
from flamest.coordinator.strategies.fedavg import fedavg
from flamest.fedproto.head import HeadSpec, initial_params, params_sha256
from flamest.fedproto.records import RunSettings
from flamest.fedproto.tensors import encode_params

SPEC = HeadSpec(inputs=60, outputs=2, hidden=(20,))
RUN = RunSettings("r", ("x", "y"), SPEC, rounds=1, min_silos=1, deadline_s=9.0, fingerprint="f")
POLICY, COHORT = RoundPolicy(1, 1, 9.0), Cohort(frozenset("ab"), 2)
DIED = 77


class Counter:
    """Calls of every step so far; ends the process before or after the one that is asked for."""

    def __init__(self, step: str, number: int, when: str) -> None:
        self._wanted, self._when, self.seen = (step, number), when, {}

    def watched(self, step: str, work: Callable) -> Callable:
        def call(*arguments, **options):
            number = self.seen[step] = self.seen.get(step, 0) + 1
            here = (step, number) == self._wanted
            if here and self._when == "before":
                os._exit(DIED)
            result = work(*arguments, **options)
            if here:
                os._exit(DIED)
            return result

        return call


class WatchedDatabase:
    """An apsw connection whose statements and commits are steps."""

    def __init__(self, inner, counter: Counter) -> None:
        self._inner = inner
        self.execute = counter.watched("statement", inner.execute)
        self._commit = counter.watched("commit", inner.__exit__)

    def __getattr__(self, name: str):
        return getattr(self._inner, name)

    def __enter__(self):
        self._inner.__enter__()
        return self

    def __exit__(self, *error):
        return self._commit(*error)


def arm(store: RunStore, counter: Counter) -> None:
    """From here on every step is counted."""
    os.fsync = counter.watched("fsync", os.fsync)
    os.replace = counter.watched("rename", os.replace)
    fsync_directory = counter.watched("fsync of the folder", files.fsync_directory)
    files.fsync_directory = payloads_module.fsync_directory = fsync_directory
    Spool.feed = counter.watched("write", Spool.feed)
    store.journal.db = WatchedDatabase(store.journal.db, counter)


def payload(silo: str) -> bytes:
    return encode_params(SPEC, initial_params(SPEC, ord(silo)))


def submit(store: RunStore, state, silo: str, receipt: Callable[[], None]):
    """As the server does it: decide, make durable, count, answer."""
    content = payload(silo)
    report = UpdateSummary(silo, f"{ord(silo):032x}", 5, f"digest of {silo}")
    known = store.accepted_update(1, silo)
    state, verdict = on_update(state, Submission(1, state.model_sha256, report), known, 0.0)
    if verdict is Verdict.ACCEPTED:
        upload = Spool(store.spool_folder, len(content))
        upload.feed(content)
        upload.finish(sha256_bytes(content))
        store.accept(StoredUpdate(1, report, sha256_bytes(content), len(content), None), upload)
    receipt()
    return state, verdict


def close(store: RunStore, state) -> str:
    params = fedavg(SPEC, store.contributions(1))
    store.close_round(after_close(state, params_sha256(params), COHORT), params, RoundEnd(1.0, 0))
    return params_sha256(params)


def child(folder: Path, counter: Counter, receipts: int) -> None:
    store = RunStore.open(folder, RUN)
    state, _ = store.load(POLICY, COHORT)
    arm(store, counter)
    answer = counter.watched("reply", lambda silo: os.write(receipts, silo.encode()))
    for silo in "ab":
        state, _ = submit(store, state, silo, lambda silo=silo: answer(silo))
    close(store, state)
    os.write(receipts, json.dumps(counter.seen).encode())
    os._exit(0)


def run_child(folder: Path, counter: Counter) -> tuple[int, bytes]:
    """Exit code, and what was answered."""
    reading, writing = os.pipe()
    if not (process := os.fork()):
        child(folder, counter, writing)
    os.close(writing)
    answered = b"".join(iter(lambda: os.read(reading, 4096), b""))
    os.close(reading)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), answered


def resume(folder: Path) -> dict:
    """The next start: silos that had no receipt send again; then the round closes, if it has not."""
    with RunStore.open(folder, RUN) as store:
        state, _ = store.load(POLICY, COHORT)
        verdicts = {}
        if state.open is not None:
            for silo in "ab":
                state, verdict = submit(store, state, silo, lambda: None)
                verdicts[silo] = verdict.value
            model = close(store, state)
        else:
            model = state.model_sha256
        rows = store.journal.all("SELECT silo FROM updates ORDER BY silo")
    with RunStore.open(folder, RUN) as store:  # and one more start, which cleans up
        store.load(POLICY, COHORT)
    left = [path.name for path in folder.rglob("*") if path.name.endswith((".tmp", ".f32", ".running"))]
    return {"model": model, "verdicts": verdicts, "rows": [row[0] for row in rows], "left": left}


def tell(found: dict) -> None:
    sys.stdout.write(json.dumps(found) + "\n")


def main(folder: Path, every: bool) -> None:
    assert spool_module.os is os
    code, answered = run_child(folder / "calm", Counter("none", 0, "before"))
    steps = json.loads(answered.removeprefix(b"ab"))
    tell({"point": "none", "code": code, "answered": "ab", "steps": steps, **resume(folder / "calm")})
    points = [(step, number) for step, times in steps.items() for number in range(1, (times if every else 1) + 1)]
    for index, ((step, number), when) in enumerate(itertools.product(points, ("before", "after"))):
        at = folder / str(index)
        code, answered = run_child(at, Counter(step, number, when))
        result = {"point": f"{when} {step} {number}", "code": code, "answered": answered.decode()}
        tell({**result, **resume(at)})


if __name__ == "__main__":
    main(Path(sys.argv[1]), every="every" in sys.argv[2:])

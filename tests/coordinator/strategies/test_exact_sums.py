"""Exact aggregation: the same bits for every order of arrival, in the memory of a few models."""

from __future__ import annotations

import itertools
import os
import random
import tracemalloc

import pytest
from flamest.base.files import sha256_bytes
from flamest.coordinator.rounds import Cohort, RoundPolicy, Submission, UpdateSummary, on_update
from flamest.coordinator.storage.journal import StoredUpdate
from flamest.coordinator.storage.run_store import RunStore
from flamest.coordinator.storage.spool import Spool
from flamest.coordinator.strategies.composition import aggregate, first_state
from flamest.fedproto.head import HeadSpec, initial_params, params_sha256
from flamest.fedproto.records import RunSettings, Strategy
from flamest.fedproto.tensors import encode_params

SILOS = "abcdefghij"
POLICY = RoundPolicy(rounds=1, min_silos=1, deadline_s=9.0)
STRATEGIES = {
    "mean": Strategy(),
    "clipped": Strategy(clip=0.9),
    "momentum": Strategy(server_momentum=0.9),
    "adam": Strategy(server_adam=0.1),
    "feddyn": Strategy("feddyn", alpha=0.1),
    "median": Strategy(combine="median"),
    "trimmed mean": Strategy(combine="trimmed_mean", trim=0.2),
}


def run_of(strategy: Strategy, spec: HeadSpec, name: str = "r") -> RunSettings:
    return RunSettings(name, ("x", "y"), spec, 1, 1, 9.0, "f", strategy=strategy)


def keep(store: RunStore, state, silo: str, payload: bytes, examples: int):
    """An update, durable; the state that counts it."""
    report = UpdateSummary(silo, f"{ord(silo[0]):032x}", examples, f"digest-{silo}")
    state, _ = on_update(state, Submission(1, state.model_sha256, report), None, 0.0)
    spool = Spool(store.spool_folder, len(payload))
    spool.feed(payload)
    spool.finish(sha256_bytes(payload))
    store.accept(StoredUpdate(1, report, sha256_bytes(payload), len(payload), None), spool)
    spool.discard()
    return state


def test_order_of_arrival_changes_no_bit_of_the_model(tmp_path, monkeypatch):
    """Ten silos of very unequal weight, 120 orders of arrival through the durable store, every strategy."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # 4,800 of them; tests/coordinator/storage/ tests durability
    spec = HeadSpec(inputs=6, outputs=2, hidden=(4,))
    parts = {silo: (encode_params(spec, initial_params(spec, ord(silo))), 3 ** ord(silo) % 9973) for silo in SILOS}
    chance, orders = random.Random(11), set()
    while len(orders) < 120:
        orders.add("".join(chance.sample(SILOS, len(SILOS))))
    found: dict[str, set[str]] = {name: set() for name in STRATEGIES}
    for number, order in enumerate(sorted(orders)):
        with RunStore.open(tmp_path, run_of(Strategy(), spec, f"run-{number}")) as store:
            store.journal.db.pragma("synchronous", "off")
            state, base = store.load(POLICY, Cohort(frozenset(SILOS), 10))
            for silo in order:
                state = keep(store, state, silo, *parts[silo])
            stored = store.contributions(1)
            for name, strategy in STRATEGIES.items():
                run = run_of(strategy, spec)
                made = aggregate(strategy, spec, base, stored, first_state(run), 10)
                found[name].add(params_sha256(made.params))
    assert {name: len(digests) for name, digests in found.items()} == dict.fromkeys(STRATEGIES, 1)
    assert len(set(itertools.chain(*found.values()))) == len(STRATEGIES) - 1  # the first step of momentum is the mean's


@pytest.mark.parametrize("name", ["mean", "clipped", "momentum", "feddyn"])
def test_memory_does_not_grow_with_the_number_of_silos(tmp_path, name):
    spec = HeadSpec(inputs=500, outputs=2, hidden=(120,))
    model_bytes, peaks = 4 * spec.parameters, []
    run = run_of(STRATEGIES[name], spec)
    for silos in (3, 30):
        with RunStore.open(tmp_path / str(silos), run) as store:
            state, base = store.load(POLICY, Cohort(frozenset(), silos))
            for number in range(silos):
                payload = encode_params(spec, initial_params(spec, number))
                state = keep(store, state, f"silo-{number:02d}", payload, 5 + number)
            tracemalloc.start()
            aggregate(run.strategy, spec, base, store.contributions(1), first_state(run), silos)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] < 1.05 * peaks[0]
    assert peaks[1] < 11 * model_bytes

"""The round that a silo's status names as counted: FedDyn's silos resume only from rounds that counted."""

from __future__ import annotations

import numpy as np
import pytest
from flamest.agent.client import StaleUpdate
from flamest.coordinator.strategies.algorithm import ServerState
from flamest.coordinator.strategies.composition import aggregate
from flamest.coordinator.strategies.contributions import InMemoryContribution
from flamest.fedproto.head import params_sha256
from flamest.fedproto.records import GlobalModel, Phase, Update


@pytest.fixture
def federation(make_federation):
    made = make_federation("a", "b", "c", rounds=3, min_silos=2, alpha=0.5, deadline_s=1.5)
    made.config.write_text(made.config.read_text().replace('name = "fedavg"', 'name = "feddyn"'))
    made.start()
    return made


def update(model: GlobalModel, silo: str) -> Update:
    params = {name: tensor + np.float32(ord(silo) / 100 + model.round) for name, tensor in model.params.items()}
    return Update(model.round, model.sha256, f"{model.round:030x}{ord(silo):02x}", 5, params)


def test_counted_round_is_the_last_closed_one_not_an_abandoned(federation):
    with federation.client("a") as a, federation.client("b") as b:
        run = a.join()
        first = a.wait(run, 0, 5)
        start = a.fetch(run, first)
        a.submit(run, update(start, "a"))  # alone: the round is abandoned at its deadline
        second = a.wait(run, 1, 30)
        assert (first.phase, first.round, first.counted_round) == (Phase.OPEN, 1, 0)
        assert (second.phase, second.round, second.counted_round) == (Phase.OPEN, 2, 0)
        assert second.model_sha256 == start.sha256
        model = a.fetch(run, second)
        a.submit(run, update(model, "a"))
        assert b.wait(run, 0, 5).counted_round == 0
        b.submit(run, update(model, "b"))
        third = a.wait(run, 2, 30)
        assert (third.phase, third.round, third.counted_round) == (Phase.OPEN, 3, 2)
        # Of the three silos two reported: the model is their plain mean, corrected by all three.
        parts = [InMemoryContribution(silo, 5, update(model, silo).params) for silo in "ab"]
        made = aggregate(run.strategy, run.head, model.params, parts, ServerState(rounds_left=3), 3)
        assert third.model_sha256 == params_sha256(made.params)
        with pytest.raises(StaleUpdate):
            b.submit(run, update(start, "b"))
        assert b.wait(run, 2, 5).counted_round == 2  # a refused update changes nothing


def test_counted_round_survives_a_restart(federation):
    with federation.client("a") as a, federation.client("b") as b:
        run = a.join()
        model = a.fetch(run, a.wait(run, 0, 5))
        for silo, client in (("a", a), ("b", b)):
            client.submit(run, update(model, silo))
        assert a.wait(run, 1, 30).round == 2
    federation.stop()
    federation.start()
    with federation.client("a") as a, federation.client("c") as c:
        assert a.wait(run, 1, 30).counted_round == 1
        assert c.wait(run, 0, 30).counted_round == 0


def test_counted_round_is_absent_without_carried_state(make_federation):
    plain = make_federation("a", rounds=2)
    plain.start()
    with plain.client("a") as a:
        run = a.join()
        a.submit(run, update(a.fetch(run, a.wait(run, 0, 5)), "a"))
        second = a.wait(run, 1, 30)
    assert (second.round, second.counted_round) == (2, 0)

"""Claims of examples over the real wire: what counts, what is said, and that order and restarts change nothing."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from flamest.coordinator.admin.status import history_lines, history_of, status_lines, status_of
from flamest.coordinator.strategies.contributions import InMemoryContribution
from flamest.coordinator.strategies.fedavg import fedavg
from flamest.fedproto.head import HeadSpec, params_sha256
from flamest.fedproto.records import Phase, Update

SILOS = ("a", "b", "c", "d")
HONEST = {"a": 40, "b": 50, "c": 60}
MILLION = 1_000_000
STEP = 1e-3
HEAD = HeadSpec(inputs=6, outputs=3, hidden=(5,))


def moved(params, silo, length=1.0):
    random = np.random.default_rng(list(silo.encode()))
    return {
        name: (tensor + length * STEP * random.choice([-1.0, 1.0], tensor.shape)).astype(np.float32)
        for name, tensor in params.items()
    }


@pytest.fixture
def start(make_federation):
    def started(*, start=True, **run):
        options = {"rounds": 3, "min_silos": 4, "examples_times": 2.0, "max_examples": MILLION, **run}
        federation = make_federation(*SILOS, **options)
        if start:
            federation.start()
        return federation

    return started


def play(federation, number, claims, lengths=None, order=SILOS, restart_after=None):
    """One round with these claims; the parameters that were sent, by silo, and the model's hash after it."""
    sent = {}
    for place, silo in enumerate(order):
        if place == restart_after:
            federation.stop()
            federation.start()
        with federation.client(silo) as client:
            run = client.join()
            status = client.wait(run, number - 1, 10)
            assert (status.phase, status.round) == (Phase.OPEN, number)
            model = client.fetch(run, status)
            sent[silo] = moved(model.params, silo, (lengths or {}).get(silo, 1.0))
            client.submit(run, Update(number, model.sha256, f"{number:031x}{silo}", claims[silo], sent[silo]))
    with federation.client("a") as client:
        return sent, client.wait(client.join(), number, 20).model_sha256


def mean(sent, weights):
    parts = [InMemoryContribution(silo, weights[silo], sent[silo]) for silo in sorted(sent)]
    return fedavg(HEAD, parts)


def test_a_million_claimed_examples_count_as_twice_the_median(start, caplog):
    federation = start()
    claims = {**HONEST, "d": MILLION}
    sent, made = play(federation, 1, claims, lengths={"d": 0.5})
    assert made == params_sha256(mean(sent, {**HONEST, "d": 100}))  # the lower median of 40, 50, 60 and a million is 50
    history = history_of(federation.settings())
    (row,) = [row for row in history if row["round"] == 1]
    found = {update["silo"]: (update["examples"], update["counted"]) for update in row["updates"]}
    assert found == {"a": (40, 40), "b": (50, 50), "c": (60, 60), "d": (MILLION, 100)}
    assert json.loads(json.dumps(history)) == history
    text = "\n".join(history_lines(history))
    assert "1000000 examples claimed, counted as 100" in text
    assert text.count("examples claimed") == 1
    assert "\n".join(history_lines(history, silos=True)).count("norm") == 4
    status = status_of(federation.settings())
    (silo,) = [silo for silo in status["silos"] if silo["silo"] == "d"]
    assert (silo["examples"], silo["counted"]) == (MILLION, 100)
    assert silo["norm"] > 0
    assert "1000000 examples claimed, counted as 100" in "\n".join(status_lines(status))
    said = [record for record in caplog.records if record.message == "update_limited"]
    assert len(said) == 1
    federation.stop()


def test_honest_claims_make_the_mean_of_equation_12(start, caplog):
    federation = start()
    claims = {**HONEST, "d": 70}
    sent, made = play(federation, 1, claims)
    assert made == params_sha256(mean(sent, claims))
    assert not [record for record in caplog.records if record.message == "update_limited"]
    federation.stop()


def test_in_any_order_and_after_a_restart_the_model_is_the_same(start):
    made = set()
    for order, restart in [*zip(itertools.islice(itertools.permutations(SILOS), 0, 24, 11), (None, 2, 3), strict=True)]:
        federation = start()
        claims, lengths = {**HONEST, "d": MILLION}, {"d": 40.0}
        play(federation, 1, claims, lengths)
        made.add(play(federation, 2, claims, lengths, order, restart)[1])
        federation.stop()
    assert len(made) == 1


def test_without_a_limit_a_claim_is_the_mean(start):
    """The attack without the defence: the model is the one that claims most."""
    federation = start(examples_times=0)
    sent, made = play(federation, 1, {**HONEST, "d": MILLION})
    assert made == params_sha256(mean(sent, {**HONEST, "d": MILLION}))
    federation.stop()


def test_an_honest_silo_that_moves_farther_warns_of_nothing(start, caplog):
    caplog.set_level("INFO", logger="flamest")
    federation = start()
    play(federation, 1, {**HONEST, "d": 70}, lengths={"d": 3.0})
    federation.stop()
    levels = {record.message: record.levelname for record in caplog.records}
    assert levels["update_shortened"] == "INFO"
    assert "update_limited" not in levels
    (row,) = [row for row in history_of(federation.settings()) if row["round"] == 1]
    assert [update["silo"] for update in row["updates"] if update["counted_norm"] < update["norm"]] == ["d"]


def test_with_feddyn_a_claim_buys_no_distance_in_any_order(start):
    made = set()
    for order in (SILOS, SILOS[::-1]):
        federation = start(norm_times=4.0, alpha=0.1, start=False)
        config = federation.config.read_text().replace('name = "fedavg"', 'name = "feddyn"')
        federation.config.write_text(config)
        federation.start()
        made.add(play(federation, 1, {**HONEST, "d": MILLION}, {"d": 400.0}, order)[1])
        federation.stop()
        (row,) = [row for row in history_of(federation.settings()) if row["round"] == 1]
        (far,) = [update for update in row["updates"] if update["silo"] == "d"]
        assert far["counted_norm"] == pytest.approx(far["norm"] / 100, rel=1e-3)
        assert {update["counted"] for update in row["updates"]} == {40, 50, 60, MILLION}
    assert len(made) == 1


def test_a_median_of_the_updates_is_not_limited(start, caplog):
    federation = start(combine='"median"')
    play(federation, 1, {**HONEST, "d": MILLION}, lengths={"d": 40.0})
    assert not [record for record in caplog.records if record.message == "update_limited"]
    federation.stop()


def test_a_round_of_few_honest_reports_has_the_median_of_earlier_ones(start):
    federation = start(min_silos=3, wanted=3)
    claims = dict.fromkeys(SILOS, 50)
    federation_order = ("a", "b", "c")
    play(federation, 1, claims, order=federation_order)
    lying = {"a": 50, "b": MILLION, "d": MILLION}
    play(federation, 2, lying, order=("a", "b", "d"))
    (row,) = [row for row in history_of(federation.settings()) if row["round"] == 2]
    assert {update["silo"]: update["counted"] for update in row["updates"]} == {"a": 50, "b": 100, "d": 100}
    federation.stop()

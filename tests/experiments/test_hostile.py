"""Two hostile silos of ten: their effect on the plain mean, and behind a defence."""

from __future__ import annotations

import numpy as np
import pytest
from flamest.agent.training.dataset import FeatureTable
from flamest.coordinator.settings import CheckSettings
from flamest.coordinator.strategies.contributions import InMemoryContribution, distance
from flamest.experiments.hostile import InflatedExamples, Noise, SignFlip, only_by
from flamest.experiments.partition import dirichlet
from flamest.experiments.simulation import Scenario, SimulatedSilo, simulate
from flamest.fedproto.head import HeadSpec, initial_params, params_sha256
from flamest.fedproto.records import RunSettings, Strategy, TrainSettings

HEAD = HeadSpec(inputs=32, outputs=10, hidden=(16,))
HOSTILE = frozenset({"s3", "s7"})


def tables(rows: int, test: int, seed: int = 0) -> tuple[FeatureTable, FeatureTable]:
    random = np.random.default_rng(seed)
    centres, y = random.normal(size=(10, 32)), random.integers(0, 10, rows + test)
    x = (centres[y] + 1.5 * random.normal(size=(rows + test, 32))).astype(np.float32)
    return FeatureTable(x[:rows], y[:rows]), FeatureTable(x[rows:], y[rows:])


def silos_of(train: FeatureTable, *, beta: float, seed: int) -> list[SimulatedSilo]:
    split = dirichlet(train.y, beta=beta, silos=10, seed=seed, smallest=1)
    return [SimulatedSilo(f"s{index}", train.rows(rows)) for index, rows in enumerate(split.silos)]


PLAIN = Strategy()


def settings(rounds: int, strategy: Strategy = PLAIN, seed: int = 0) -> RunSettings:
    train = TrainSettings(epochs=2, batch_size=32)
    labels = tuple(map(str, range(10)))
    return RunSettings("r", labels, HEAD, rounds, 1, 1.0, "f", seed=seed, strategy=strategy, train=train)


def test_the_norm_bound_limits_two_reversing_silos_of_ten():
    """Sign flip × 10 by two silos of ten costs the plain mean more than 10 points, and less than 1 with the bound."""
    train, test = tables(800, 1000)
    silos = silos_of(train, beta=0.5, seed=1)

    def accuracy(scenario: Scenario, strategy: Strategy = PLAIN) -> float:
        done = simulate(settings(6, strategy), silos, test=test, workers=2, scenario=scenario)
        return 100 * done.rounds[-1].correct / done.rounds[-1].count

    attack = only_by(HOSTILE, SignFlip(10.0))
    honest, attacked = accuracy(Scenario(norm_times=4.0)), accuracy(Scenario(attack))
    assert attacked < honest - 10
    assert accuracy(Scenario(attack, norm_times=4.0)) > honest - 1
    assert accuracy(Scenario(attack), Strategy(combine="median")) > attacked + 20


def test_two_silos_of_ten_that_claim_most_examples_turn_no_run():
    """Reversed updates of honest length, within the norm bound. By default such claims slow a run, and end none."""
    train, test = tables(800, 1000)
    silos = silos_of(train, beta=0.5, seed=1)
    attack = only_by(frozenset({"s1", "s2"}), InflatedExamples(100_000))

    def accuracy(examples_times: float) -> float:
        scenario = Scenario(attack, norm_times=4.0, examples_times=examples_times)
        done = simulate(settings(12), silos, test=test, workers=2, scenario=scenario)
        return 100 * done.rounds[-1].correct / done.rounds[-1].count

    assert accuracy(0.0) < 15  # chance is 10
    assert accuracy(CheckSettings().examples_times) > 50


def honest_refusals(rounds: int, seeds: range, strategies: list[Strategy]) -> dict[tuple[int, Strategy], int]:
    found = {}
    for seed in seeds:
        silos = silos_of(tables(1500, 1, seed)[0], beta=0.1, seed=seed)
        for strategy in strategies:
            done = simulate(settings(rounds, strategy, seed), silos, workers=2, scenario=Scenario(norm_times=4.0))
            found[seed, strategy] = len(done.refused)
    return found


def test_no_honest_update_of_unequal_silos_is_refused():
    """Ten silos with Dirichlet 0.1 in 15 rounds; the soak test runs 80 rounds of every strategy."""
    assert set(honest_refusals(15, range(1), [Strategy()]).values()) == {0}


@pytest.mark.soak
def test_no_honest_update_is_refused_in_eighty_rounds_of_any_strategy():
    strategies = [
        Strategy(),
        Strategy("fedprox", mu=0.01),
        Strategy("feddyn", alpha=0.01),
        Strategy(server_momentum=0.9),
        Strategy(server_adam=0.03),
        Strategy(combine="median"),
    ]
    assert set(honest_refusals(80, range(5), strategies).values()) == {0}


def test_refused_silos_are_listed_and_do_not_change_the_model():
    train, _ = tables(400, 1)
    silos = silos_of(train, beta=1.0, seed=0)
    attacked = simulate(settings(3), silos, scenario=Scenario(only_by(HOSTILE, SignFlip(50.0)), norm_times=4.0))
    alone = simulate(settings(3), [silo for silo in silos if silo.name not in HOSTILE])
    assert attacked.refused == tuple((number, silo) for number in (1, 2, 3) for silo in sorted(HOSTILE))
    assert attacked.sha256 == alone.sha256


@pytest.mark.parametrize(("attack", "times"), [(SignFlip(10.0), 10.0), (Noise(3.0), 3.0), (InflatedExamples(9), 1.0)])
def test_an_attack_has_its_stated_length(attack, times):
    base, params = initial_params(HEAD, 0), initial_params(HEAD, 1)
    sent = attack(2, base, InMemoryContribution("a", 4, params))
    assert distance(sent.params, base) == pytest.approx(times * distance(params, base), rel=1e-5)
    assert sent.examples == (36 if isinstance(attack, InflatedExamples) else 4)
    assert params_sha256(attack(2, base, InMemoryContribution("a", 4, params)).params) == params_sha256(sent.params)

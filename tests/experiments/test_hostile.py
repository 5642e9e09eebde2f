"""Two hostile silos of ten: what they do to the plain mean, and what is left of it behind a defence."""

from __future__ import annotations

import numpy as np
import pytest
from flamest.agent.training.dataset import FeatureTable
from flamest.coordinator.strategies.contributions import HeldContribution, distance
from flamest.experiments.hostile import Heavy, Noise, SignFlip, by
from flamest.experiments.partition import dirichlet
from flamest.experiments.simulation import SimulatedSilo, Trial, simulate
from flamest.fedproto.head import HeadSpec, initial_params, params_sha256
from flamest.fedproto.records import RunSettings, Strategy, TrainSettings

HEAD = HeadSpec(inputs=32, outputs=10, hidden=(16,))
HOSTILE = frozenset({"s3", "s7"})


def tables(rows: int, test: int, seed: int = 0) -> tuple[FeatureTable, FeatureTable]:
    random = np.random.default_rng(seed)
    centres, y = random.normal(size=(10, 32)), random.integers(0, 10, rows + test)
    x = (centres[y] + 1.5 * random.normal(size=(rows + test, 32))).astype(np.float32)
    return FeatureTable(x[:rows], y[:rows]), FeatureTable(x[rows:], y[rows:])


def crew(train: FeatureTable, *, beta: float, seed: int) -> list[SimulatedSilo]:
    split = dirichlet(train.y, beta=beta, silos=10, seed=seed, smallest=1)
    return [SimulatedSilo(f"s{index}", train.rows(rows)) for index, rows in enumerate(split.silos)]


PLAIN = Strategy()


def settings(rounds: int, strategy: Strategy = PLAIN, seed: int = 0) -> RunSettings:
    train = TrainSettings(epochs=2, batch_size=32)
    labels = tuple(map(str, range(10)))
    return RunSettings("r", labels, HEAD, rounds, 1, 1.0, "f", seed=seed, strategy=strategy, train=train)


def test_two_of_ten_who_turn_their_updates_round_spoil_the_mean_and_not_the_model_behind_the_bound():
    """T30: sign flip ×10 by two silos of ten; the plain mean loses more than 10 points, with the bound less than 1."""
    train, test = tables(800, 1000)
    silos = crew(train, beta=0.5, seed=1)

    def accuracy(trial: Trial, strategy: Strategy = PLAIN) -> float:
        done = simulate(settings(6, strategy), silos, test=test, workers=2, trial=trial)
        return 100 * done.rounds[-1].correct / done.rounds[-1].count

    attack = by(HOSTILE, SignFlip(10.0))
    calm, spoilt = accuracy(Trial(norm_times=4.0)), accuracy(Trial(attack))
    assert spoilt < calm - 10
    assert accuracy(Trial(attack, norm_times=4.0)) > calm - 1
    assert accuracy(Trial(attack), Strategy(combine="median")) > spoilt + 20


def honest_refusals(rounds: int, seeds: range, strategies: list[Strategy]) -> dict[tuple[int, Strategy], int]:
    found = {}
    for seed in seeds:
        silos = crew(tables(1500, 1, seed)[0], beta=0.1, seed=seed)
        for strategy in strategies:
            done = simulate(settings(rounds, strategy, seed), silos, workers=2, trial=Trial(norm_times=4.0))
            found[seed, strategy] = len(done.refused)
    return found


def test_no_honest_update_is_refused_however_unequal_the_silos_are():
    """T30: Dirichlet 0.1, ten silos; 80 rounds and every strategy in the soak."""
    assert set(honest_refusals(15, range(1), [Strategy()]).values()) == {0}


@pytest.mark.soak
def test_no_honest_update_is_refused_in_eighty_rounds_of_any_strategy():
    """T30 at its full size."""
    strategies = [
        Strategy(),
        Strategy("fedprox", mu=0.01),
        Strategy("feddyn", alpha=0.01),
        Strategy(server_momentum=0.9),
        Strategy(server_adam=0.03),
        Strategy(combine="median"),
    ]
    assert set(honest_refusals(80, range(5), strategies).values()) == {0}


def test_who_is_refused_is_told_by_round_and_the_others_make_the_model():
    train, _ = tables(400, 1)
    silos = crew(train, beta=1.0, seed=0)
    attacked = simulate(settings(3), silos, trial=Trial(by(HOSTILE, SignFlip(50.0)), norm_times=4.0))
    alone = simulate(settings(3), [silo for silo in silos if silo.name not in HOSTILE])
    assert attacked.refused == tuple((number, silo) for number in (1, 2, 3) for silo in sorted(HOSTILE))
    assert attacked.sha256 == alone.sha256


@pytest.mark.parametrize(("attack", "times"), [(SignFlip(10.0), 10.0), (Noise(3.0), 3.0), (Heavy(9), 1.0)])
def test_an_attack_goes_as_far_as_it_says(attack, times):
    base, params = initial_params(HEAD, 0), initial_params(HEAD, 1)
    sent = attack(2, base, HeldContribution("a", 4, params))
    assert distance(sent.params, base) == pytest.approx(times * distance(params, base), rel=1e-5)
    assert sent.examples == (36 if isinstance(attack, Heavy) else 4)
    assert params_sha256(attack(2, base, HeldContribution("a", 4, params)).params) == params_sha256(sent.params)

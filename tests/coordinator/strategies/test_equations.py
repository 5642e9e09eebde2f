"""FedProx, FedDyn, server optimisers and robust means against the papers' equations, in plain NumPy and float64.

The problem is convex: softmax regression with weight decay, four silos of unequal size and classes. The
independent side has its own gradient, its own Adam and its own aggregation, and shares only the shuffles.
"""

from __future__ import annotations

import numpy as np
import pytest
from flamest.agent.training.dataset import FeatureTable
from flamest.agent.training.federated import train_silo
from flamest.agent.training.trainer import HeadTrainer, shuffle_seed
from flamest.base.errors import DataError, InvariantError
from flamest.coordinator.strategies.algorithm import ServerState
from flamest.coordinator.strategies.composition import aggregate, first_state
from flamest.coordinator.strategies.contributions import InMemoryContribution
from flamest.coordinator.strategies.fedavg import fedavg
from flamest.coordinator.strategies.feddyn import feddyn
from flamest.fedproto.head import HeadSpec, initial_params, params_sha256
from flamest.fedproto.onnx_builder import DType
from flamest.fedproto.records import RunSettings, Strategy, TrainSettings
from scipy.stats import trim_mean

SPEC = HeadSpec(inputs=6, outputs=3, hidden=())
ROUNDS = 50
NAMES = ("0.weight", "0.bias")
STRATEGIES = {
    "fedavg": Strategy(),
    "fedprox": Strategy("fedprox", mu=0.4),
    "feddyn": Strategy("feddyn", alpha=0.3),
    "fedavgm": Strategy(server_momentum=0.7),
    "fedprox with momentum, last five averaged": Strategy("fedprox", mu=0.1, server_momentum=0.5, average_last=5),
    "feddyn, last three averaged": Strategy("feddyn", alpha=0.1, average_last=3),
    "fedadam": Strategy(server_adam=0.05, server_tau=0.05),
    "median": Strategy(combine="median"),
    "trimmed mean with fedprox": Strategy("fedprox", mu=0.2, combine="trimmed_mean", trim=0.3),
    "clipped, with momentum": Strategy(clip=0.8, server_momentum=0.3),
}


def silo_tables() -> dict[str, FeatureTable]:
    random = np.random.default_rng(3)
    centres = random.normal(size=(3, 6))
    tables = {}
    for silo, rows, shares in (("a", 40, [8, 1, 1]), ("b", 25, [1, 8, 1]), ("c", 60, [1, 1, 8]), ("d", 17, [1, 1, 1])):
        y = random.choice(3, rows, p=np.array(shares) / sum(shares))
        tables[silo] = FeatureTable((centres[y] + random.normal(size=(rows, 6))).astype(np.float32), y)
    return tables


def present(number: int) -> list[str]:
    """Silos that report in a round: every third round one stays away, a different one each time."""
    return [silo for index, silo in enumerate("abcd") if number % 3 or index != number // 3 % 4]


def settings_of(strategy: Strategy, rounds: int = ROUNDS) -> RunSettings:
    train = TrainSettings(epochs=2, batch_size=16, weight_decay=1e-2, learning_rate_decay=0.97)
    return RunSettings("r", ("x", "y", "z"), SPEC, rounds, 1, 1.0, "f", strategy=strategy, train=train)


def ours(run: RunSettings, dtype: DType = "float64") -> dict[str, np.ndarray]:
    """Run the functions that daemons and simulation call; models are float32 between silo and coordinator.

    In float64 the step graph leaves only that rounding, which the independent side can do too.
    """
    tables, trainer = silo_tables(), HeadTrainer(SPEC, threads=1, dtype=dtype)
    params, state = initial_params(SPEC, run.seed), first_state(run)
    corrections: dict[str, dict] = {silo: {} for silo in tables}
    for number in range(1, run.rounds + 1):
        parts = []
        for silo in present(number):
            trained, corrections[silo] = train_silo(trainer, run, silo, number, params, tables[silo], corrections[silo])
            sent = {name: tensor.astype(np.float32) for name, tensor in trained.params.items()}
            parts.append(InMemoryContribution(silo, len(tables[silo]), sent))
        made = aggregate(run.strategy, SPEC, params, parts, state, len(tables))
        params, state = made.params, made.state
    assert state.rounds_left == 0
    return params


def independent_gradient(w: dict, x: np.ndarray, y: np.ndarray, decay: float) -> dict:
    z = x @ w["0.weight"].T + w["0.bias"]
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    return {
        "0.weight": p.T @ x / len(y) + decay * w["0.weight"],
        "0.bias": p.mean(0) + decay * w["0.bias"],
    }


def independent_local(run: RunSettings, table, start: dict, h: dict, rate: float, seed: int) -> dict:
    """Adam (Kingma and Ba, algorithm 1) on L(w) − <h, w> + (mu or alpha)/2·‖w − start‖²."""
    pull = {"fedavg": 0.0, "fedprox": run.strategy.mu, "feddyn": run.strategy.alpha}[run.strategy.name]
    w = {name: start[name].copy() for name in NAMES}
    m, v = ({name: np.zeros_like(w[name]) for name in NAMES} for _ in range(2))
    random, time = np.random.Generator(np.random.PCG64(seed)), 0
    for _ in range(run.train.epochs):
        order = random.permutation(len(table))
        for first in range(0, len(order), run.train.batch_size):
            rows, time = order[first : first + run.train.batch_size], time + 1
            gradient = independent_gradient(w, table.x[rows].astype(float), table.y[rows], run.train.weight_decay)
            for name in NAMES:
                g = gradient[name] - h[name] + pull * (w[name] - start[name])
                m[name] = 0.9 * m[name] + 0.1 * g
                v[name] = 0.999 * v[name] + 0.001 * g * g
                w[name] = w[name] - rate * (m[name] / (1 - 0.9**time)) / (np.sqrt(v[name] / (1 - 0.999**time)) + 1e-8)
    return w


def independent_clip(sent: dict, w: dict, clip: float) -> dict:
    flat = {silo: np.concatenate([(part[n] - w[n]).ravel() for n in NAMES]) for silo, part in sent.items()}
    bound = clip * np.median([np.linalg.norm(value) for value in flat.values()])
    shrink = {silo: min(1.0, bound / np.linalg.norm(value)) for silo, value in flat.items()}
    return {silo: {n: w[n] + shrink[silo] * (part[n] - w[n]) for n in NAMES} for silo, part in sent.items()}


def independent(run: RunSettings, wire: type = np.float64) -> dict[str, np.ndarray]:
    """Whole run in float64; models that travel are rounded to ``wire``."""
    strategy, tables = run.strategy, silo_tables()
    w = {name: value.astype(float) for name, value in initial_params(SPEC, run.seed).items()}
    zero = {name: np.zeros_like(value) for name, value in w.items()}
    h, local_h, velocity, models = dict(zero), {silo: dict(zero) for silo in tables}, dict(zero), []
    m, v = dict(zero), {name: np.full_like(value, strategy.server_tau**2) for name, value in w.items()}
    for number in range(1, run.rounds + 1):
        rate = run.train.learning_rate * run.train.learning_rate_decay ** (number - 1)
        here, results = present(number), {}
        for silo in here:
            seed = shuffle_seed(run.seed, number, silo)
            results[silo] = independent_local(run, tables[silo], w, local_h[silo], rate, seed)
        sent = {silo: {n: results[silo][n].astype(wire).astype(float) for n in NAMES} for silo in here}
        if strategy.name == "feddyn":
            for silo in here:
                local_h[silo] = {n: local_h[silo][n] - strategy.alpha * (results[silo][n] - w[n]) for n in NAMES}
            drift = {n: sum(sent[silo][n] - w[n] for silo in here) for n in NAMES}
            h = {n: h[n] - strategy.alpha * drift[n] / len(tables) for n in NAMES}
            w = {n: sum(sent[silo][n] for silo in here) / len(here) - h[n] / strategy.alpha for n in NAMES}
        else:
            rows = sum(len(tables[silo]) for silo in here)
            if strategy.clip:
                sent = independent_clip(sent, w, strategy.clip)
            mean = {n: sum(len(tables[silo]) / rows * sent[silo][n] for silo in here) for n in NAMES}
            if strategy.combine == "median":
                mean = {n: np.median([sent[silo][n] for silo in here], axis=0) for n in NAMES}
            elif strategy.combine == "trimmed_mean":
                mean = {n: trim_mean([sent[silo][n] for silo in here], strategy.trim, axis=0) for n in NAMES}
            if strategy.server_adam:
                m = {n: 0.9 * m[n] + 0.1 * (mean[n] - w[n]) for n in NAMES}
                v = {n: 0.99 * v[n] + 0.01 * (mean[n] - w[n]) ** 2 for n in NAMES}
                tau = strategy.server_tau
                w = {n: w[n] + strategy.server_adam * m[n] / (np.sqrt(v[n]) + tau) for n in NAMES}
            else:
                velocity = {n: strategy.server_momentum * velocity[n] + w[n] - mean[n] for n in NAMES}
                w = {n: w[n] - velocity[n] for n in NAMES}
        w = {n: w[n].astype(wire).astype(float) for n in NAMES}
        models.append(w)
    last = models[-max(strategy.average_last, 1) :]
    return {n: sum(model[n] for model in last) / len(last) for n in NAMES}


@pytest.mark.parametrize("name", STRATEGIES)
def test_fifty_rounds_agree_with_the_papers_equations(name):
    run = settings_of(STRATEGIES[name])
    found, expected = ours(run), independent(run, wire=np.float32)
    for tensor in NAMES:
        np.testing.assert_allclose(found[tensor], expected[tensor], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", STRATEGIES)
def test_float32_rounding_stays_small_over_fifty_rounds(name):
    """As daemons do it, against equations that never round; rounding adds up over the rounds (8.6e-7 was the most)."""
    run = settings_of(STRATEGIES[name])
    found, expected = ours(run, "float32"), independent(run)
    for tensor in NAMES:
        np.testing.assert_allclose(found[tensor], expected[tensor], rtol=0, atol=1e-5)


def test_strategies_end_in_different_models_so_comparisons_can_fail():
    ends = [independent(settings_of(strategy))["0.weight"] for strategy in STRATEGIES.values()]
    for index, one in enumerate(ends):
        for other in ends[:index]:
            assert np.abs(one - other).max() > 1e-3


def parts_of(*seeds: int) -> list[InMemoryContribution]:
    return [InMemoryContribution(f"silo-{seed}", 3 + seed, initial_params(SPEC, seed)) for seed in seeds]


def test_feddyn_step_by_hand():
    full = lambda value: {name: np.full(shape, value, np.float32) for name, shape in SPEC.shapes.items()}  # noqa: E731
    parts = [InMemoryContribution("a", 100, full(3.0)), InMemoryContribution("b", 1, full(5.0))]
    old = {name: np.full(shape, 0.25) for name, shape in SPEC.shapes.items()}
    params, h = feddyn(SPEC, parts, old, full(1.0), alpha=0.5, silos=4)
    assert {float(value) for tensor in h.values() for value in tensor.flat} == {0.25 - 0.5 / 4 * (2 + 4)}
    assert {float(value) for tensor in params.values() for value in tensor.flat} == {4.0 - (-0.5) / 0.5}


def test_feddyn_refuses_more_updates_than_silos():
    with pytest.raises(InvariantError, match="2 updates of 1 silos"):
        feddyn(SPEC, parts_of(1, 2), {}, initial_params(SPEC, 0), 0.1, 1)


@pytest.mark.parametrize("name", STRATEGIES)
def test_bad_update_raises_and_leaves_the_state_unchanged(name):
    run = settings_of(STRATEGIES[name])
    base, good = initial_params(SPEC, 0), parts_of(1, 2)
    state = aggregate(run.strategy, SPEC, base, good, first_state(run), 4).state
    before = {kind: {key: value.copy() for key, value in part.items()} for kind, part in state.arrays.items()}
    bad = parts_of(1, 2)
    bad[1].params["0.bias"][0] = np.inf
    with pytest.raises(DataError, match="silo-2"):
        aggregate(run.strategy, SPEC, base, bad, state, 4)
    aggregate(run.strategy, SPEC, base, good, state, 4)
    for kind, arrays in before.items():
        assert all((state.arrays[kind][key] == value).all() for key, value in arrays.items())


def test_default_strategy_is_fedavg_to_the_bit():
    made = aggregate(Strategy(), SPEC, initial_params(SPEC, 0), parts_of(1, 2, 3), ServerState(rounds_left=5), 3)
    assert params_sha256(made.params) == params_sha256(fedavg(SPEC, parts_of(1, 2, 3)))
    assert (made.state.rounds_left, made.state.arrays, made.state.tail) == (4, {}, {})


@pytest.mark.parametrize(("last", "averaged"), [(0, 1), (1, 1), (2, 2), (3, 3), (9, 3)])
def test_the_final_model_is_the_plain_mean_of_the_last_rounds(last, averaged):
    state, models, base = ServerState(rounds_left=3), [], initial_params(SPEC, 0)
    for number in (1, 2, 3):
        plain = fedavg(SPEC, parts_of(number, number + 1))
        models.append(plain)
        made = aggregate(Strategy(average_last=last), SPEC, base, parts_of(number, number + 1), state, 2)
        state = made.state
        if number < 3:
            assert params_sha256(made.params) == params_sha256(plain)
    for name in NAMES:
        mean = np.mean([model[name].astype(float) for model in models[-averaged:]], axis=0)
        np.testing.assert_allclose(made.params[name], mean, rtol=0, atol=1e-7)

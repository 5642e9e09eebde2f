"""Every strategy that Flower has too, against Flower's, over the same updates: a development-only check.

Flower is no dependency of ours. ``make test`` installs it with this package into build/flower, at the versions of
constraints-flower.txt; flower_rounds.py runs there, once for all cases.

Five silos of very unequal size bring drawn models to each of six rounds; in two rounds one of them stays away. Both
sides start at the same model and go their own way from round to round. ``CASES`` says what either side must be set to
so that both have one rule, and how far Flower's sums in float32 may be from ours in float64, which are rounded once.
The largest differences seen are in docs/guides/strategies.md.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from flamest.coordinator.strategies.composition import aggregate, first_state
from flamest.coordinator.strategies.contributions import InMemoryContribution
from flamest.fedproto.head import HeadSpec, Params, initial_params
from flamest.fedproto.records import RunSettings, Strategy

ROOT = Path(__file__).resolve().parents[3]
PYTHON = ROOT / "build" / "flower" / "bin" / "python"
pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="no Flower in build/flower: make flower")
SPEC = HeadSpec(inputs=40, outputs=7, hidden=(16,))
ROUNDS = 6
EXAMPLES = (3, 2655, 41, 700, 1289)
HALF_ULP = 2.0**-24  # what one rounding to float32 may cost, relatively


class Case(NamedTuple):
    ours: Strategy
    theirs: str  # a class of flwr.serverapp.strategy, or of flower_rounds.py
    arguments: dict
    roundings: int  # each HALF_ULP of the tensor's largest value; 0: the same to the bit


def adam(rate: float, beta1: float, beta2: float, tau: float) -> tuple[Strategy, dict]:
    """FedAdam's settings as we and as Flower name them."""
    ours = Strategy(server_adam=rate, server_beta1=beta1, server_beta2=beta2, server_tau=tau)
    return ours, {"eta": rate, "beta_1": beta1, "beta_2": beta2, "tau": tau}


FORGETFUL, FORGETFUL_ARGUMENTS = adam(0.05, 0.0, 0.0, 0.02)
ADAM, ADAM_ARGUMENTS = adam(0.05, 0.9, 0.99, 0.02)
CASES = {
    # As they are. Five products and four sums in float32, of numbers below the largest.
    "fedavg": Case(Strategy(), "FedAvg", {}, 8),
    # The server's side of FedProx is FedAvg's; the proximal term is the silo's.
    "fedprox": Case(Strategy("fedprox", mu=0.3), "FedProx", {"proximal_mu": 0.3}, 8),
    # Flower has a learning rate at the server and we have none: they are one where it is 1, Flower's default. No
    # Nesterov on either side. What a round is off by stays in the running sum, so more roundings.
    "fedavgm": Case(
        Strategy(server_momentum=0.9), "FedAvgM", {"server_momentum": 0.9, "server_learning_rate": 1.0}, 16
    ),
    # Without memory Flower's bias correction is 1 and nothing is left of the first v: the two are one as they are.
    # A step is rate * m / (sqrt(v) + tau): the error of m, small compared with the model, is divided by a small number.
    "fedadam without memory": Case(FORGETFUL, "FedAdam", FORGETFUL_ARGUMENTS, 16),
    # With memory Flower leaves the paper's algorithm 2 twice: v starts at 0 (the paper: at tau² or more), and the rate
    # is corrected as Adam's for moments that start at 0. Both are undone on Flower's side; ours is as a run has it.
    "fedadam": Case(ADAM, "PaperFedAdam", ADAM_ARGUMENTS, 16),
    "fedadam with our defaults": Case(Strategy(server_adam=0.1), "PaperFedAdam", adam(0.1, 0.9, 0.99, 1e-3)[1], 32),
    # As they are. The middle one is picked; of two the float32 nearest to their mean.
    "median": Case(Strategy(combine="median"), "FedMedian", {}, 0),
    # As they are: floor(0.25 · 5) and floor(0.25 · 4) are 1 on both sides (floors: docs/guides/strategies.md).
    "trimmed mean": Case(Strategy(combine="trimmed_mean", trim=0.25), "FedTrimmedAvg", {"beta": 0.25}, 8),
    # Flower's bound is a constant of the user's, ours follows the round: the script sets Flower's each round to the
    # same multiple of the median length, and its noise to none. What is compared is the shortening, and the mean then.
    "clipped": Case(Strategy(clip=0.6), "MedianClipping", {"times": 0.6}, 8),
}
SLIGHTLY_WRONG = {
    "fedavgm": [Strategy(server_momentum=0.899)],
    "fedadam without memory": [adam(0.05, 0.001, 0.0, 0.02)[0], adam(0.05, 0.0, 0.001, 0.02)[0]],
    "fedadam": [
        adam(0.0501, 0.9, 0.99, 0.02)[0],
        adam(0.05, 0.899, 0.99, 0.02)[0],
        adam(0.05, 0.9, 0.989, 0.02)[0],
        adam(0.05, 0.9, 0.99, 0.0201)[0],
    ],
    "median": [Strategy(combine="trimmed_mean", trim=0.25), Strategy()],
    "trimmed mean": [Strategy(combine="trimmed_mean", trim=0.4), Strategy(combine="median")],
    "clipped": [Strategy(clip=0.599), Strategy(clip=1.0)],
}


def drawn() -> dict[str, np.ndarray]:
    """Input of flower_rounds.py without the cases: models far apart that drift from round to round."""
    random = np.random.default_rng(42)
    given = {"examples": np.array(EXAMPLES), "present": np.ones((ROUNDS, len(EXAMPLES)), bool)}
    given["present"][1, 1] = given["present"][4, 3] = False  # even numbers of silos too
    for name, start in initial_params(SPEC, 7).items():
        drift = np.cumsum(random.normal(0.0, 0.1, (ROUNDS, 1, *start.shape)), axis=0)
        reach = np.array([2.0, 0.1, 0.3, 0.05, 0.6]).reshape(1, -1, *[1] * start.ndim)
        silos = start + drift + reach * random.normal(size=(ROUNDS, len(EXAMPLES), *start.shape))
        given |= {f"start.{name}": start, name: silos.astype(np.float32)}
    return given


def ours(strategy: Strategy, given: dict[str, np.ndarray]) -> list[Params]:
    """The model after every round, by the function that coordinator and simulation call."""
    run = RunSettings("r", tuple("abcdefg"), SPEC, ROUNDS, 1, 1.0, "f", strategy=strategy)
    params, state, models = {name: given[f"start.{name}"] for name in SPEC.shapes}, first_state(run), []
    for number, present in enumerate(given["present"]):
        parts = [
            InMemoryContribution(
                f"silo-{place}", int(examples), {name: given[name][number, place] for name in SPEC.shapes}
            )
            for place, examples in enumerate(given["examples"])
            if present[place]
        ]
        made = aggregate(strategy, SPEC, params, parts, state, len(present))
        params, state = made.params, made.state
        models.append(params)
    return models


@pytest.fixture(scope="module")
def flower(tmp_path_factory) -> dict[str, np.ndarray]:
    """Flower's models of all cases, ``CASE.NAME`` float32 [rounds, ...]."""
    folder = tmp_path_factory.mktemp("flower")
    cases = {name: {"strategy": case.theirs, "arguments": case.arguments} for name, case in CASES.items()}
    cases["flowers own"] = {"strategy": "FedAdam", "arguments": CASES["fedadam with our defaults"].arguments}
    np.savez(folder / "given.npz", cases=np.array(json.dumps(cases)), **drawn())
    script = Path(__file__).with_name("flower_rounds.py")
    command = [str(PYTHON), str(script), str(folder / "given.npz"), str(folder / "made.npz")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(folder / "made.npz") as made:
        return {name: made[name] for name in made.files}


def apart(models: list[Params], flower: dict[str, np.ndarray], name: str) -> list[float]:
    """For every round: the largest difference in a tensor, over Flower's largest value in it; the worst tensor's."""
    rounds = []
    for number, model in enumerate(models):
        worst = 0.0
        for tensor, values in model.items():
            theirs = flower[f"{name}.{tensor}"][number]
            assert values.shape == theirs.shape
            worst = max(worst, float(np.abs(values.astype(float) - theirs).max() / np.abs(theirs).max()))
        rounds.append(worst)
    return rounds


@pytest.mark.parametrize("name", CASES)
def test_model_after_every_round_equals_flowers(name, flower):
    case = CASES[name]
    rounds, allowed = apart(ours(case.ours, drawn()), flower, name), case.roundings * HALF_ULP
    print(f"{name}: {max(rounds):.1e} apart, {allowed:.1e} allowed, {flower['versions']}")  # noqa: T201, for -rP
    assert max(rounds) <= allowed, rounds


@pytest.mark.parametrize(("name", "wrong"), [(name, wrong) for name, some in SLIGHTLY_WRONG.items() for wrong in some])
def test_slightly_different_setting_is_detected(name, wrong, flower):
    assert max(apart(ours(wrong, drawn()), flower, name)) > 10 * CASES[name].roundings * HALF_ULP


@pytest.mark.parametrize("name", ["fedavg", "fedprox", "fedavgm", "fedadam", "clipped"])
def test_one_more_example_is_detected(name, flower):
    given = drawn()
    given["examples"][0] += 1
    assert max(apart(ours(CASES[name].ours, given), flower, name)) > 10 * CASES[name].roundings * HALF_ULP


def test_flowers_fedadam_differs_as_documented(flower):
    """Its first step is √(1 − β₂²) / (1 − β₁²) of ours, 0.74, where tau is small compared with √v."""
    start = drawn()["start.0.weight"]
    first = ours(CASES["fedadam with our defaults"].ours, drawn())[0]["0.weight"] - start
    share = (flower["flowers own.0.weight"][0] - start) / first
    assert float(np.median(share)) == pytest.approx(0.7425, abs=0.01)

"""Median, trimmed mean and clipping by hand, and against a hostile silo."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from flamest.base.errors import DataError, InvariantError
from flamest.coordinator.strategies import robust
from flamest.coordinator.strategies.composition import aggregate, first_state, needs_two_passes, strategy_problems
from flamest.coordinator.strategies.contributions import InMemoryContribution, distance, float32
from flamest.coordinator.strategies.robust import clipped, median, trimmed, trimmed_mean
from flamest.fedproto.head import HeadSpec, initial_params, params_sha256
from flamest.fedproto.records import RunSettings, Strategy

SPEC = HeadSpec(inputs=5, outputs=3, hidden=(4,))
RUN = RunSettings("r", ("x", "y", "z"), SPEC, 3, 1, 1.0, "f")
TWO_PASSES = (
    Strategy(combine="median"),
    Strategy(combine="trimmed_mean", trim=0.25),
    Strategy(clip=1.0),
    Strategy(combine="median", clip=0.5, server_adam=0.1),
)


def full(value: float) -> dict:
    return {name: np.full(shape, value, np.float32) for name, shape in SPEC.shapes.items()}


def values(tensors) -> set[float]:
    return {float(value) for tensor in tensors.values() for value in tensor.flat}


def parts(*numbers: float) -> list[InMemoryContribution]:
    return [InMemoryContribution(f"silo-{index}", 10**index, full(number)) for index, number in enumerate(numbers)]


def test_median_is_the_middle_or_the_mean_of_two():
    assert values(median(SPEC, parts(3, 1, 100))) == {3.0}
    assert values(median(SPEC, parts(3, 1, 100, 4))) == {3.5}
    assert values(median(SPEC, parts(7))) == {7.0}


def test_trimmed_mean_leaves_out_the_extremes():
    assert values(trimmed_mean(SPEC, parts(-1e30, 1, 2, 3, 1e30), 0.2)) == {2.0}
    assert values(trimmed_mean(SPEC, parts(4, 1, 2, 3), 0.2)) == {2.5}


@pytest.mark.parametrize(("silos", "trim", "out"), [(10, 0.2, 2), (100, 0.29, 29), (4, 0.2, 0), (3, 0.49, 1)])
def test_trim_leaves_out_a_share_of_silos_at_either_end(silos, trim, out):
    assert trimmed(silos, trim) == out


def test_median_does_not_overflow_float32():
    assert values(float32(median(SPEC, parts(3e38, 3e38)))) == values(full(3e38))


@pytest.mark.parametrize("bytes_at_once", [1, 40, 1 << 20])
def test_result_does_not_depend_on_the_block_size(bytes_at_once, monkeypatch):
    given = [InMemoryContribution(f"{seed}", 1, initial_params(SPEC, seed)) for seed in range(6)]
    whole = median(SPEC, given)
    monkeypatch.setattr(robust, "BLOCK_BYTES", bytes_at_once)
    for name, tensor in median(SPEC, given).items():
        np.testing.assert_array_equal(tensor, whole[name])
        np.testing.assert_array_equal(tensor, np.median([part.params[name].astype(float) for part in given], axis=0))


def test_clipping_shortens_far_updates_and_leaves_others_unchanged():
    base = full(1.0)
    given = parts(1.5, 2.0, 101.0)
    made = list(clipped(SPEC, given, base, 2.0))
    assert [part.params is was.params for part, was in zip(made, given, strict=True)] == [True, True, False]
    bound = 2 * distance(given[1].params, base)
    assert distance(made[2].params, base) == pytest.approx(bound, rel=1e-6)
    np.testing.assert_allclose(made[2].params["0.bias"], 3.0, rtol=1e-6)


@pytest.mark.parametrize("strategy", TWO_PASSES)
def test_one_pass_generator_is_refused_or_gives_the_same(strategy):
    given = [InMemoryContribution(f"{seed}", 1, initial_params(SPEC, seed)) for seed in range(4)]
    expected = aggregate(strategy, SPEC, full(0.0), given, first_state(RUN), 4)
    try:
        made = aggregate(strategy, SPEC, full(0.0), iter(given), first_state(RUN), 4)
    except InvariantError:
        return
    assert params_sha256(made.params) == params_sha256(expected.params)


@pytest.mark.parametrize("strategy", TWO_PASSES)
def test_no_updates_nan_and_wrong_order_are_refused(strategy):
    with pytest.raises(InvariantError, match="no updates"):
        aggregate(strategy, SPEC, full(0.0), [], first_state(RUN), 4)
    bad = parts(1, 2, 3)
    bad[1].params["0.bias"][0] = np.nan
    with pytest.raises(DataError, match="silo-1"):
        aggregate(strategy, SPEC, full(0.0), bad, first_state(RUN), 4)
    with pytest.raises(InvariantError, match="in a sum"):
        aggregate(strategy, SPEC, full(0.0), parts(1, 2)[::-1], first_state(RUN), 4)


@pytest.mark.parametrize("strategy", [*TWO_PASSES[:3], Strategy()])
def test_one_hostile_silo_of_five_moves_only_undefended_means(strategy):
    honest = [InMemoryContribution(f"{seed}", 10, initial_params(SPEC, seed)) for seed in range(4)]
    hostile = InMemoryContribution("4", 10, full(1e30))
    made = aggregate(strategy, SPEC, full(0.0), [*honest, hostile], first_state(RUN), 5).params
    largest = max(float(np.abs(tensor).max()) for tensor in made.values())
    assert (largest < 1.0) is needs_two_passes(strategy)


@pytest.mark.parametrize(
    ("strategy", "problem"),
    [
        (Strategy(combine="trimmed_mean"), "trim: trimmed_mean needs more than 0"),
        (Strategy(combine="trimmed_mean", trim=0.5), "trim: trimmed_mean needs more than 0"),
        (Strategy(trim=0.1), "trim: mean has none"),
        (Strategy(clip=-1.0), "clip: expected 0"),
        (Strategy("feddyn", alpha=0.1, clip=1.0), "clip: not with feddyn"),
        (Strategy("feddyn", alpha=0.1, combine="median"), "combine: not with feddyn"),
        (Strategy(server_adam=0.1, server_momentum=0.5), "server_adam: not with server_momentum"),
        (Strategy("feddyn", alpha=0.1, server_adam=0.1), "server_adam: not with"),
        (Strategy(server_adam=float("nan")), "server_adam: expected 0"),
        (Strategy(server_beta2=0.5), "server_beta2: fedadam only"),
        (Strategy(server_adam=0.1, server_beta1=1.0), "server_beta1: expected 0 or more"),
        (Strategy(server_adam=0.1, server_tau=0.0), "server_tau: expected more than 0"),
    ],
)
def test_invalid_options_are_named(strategy, problem):
    assert [one for one in strategy_problems(strategy) if one.startswith(problem)]


def test_every_sensible_combination_is_accepted():
    for combine, clip, adam in itertools.product(("mean", "median", "trimmed_mean"), (0.0, 1.0), (0.0, 0.1)):
        trim = 0.2 if combine == "trimmed_mean" else 0.0
        strategy = Strategy(combine=combine, trim=trim, clip=clip, server_adam=adam)
        assert strategy_problems(strategy) == []


def test_default_options_are_not_in_the_settings_bytes():
    assert b"combine" not in RUN.encode()
    assert b"server_adam" not in RUN.encode()

"""Limits on claims of examples: what an update counts for, whoever claims what and in whatever order."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from flamest.coordinator.strategies.claims import (
    INFLUENCE_SHARE,
    Claim,
    count_claims,
    learnt_examples,
    limits_of,
    lower_median,
)
from flamest.coordinator.strategies.composition import aggregate, first_state, round_limits, weighs_examples
from flamest.coordinator.strategies.contributions import InMemoryContribution, distance
from flamest.coordinator.strategies.fedavg import fedavg
from flamest.fedproto.head import HeadSpec, initial_params, params_sha256
from flamest.fedproto.records import RunSettings, Strategy

SPEC = HeadSpec(inputs=3, outputs=2, hidden=(4,))
BASE = initial_params(SPEC, 0)
TIMES = 2.0
MILLION = 1_000_000


def counted(claims, learnt=None, times=TIMES):
    limits = limits_of([Claim(claim) for claim in claims], learnt, times)
    return [claim if limits is None else limits.counted(Claim(claim)) for claim in claims]


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ([MILLION], [MILLION]),  # alone it is the mean anyway
        ([100, MILLION], [100, 200]),
        ([MILLION, 1], [2, 1]),  # one of two that claims least can make both nearly equal, and no more
        ([100, 120, MILLION], [100, 120, 240]),
        ([MILLION, MILLION, 100], [MILLION, MILLION, 100]),  # two of three are a majority
        ([100] * 8 + [MILLION] * 2, [100] * 8 + [200] * 2),
        ([100] * 5 + [MILLION] * 5, [100] * 5 + [200] * 5),  # half of them cannot raise the lower median
        ([1] * 4 + [100] * 6, [1] * 4 + [100] * 6),
        ([1] * 5 + [100] * 5, [1] * 5 + [2] * 5),
        ([70, 100, 150, 199], [70, 100, 150, 199]),
    ],
)
def test_a_claim_counts_at_most_twice_the_lower_median(claims, expected):
    assert counted(claims) == expected
    for order in itertools.islice(itertools.permutations(range(len(claims))), 24):
        assert counted([claims[place] for place in order]) == [expected[place] for place in order]


def test_without_a_limit_every_claim_counts_in_full():
    assert counted([1, MILLION], times=0.0) == [1, MILLION]


def test_a_limit_below_one_example_is_one_example():
    assert counted([1, 1, 5], times=1.0) == [1, 1, 1]


def test_few_honest_reports_are_not_for_the_others_to_set():
    """Two hostile silos and an honest one report; the median of the last rounds' claims still holds."""
    assert counted([100, MILLION, MILLION], learnt=100) == [100, 200, 200]


def test_a_learnt_median_never_raises_the_limit():
    assert counted([100, 100, MILLION], learnt=MILLION) == [100, 100, 200]


@pytest.mark.parametrize(("largest", "expected"), [({}, None), ({"a": 5, "b": 9}, None), ({"a": 5, "b": 9, "c": 7}, 7)])
def test_fewer_than_three_silos_teach_nothing(largest, expected):
    assert learnt_examples(largest) == expected


def test_slowly_growing_claims_never_move_the_median_past_honest_ones():
    """Four of ten raise their claims by a tenth a round, for 200 rounds."""
    honest, claim = [90, 100, 110, 120, 130, 140], 100.0
    for _ in range(200):
        claim *= 1.1
        claims = [*honest, *[int(claim)] * 4]
        learnt = learnt_examples(dict(enumerate(claims)))
        assert max(counted(claims, learnt)) <= TIMES * max(honest)


def test_alternating_claims_count_no_more_than_constant_ones():
    learnt = learnt_examples({**dict.fromkeys("abcdefgh", 100), "x": MILLION, "y": MILLION})
    for claims in ([100] * 10, [100] * 8 + [MILLION] * 2):
        assert max(counted(claims, learnt)) <= 200


def updates(*claims, length=1.0):
    """One update for each claim, each at the given distance (one for all, or each its own), with its claim."""
    lengths = length if isinstance(length, tuple) else (length,) * len(claims)
    parts, sent = [], {}
    for number, (examples, far) in enumerate(zip(claims, lengths, strict=True)):
        random = np.random.default_rng(number)
        step = {name: random.normal(size=tensor.shape) for name, tensor in BASE.items()}
        norm = math.sqrt(sum(float(np.square(tensor).sum()) for tensor in step.values()))
        params = {name: (BASE[name] + far / norm * step[name]).astype(np.float32) for name in BASE}
        silo = f"s{number}"
        parts.append(InMemoryContribution(silo, examples, params))
        sent[silo] = Claim(examples, distance(params, BASE))
    return parts, sent


def test_updates_within_the_limits_are_not_touched():
    parts, claims = updates(100, 140, 90, length=(1.0, 1.05, 0.9))
    assert count_claims(parts, claims, limits_of(claims.values(), None, TIMES), BASE) is parts
    assert count_claims(parts, claims, None, BASE) is parts


def test_a_cut_claim_has_its_counted_weight_in_the_mean():
    parts, claims = updates(100, 100, MILLION, length=(1.0, 1.0, 0.5))
    made = count_claims(parts, claims, limits_of(claims.values(), None, TIMES), BASE)
    expected = [InMemoryContribution(part.silo, min(part.examples, 200), part.params) for part in parts]
    assert params_sha256(fedavg(SPEC, made)) == params_sha256(fedavg(SPEC, expected))


@pytest.mark.parametrize(("claim", "length"), [(MILLION, 1.0), (MILLION, 50.0), (100, 4.0), (1, 400.0), (200, 1.0)])
def test_no_update_has_more_influence_than_the_limit(claim, length):
    parts, claims = updates(100, 100, 100, claim, length=(1.0, 1.0, 1.0, length))
    made = list(count_claims(parts, claims, limits_of(claims.values(), None, TIMES), BASE))
    influences = [part.examples * distance(part.params, BASE) for part in made]
    assert influences[:3] == pytest.approx([100.0] * 3, rel=1e-5)
    assert influences[3] <= INFLUENCE_SHARE * TIMES * 100 * 1.001


def test_a_claim_buys_no_distance_in_the_first_round():
    """The norm bound has no history in round 1, and its reach grows with the claim."""
    parts, claims = updates(*[100] * 8, MILLION, MILLION, length=(*[1.0] * 8, 900.0, 900.0))
    made = count_claims(parts, claims, limits_of(claims.values(), None, TIMES), BASE)
    assert distance(fedavg(SPEC, made), BASE) < 1.0


def test_without_weights_a_claim_buys_no_distance_either():
    """FedDyn in the first round: the reach of a million examples is far."""
    dyn = Strategy("feddyn", alpha=0.1)
    parts, claims = updates(*[100] * 8, MILLION, MILLION, length=(*[1.0] * 8, 900.0, 900.0))
    limits = round_limits(dyn, claims.values(), None, TIMES, 4.0)
    made = list(count_claims(parts, claims, limits, BASE))
    assert [round(distance(part.params, BASE), 3) for part in made] == [1.0] * 8 + [4.0] * 2
    assert [part.examples for part in made] == [part.examples for part in parts]
    backwards = dict(reversed(claims.items()))
    assert round_limits(dyn, backwards.values(), None, TIMES, 4.0) == limits


@pytest.mark.parametrize(
    ("strategy", "norm_times", "count"),
    [
        (Strategy("feddyn", alpha=0.1), 0.0, 4),
        (Strategy("feddyn", alpha=0.1), 4.0, 2),
        (Strategy(combine="median"), 4.0, 4),
        (Strategy(combine="trimmed_mean", trim=0.2), 4.0, 4),
    ],
)
def test_without_weights_a_bound_or_a_majority_nothing_is_limited(strategy, norm_times, count):
    claims = [Claim(100, float(number)) for number in range(1, count + 1)]
    assert round_limits(strategy, claims, None, TIMES, norm_times) is None


def test_of_two_updates_neither_limits_the_others_distance():
    parts, claims = updates(100, 150, length=(1.0, 9.0))
    assert count_claims(parts, claims, limits_of(claims.values(), None, TIMES), BASE) is parts


def test_updates_without_motion_or_norms_have_no_influence_limit():
    for norm in (None, 0.0):
        limits = limits_of([Claim(100, norm)] * 3, None, TIMES)
        assert limits.share(Claim(100, 7.0)) == 1.0


def test_the_least_limit_does_not_shorten_the_median_update():
    parts, claims = updates(100, 100, 100)
    limits = limits_of(claims.values(), None, 1.0)
    assert all(limits.share(claim) > 0.999999 for claim in claims.values())
    assert {part.examples for part in count_claims(parts, claims, limits, BASE)} == {100}


@pytest.mark.parametrize(
    ("strategy", "weighs"),
    [
        (Strategy(), True),
        (Strategy("fedprox", mu=0.1), True),
        (Strategy(server_momentum=0.9), True),
        (Strategy(server_adam=0.1), True),
        (Strategy(clip=1.0), True),
        (Strategy("feddyn", alpha=0.1), False),
        (Strategy(combine="median"), False),
        (Strategy(combine="trimmed_mean", trim=0.2), False),
    ],
)
def test_every_strategy_that_weighs_uses_the_counted_weights(strategy, weighs):
    assert weighs_examples(strategy) is weighs
    parts, claims = updates(100, 100, 100, MILLION, length=(1.0, 1.1, 0.9, 0.5))
    made = count_claims(parts, claims, limits_of(claims.values(), None, TIMES), BASE)
    plain = [InMemoryContribution(part.silo, min(part.examples, 200), part.params) for part in parts]
    run = RunSettings("r", ("x", "y"), SPEC, 1, 1, 1.0, "f", strategy=strategy)

    def model(contributions):
        return params_sha256(aggregate(strategy, SPEC, BASE, list(contributions), first_state(run), 4).params)

    assert model(made) == model(plain)
    assert (model(made) != model(parts)) is weighs


def test_the_lower_median_is_one_of_the_values():
    assert [lower_median(values) for values in ([3], [3, 9], [9, 3, 5], [1, 2, 3, 4])] == [3, 3, 5, 2]

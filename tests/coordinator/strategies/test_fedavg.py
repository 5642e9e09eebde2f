"""FedAvg (equation 12 of the paper) by hand, and distances of updates."""

import itertools

import numpy as np
import pytest
from flamest.base.errors import DataError, InvariantError
from flamest.coordinator.storage.evaluations import pool_evaluations
from flamest.coordinator.strategies.contributions import InMemoryContribution, distance
from flamest.coordinator.strategies.fedavg import fedavg
from flamest.coordinator.strategies.norm_bound import ArrivingDistance
from flamest.fedproto.head import HeadSpec, initial_params, params_sha256
from flamest.fedproto.records import Evaluation
from flamest.fedproto.tensors import encode_params

SPEC = HeadSpec(inputs=5, outputs=3, hidden=(4,))
WIDE = HeadSpec(inputs=700, outputs=3, hidden=(110,))  # more values than a block has


def contributions(*examples: int) -> list[InMemoryContribution]:
    return [InMemoryContribution(f"silo-{i}", n, initial_params(SPEC, seed=i)) for i, n in enumerate(examples)]


def test_weighted_mean_is_exact_to_the_last_bit():
    parts = contributions(17, 301, 94)
    result = fedavg(SPEC, parts)
    for name, tensor in result.items():
        assert tensor.dtype == np.float32
        for place in np.ndindex(tensor.shape):
            total = 0.0  # Python floats are float64
            for part in parts:
                total += part.examples * float(part.params[name][place])
            assert tensor[place] == np.float32(total / (17 + 301 + 94))


def test_float32_sum_would_differ():
    parts = contributions(17, 301, 94)
    name = "0.weight"
    plain = sum(np.float32(part.examples / 412) * part.params[name] for part in parts)
    assert (plain != fedavg(SPEC, parts)[name]).any()


def test_mean_of_one_silo_is_its_model():
    part = contributions(7)
    assert params_sha256(fedavg(SPEC, part)) == params_sha256(part[0].params)


def test_weights_are_shares_of_examples():
    one, two = contributions(1, 3)
    ones = InMemoryContribution("a", 1, {name: np.full(shape, 4.0, np.float32) for name, shape in SPEC.shapes.items()})
    zeros = InMemoryContribution("b", 3, {name: np.zeros(shape, np.float32) for name, shape in SPEC.shapes.items()})
    assert all((tensor == 1.0).all() for tensor in fedavg(SPEC, [ones, zeros]).values())
    assert one.examples + two.examples == 4


def test_contributions_out_of_order_are_refused():
    parts = contributions(17, 301, 94)
    for order in itertools.permutations(parts):
        if list(order) != parts:
            with pytest.raises(InvariantError, match="in a sum"):
                fedavg(SPEC, order)


def test_a_silo_counts_once():
    part = contributions(5)[0]
    with pytest.raises(InvariantError):
        fedavg(SPEC, [part, part])


@pytest.mark.parametrize("examples", [0, -1])
def test_contribution_without_examples_is_refused(examples):
    with pytest.raises(InvariantError):
        fedavg(SPEC, [InMemoryContribution("a", examples, initial_params(SPEC, 0))])


def test_mean_of_no_updates_is_refused():
    with pytest.raises(InvariantError, match="no updates"):
        fedavg(SPEC, [])


def test_nan_raises_and_gives_no_mean():
    good, bad = contributions(5, 5)
    bad.params["1.bias"][2] = np.nan
    with pytest.raises(DataError, match=r"update from silo 'silo-1': 1\.bias holds NaN"):
        fedavg(SPEC, [good, bad])


def test_large_values_do_not_overflow_in_the_sum():
    large = {name: np.full(shape, 3e38, np.float32) for name, shape in SPEC.shapes.items()}
    result = fedavg(SPEC, [InMemoryContribution("a", 2**31 - 1, large), InMemoryContribution("b", 2**31 - 1, large)])
    assert params_sha256(result) == params_sha256(large)


def test_pooled_evaluation_weighs_silos_by_clips():
    together = pool_evaluations([Evaluation(1.0, 2, 4), Evaluation(3.0, 9, 12)])
    assert together == Evaluation(loss=(1.0 * 4 + 3.0 * 12) / 16, correct=11, count=16)
    assert pool_evaluations([]) is None


@pytest.mark.parametrize("sizes", [(1 << 20,), (7, 4, 1021), (8192 * 4 + 2,)])
def test_distance_does_not_depend_on_the_pieces_of_an_upload(sizes):
    base, there = initial_params(WIDE, 1), initial_params(WIDE, 2)
    moved = ArrivingDistance(base, whose="update from silo 'b'")
    payload, cycle = encode_params(WIDE, there), itertools.cycle(sizes)
    while payload:
        size = next(cycle)
        moved.feed(payload[:size])
        payload = payload[size:]
    assert moved.so_far == pytest.approx(distance(there, base), rel=1e-6)


def test_huge_values_have_a_distance_and_nan_is_refused():
    base = initial_params(WIDE, 1)
    far = {name: np.full(shape, 3e38, np.float32) for name, shape in WIDE.shapes.items()}
    moved = ArrivingDistance({name: -tensor for name, tensor in far.items()}, whose="it")
    moved.feed(encode_params(WIDE, far))
    assert moved.so_far == pytest.approx(6e38 * np.sqrt(WIDE.parameters), rel=1e-6)
    for bad in (np.nan, np.inf, -np.inf):
        params = initial_params(WIDE, 2)
        params["1.bias"][1] = bad
        payload = b"".join(tensor.tobytes() for tensor in params.values())
        with pytest.raises(DataError, match=r"silo 'b': 1\.bias holds NaN or infinity"):
            ArrivingDistance(base, whose="update from silo 'b'").feed(payload)


def test_block_sums_equal_tensor_sums_to_the_bit():
    parts = [InMemoryContribution(f"{seed:02d}", 3 + 1000 * seed, initial_params(WIDE, seed)) for seed in range(11)]
    expected = {name: np.zeros(shape) for name, shape in WIDE.shapes.items()}
    for part in parts:
        for name, tensor in part.params.items():
            expected[name] += tensor.astype(np.float64) * part.examples
    weight = sum(part.examples for part in parts)
    made = fedavg(WIDE, parts)
    for name, total in expected.items():
        np.testing.assert_array_equal(made[name], (total / weight).astype(np.float32))

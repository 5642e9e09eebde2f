"""The norm bound: Adam's reach as a theorem, the bound learnt from closed rounds."""

from __future__ import annotations

import itertools

import msgspec
import numpy as np
import pytest
from flamest.base.errors import DataError
from flamest.coordinator.strategies.norm_bound import NormBound, adam_travel, learnt_norm, reach
from flamest.fedproto.head import HeadSpec
from flamest.fedproto.records import ADAM_BETAS, TrainSettings

HEAD = HeadSpec(inputs=7, outputs=3, hidden=())
TRAIN = TrainSettings(epochs=2, batch_size=10, learning_rate=0.01)


def adam(gradients: np.ndarray) -> float:
    """Return a coordinate's distance after these gradients, at rate 1 (Kingma and Ba, algorithm 1, epsilon 0)."""
    (one, two), m, v, w = ADAM_BETAS, 0.0, 0.0, 0.0
    for t, gradient in enumerate(gradients, 1):
        m, v = one * m + (1 - one) * gradient, two * v + (1 - two) * gradient**2
        w -= (m / (1 - one**t)) / np.sqrt(v / (1 - two**t)) if v else 0.0
    return abs(w)


@pytest.mark.parametrize("steps", [1, 2, 7, 40, 150])
def test_no_gradients_move_adam_beyond_its_reach(steps):
    random = np.random.default_rng(steps)
    sequences = [
        np.ones(steps),
        10.0 ** np.arange(steps).clip(0, 30),
        (ADAM_BETAS[0] / ADAM_BETAS[1]) ** -np.arange(steps),
    ]
    sequences += [random.standard_cauchy(steps) for _ in range(50)]
    farthest = max(adam(sequence) for sequence in sequences)
    assert farthest <= adam_travel(steps) * (1 + 1e-9)
    assert farthest > 0.7 * min(steps, 40)  # the bound is tight enough to be useful


def test_the_first_step_of_adam_has_length_one():
    assert adam_travel(1) == pytest.approx(1.0)


def test_reach_grows_with_examples_and_shrinks_with_the_rate():
    one = reach(HEAD, TRAIN, 1, 10)
    assert one == pytest.approx(1.001 * 0.01 * adam_travel(2) * np.sqrt(24))
    assert reach(HEAD, TRAIN, 1, 11) > 1.9 * one
    decaying = msgspec.structs.replace(TRAIN, learning_rate_decay=0.5)
    assert reach(HEAD, decaying, 3, 10) == pytest.approx(one / 4)
    assert np.isfinite(reach(HEAD, TRAIN, 1, 2**31 - 1))


def test_minority_cannot_move_the_learnt_bound_past_honest_values():
    honest = {f"h{index}": 1.0 + index / 10 for index in range(6)}
    for hostile in itertools.product((0.0, 1e30), repeat=4):
        farthest = {**honest, **{f"x{index}": value for index, value in enumerate(hostile)}}
        assert 1.0 <= learnt_norm(farthest) <= 1.5


def test_learnt_bound_needs_three_silos_that_moved():
    assert learnt_norm({}) is None
    assert learnt_norm({"a": 1.0, "b": 2.0}) is None
    assert learnt_norm({"a": 1.0, "b": 2.0, "c": 9.0}) == 2.0
    assert learnt_norm({"a": 0.0, "b": 0.0, "c": 9.0}) is None  # most did not move: no reason to refuse one that does


@pytest.mark.parametrize(
    ("times", "learnt", "norm", "refused"),
    [
        (4.0, None, 0.09, False),
        (4.0, None, 0.11, True),  # Adam's reach for ten examples is 0.098
        (4.0, 0.02, 0.079, False),
        (4.0, 0.02, 0.081, True),
        (4.0, 9.0, 0.11, True),  # a generous history does not raise the reach
        (0.0, 0.02, 1e30, False),
        (4.0, None, float("inf"), True),
    ],
)
def test_update_beyond_either_bound_is_refused(times, learnt, norm, refused):
    bound = NormBound(HEAD, TRAIN, times, 1, learnt)
    if not refused:
        return bound.check(norm, 10, whose="update from silo 'b'")
    with pytest.raises(DataError, match=r"update from silo 'b': \S+ away from the round's model") as error:
        bound.check(norm, 10, whose="update from silo 'b'")
    assert error.value.code == "norm"
    return None

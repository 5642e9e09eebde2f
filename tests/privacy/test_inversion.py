"""Clips recovered from an update by attacks, and the effect of the policy. bench/inversion.py: full size."""

import numpy as np
import pytest
from flamest.agent.egress.policy import DEFAULT_CLIP_NORM, DEFAULT_NOISE, MIN_SAMPLES_FLOOR, Policy, PolicyRefused
from flamest.agent.training.dataset import FeatureTable
from flamest.agent.training.private import Protection, fresh_generator, protected
from flamest.agent.training.trainer import HeadTrainer
from flamest.experiments.inversion.updates import Search, divide, nearest, optimise, sgd_update
from flamest.fedproto.head import HeadSpec, initial_params
from flamest.fedproto.records import TrainSettings

SPEC, SETTINGS = HeadSpec(256, 11, (128, 32)), TrainSettings()
SHUFFLES = 5


def clips(count: int) -> FeatureTable:
    random = np.random.default_rng(3)
    return FeatureTable(random.normal(size=(count, SPEC.inputs)).astype(np.float32), random.integers(0, 11, count))


def after_sgd(count: int):
    table, base = clips(count), initial_params(SPEC, 1)
    return table, base, sgd_update(SPEC, base, table, SETTINGS, SHUFFLES)


def after_adam(count: int):
    table, base = clips(count), initial_params(SPEC, 1)
    return table, base, HeadTrainer(SPEC, threads=1).train(base, table, SETTINGS, seed=SHUFFLES).params


def test_without_a_policy_division_recovers_clips_of_a_small_update():
    """The attack works: with plain gradient descent, 4 clips, nothing in its way."""
    table, base, update = after_sgd(4)
    found = nearest(divide(base, update), table.x)
    assert found.recovered >= 1
    assert found.cosines.max() > 0.99


def test_at_the_floor_division_recovers_nothing():
    """0 of 256 within 5 %, with plain gradient descent."""
    table, base, update = after_sgd(MIN_SAMPLES_FLOOR)
    assert nearest(divide(base, update), table.x).recovered == 0


def test_a_clipped_and_noised_update_reveals_nothing():
    """``privacy = "clip"`` as it comes, on the small update that the attack works on."""
    table, base, update = after_sgd(4)
    sent = protected(base, update, Protection("clip", DEFAULT_CLIP_NORM, DEFAULT_NOISE), fresh_generator())
    assert nearest(divide(base, sent), table.x).recovered == 0


@pytest.mark.parametrize("count", [1, 4])
def test_division_fails_on_adam(count):
    """Adam divides every gradient by its own size, so that nothing is left to divide."""
    table, base, update = after_adam(count)
    assert nearest(divide(base, update), table.x).recovered == 0


def test_the_optimisation_attack_works_on_one_step_of_gradient_descent():
    """On one step of plain gradient descent it comes close to one clip, so that what it finds elsewhere counts."""
    table, base = clips(1), initial_params(SPEC, 1)
    one_step = TrainSettings(epochs=1)
    update = sgd_update(SPEC, base, table, one_step, SHUFFLES)
    found = nearest(optimise(SPEC, base, update, table.y, (one_step, SHUFFLES), Search(200, 0)), table.x)
    assert found.cosines[0] > 0.99


def test_the_optimisation_attack_finds_no_clip_in_an_update_of_adam():
    """The direction of a single clip is found, its embedding is not."""
    table, base, update = after_adam(1)
    found = nearest(optimise(SPEC, base, update, table.y, (SETTINGS, SHUFFLES), Search(150, 20)), table.x)
    assert found.recovered == 0
    assert 0.3 < found.cosines[0] < 0.99


@pytest.mark.parametrize("count", [1, 4, 16, 64, MIN_SAMPLES_FLOOR - 1])
def test_the_policy_refuses_every_update_below_the_floor(count):
    """``policy_refused``, whatever the run asks for."""
    with pytest.raises(PolicyRefused) as error:
        Policy().permit(count, SETTINGS, ())
    assert error.value.code == "policy_refused"
    assert Policy().permit(MIN_SAMPLES_FLOOR, SETTINGS, ()) is None

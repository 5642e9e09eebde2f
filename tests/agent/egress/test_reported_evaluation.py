"""An evaluation that leaves says no more about one clip than a count does, and nothing when there are few clips."""

from __future__ import annotations

import math

import numpy as np
import pytest
from flamest.agent.egress.policy import Policy
from flamest.agent.egress.reported_evaluation import (
    loss_cap,
    loss_step,
    reported_evaluation,
    require_reportable,
    rounded_loss,
)
from flamest.agent.training.dataset import FeatureTable, SiloData
from flamest.agent.training.evaluation import evaluate_here
from flamest.agent.training.trainer import HeadTrainer
from flamest.base.errors import InvariantError
from flamest.fedproto.bounds import MAX_LOSS, is_loss
from flamest.fedproto.head import HeadSpec, initial_params
from flamest.fedproto.records import Evaluation

HEAD = HeadSpec(inputs=8, outputs=3, hidden=(4,))
EXACT = Policy(report_loss="exact", report_loss_override=True, evaluation_noise=0.0)
QUIET = Policy(evaluation_noise=0.0)


def table(rows: int, seed: int = 0) -> FeatureTable:
    random = np.random.default_rng(seed)
    return FeatureTable(random.normal(size=(rows, 8)).astype(np.float32), random.integers(0, 3, rows))


def silo(train: int = 300, held_out: int = 64) -> SiloData:
    return SiloData(table(train, 1), table(held_out, 2), 0)


@pytest.fixture(scope="module")
def trainer():
    return HeadTrainer(HEAD, threads=1)


def scaled(factor: float):
    """The first weights with a last layer so many times as large."""
    params = dict(initial_params(HEAD, 0))
    last = [name for name in params if name.endswith("weight")][-1]
    params[last] = (params[last] * np.float32(factor)).astype(np.float32)
    return params


@pytest.mark.parametrize("classes", [1, 2, 5, 101, 1000])
@pytest.mark.parametrize("count", [1, 7, 32, 64, 500, 1000, 5000])
def test_one_clip_moves_the_reported_loss_by_one_step_at_most(classes, count):
    random = np.random.default_rng(count)
    step = loss_step(classes, count)
    assert step >= loss_cap(classes) / count
    for _ in range(200):
        losses = random.exponential(random.choice([0.01, 1.0, 50.0]), count)
        before = rounded_loss(losses, classes, count)
        losses[random.integers(count)] = random.choice([0.0, loss_cap(classes), 1e300, np.inf, np.nan])
        assert abs(rounded_loss(losses, classes, count) - before) <= step * (1 + 1e-9)


def test_a_clip_exactly_between_two_steps_moves_one():
    """The case of a cap that is exactly a step for each clip: rounding halves to even would move two."""
    losses = np.zeros(1000)
    for filled in range(999):
        losses[filled] = 10.0
        half, more = losses.copy(), losses.copy()
        half[-1], more[-1] = 5.0, 5.0
        more[min(filled + 1, 998)] = 10.0
        moved = rounded_loss(more, 3, 1000) - rounded_loss(half, 3, 1000)
        assert abs(moved) <= loss_step(3, 1000) * (1 + 1e-9)


@pytest.mark.parametrize("scale", [1e3, 1e30, 3e38])
@pytest.mark.parametrize("reported_as", ["exact", "power-of-two"])
def test_a_model_of_huge_weights_gets_finite_figures(trainer, scale, reported_as):
    policy = Policy(report_counts=reported_as)
    made = reported_evaluation(trainer, scaled(scale), silo(held_out=80), policy)
    assert made is not None
    require_reportable(made, policy, 3)
    assert 0 <= made.loss <= loss_cap(3) + loss_step(3, 64)


def test_a_score_that_is_not_finite_is_a_wrong_prediction(trainer):
    params = {name: np.full_like(tensor, 3e38) for name, tensor in initial_params(HEAD, 0).items()}
    held_out = FeatureTable(np.abs(table(64).x), table(64).y)
    data = SiloData(table(300), held_out, 0)
    made = reported_evaluation(trainer, params, data, QUIET)
    assert made is not None
    assert (made.loss, made.correct, made.count) == (10.0, 0, 64)
    exact = reported_evaluation(trainer, params, data, EXACT)
    assert (exact.loss, exact.correct) == (MAX_LOSS, 0)


def test_the_same_silo_keeps_exact_figures_for_itself(trainer):
    data = silo()
    own = evaluate_here(trainer, scaled(1), data.held_out)
    made = reported_evaluation(trainer, scaled(1), data, QUIET)
    exact = reported_evaluation(trainer, scaled(1), data, EXACT)
    assert own is not None
    assert made is not None
    assert exact == own
    assert made.loss != own.loss
    assert abs(made.loss - own.loss) <= loss_step(3, 64) / 2
    assert (made.correct, made.count) == (own.correct, own.count)


@pytest.mark.parametrize(
    ("train", "held_out", "policy", "reports"),
    [
        (256, 32, Policy(), True),
        (255, 32, Policy(), False),
        (12, 4, Policy(), False),
        (256, 31, Policy(), False),
        (300, 38, Policy(min_samples=300), True),
        (300, 37, Policy(min_samples=300), False),
        (4, 1, Policy(min_samples=4, min_samples_override=True), True),
        (9, 0, Policy(min_samples=1, min_samples_override=True), False),
        (300, 64, Policy(report_evaluation=False), False),
        (300, 64, Policy(privacy="record-dp"), False),
    ],
)
def test_few_clips_are_not_evaluated_for_anyone(trainer, train, held_out, policy, reports):
    made = reported_evaluation(trainer, scaled(1), silo(train, held_out), policy)
    assert (made is not None) == reports


def test_counts_are_reported_as_powers_of_two(trainer):
    made = reported_evaluation(
        trainer, scaled(1), silo(held_out=80), Policy(report_counts="power-of-two", evaluation_noise=0.0)
    )
    exact = evaluate_here(trainer, scaled(1), silo(held_out=80).held_out)
    assert made is not None
    assert exact is not None
    assert (made.count, made.correct) == (64, round(exact.correct * 64 / 80))


def test_classes_are_counted_only_when_the_policy_asks(trainer):
    data = silo(held_out=80)
    made = reported_evaluation(trainer, scaled(1), data, Policy(report_classes=10, evaluation_noise=0.0))
    assert made is not None
    assert sum(one.count for one in made.by_class) == 80
    assert sum(one.correct for one in made.by_class) == made.correct
    plain = reported_evaluation(trainer, scaled(1), data, Policy())
    assert plain is not None
    assert plain.by_class == ()


@pytest.mark.parametrize(
    "evaluation",
    [
        Evaluation(0.123456, 6, 64),
        Evaluation(math.nan, 6, 64),
        Evaluation(math.inf, 6, 64),
        Evaluation(-0.5, 6, 64),
        Evaluation(1e9, 6, 64),
        Evaluation(0.5, 65, 64),
        Evaluation(0.5, 0, 0),
    ],
)
def test_figures_that_no_policy_reports_do_not_pass(evaluation):
    with pytest.raises(InvariantError):
        require_reportable(evaluation, Policy(), 3)


def test_full_precision_is_an_override_with_consent():
    assert EXACT.overrides()[-1] == "report_loss is exact: losses in full precision can give held-out clips away"
    assert EXACT.overridden(300, evaluation=False) == ()
    require_reportable(Evaluation(0.123456, 6, 64), EXACT, 3)


@pytest.mark.parametrize("policy", [EXACT, QUIET, Policy()], ids=["exact", "rounded", "noise"])
@pytest.mark.parametrize("factor", [1e30, 1e38])
def test_whether_there_is_a_report_never_follows_from_a_clip(trainer, policy, factor):
    """Scores that overflow on some clips: the report is there, and its loss is one that a coordinator accepts."""
    params = {name: tensor * np.float32(factor) for name, tensor in scaled(1).items()}
    made = reported_evaluation(trainer, params, silo(), policy, b"s" * 32)
    assert made is not None
    assert is_loss(made.loss)
    require_reportable(made, policy, 3)

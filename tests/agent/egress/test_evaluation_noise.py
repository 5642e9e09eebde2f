"""Noise on reported evaluations: as large as the policy says, fresh for every model, the same for the same one."""

import numpy as np
import pytest
from flamest.agent.egress.evaluation_noise import SECRET_FILE, ReportNoise, noise_secret
from flamest.agent.egress.policy import Policy
from flamest.agent.egress.reported_evaluation import loss_cap, reported_evaluation, require_reportable
from flamest.agent.training.dataset import FeatureTable, SiloData
from flamest.agent.training.trainer import HeadTrainer
from flamest.fedproto.head import HeadSpec, initial_params

HEAD = HeadSpec(8, 3, (4,))
SECRET = b"s" * 32


def clips(count: int) -> FeatureTable:
    random = np.random.default_rng(count)
    return FeatureTable(random.normal(size=(count, 8)).astype(np.float32), np.arange(count) % 3)


def silo(held_out: int = 200) -> SiloData:
    return SiloData(clips(300), clips(held_out), 0)


def model(shift: float = 0.0):
    params = initial_params(HEAD, 1)
    params["0.bias"] = params["0.bias"] + np.float32(shift)
    return params


@pytest.fixture(scope="module")
def trainer():
    return HeadTrainer(HEAD, threads=1)


def test_the_noise_has_the_deviation_of_the_policy(trainer):
    """Three clips on correct predictions, and three clips' worth of the cap on the loss, over 300 like models."""
    data, quiet = silo(), Policy(evaluation_noise=0.0)
    exact = reported_evaluation(trainer, model(), data, quiet)
    made = [reported_evaluation(trainer, model(1e-6 * k), data, Policy(), SECRET) for k in range(1, 301)]
    assert np.std([one.correct for one in made]) == pytest.approx(3.0, rel=0.15)
    assert np.mean([one.correct for one in made]) == pytest.approx(exact.correct, abs=0.8)
    assert np.std([one.loss for one in made]) == pytest.approx(3 * loss_cap(3) / 200, rel=0.15)
    for one in made:
        require_reportable(one, Policy(), 3)


def test_asking_again_for_one_model_tells_nothing_new(trainer):
    asked = {reported_evaluation(trainer, model(), silo(), Policy(), SECRET) for _ in range(5)}
    assert len(asked) == 1


SAME_SHAPES = HeadSpec(8, 3, (4,), standardise=True)  # of the same values it makes another model


@pytest.mark.parametrize(
    ("what", "value"),
    [("secret", b"t" * 32), ("params", model(1e-6)), ("held_out", clips(41)), ("head", SAME_SHAPES)],
    ids=["secret", "model", "clips", "head"],
)
def test_the_noise_depends_on_each_of_its_sources(what, value):
    sources = {"secret": SECRET, "head": HEAD, "params": model(), "held_out": clips(40)}
    other = (what, value)
    noise, changed = ReportNoise(**sources), ReportNoise(**(sources | dict([other])))
    assert noise.draw("loss") != noise.draw("correct")
    assert noise.draw("loss") != changed.draw("loss")


@pytest.mark.parametrize("seed", range(20))
def test_noisy_classes_add_up_to_the_whole(trainer, seed):
    made = reported_evaluation(trainer, model(seed / 1e3), silo(90), Policy(report_classes=10), SECRET)
    assert 0 <= sum(one.correct for one in made.by_class) <= made.correct <= made.count == 90
    assert all(0 <= one.correct <= one.count for one in made.by_class)
    rest = made.count - sum(one.count for one in made.by_class)
    assert made.correct - sum(one.correct for one in made.by_class) <= rest


@pytest.mark.parametrize("blocks", [(1,) * 8, (4, 4), (8,), ()])
def test_the_noise_cannot_be_subtracted_with_the_same_values_in_another_head(trainer, blocks):
    """Blocks of one feature standardise to 0, so every clip gets the same answer: a result that the asker knows."""
    other = HeadTrainer(HeadSpec(8, 3, (4,), blocks=blocks, standardise=True), threads=1)
    data, quiet = silo(), Policy(evaluation_noise=0.0)
    errors = []
    for k in range(40):
        params = model(1e-3 * k)
        known = [reported_evaluation(one, params, data, quiet).correct for one in (trainer, other)]
        made = [reported_evaluation(one, params, data, Policy(), SECRET).correct for one in (trainer, other)]
        errors.append((made[0] - made[1]) - (known[0] - known[1]))
    assert np.std(errors) > 2.5  # of two independent draws 4.2, of one and the same 0


def test_less_noise_than_the_default_is_an_override():
    assert Policy(evaluation_noise=1.0).overrides() == ("evaluation_noise 1 is below 3 clips",)
    assert Policy(evaluation_noise=1.0, report_evaluation=False).overrides() == ()
    for wrong in (-1.0, float("nan"), float("inf")):
        assert any(problem.startswith("evaluation_noise") for problem in Policy(evaluation_noise=wrong).problems())


def test_the_secret_stays_as_it_is_and_private(tmp_path):
    first = noise_secret(tmp_path)
    assert noise_secret(tmp_path) == first
    assert len(first) == 32
    assert (tmp_path / SECRET_FILE).stat().st_mode & 0o777 == 0o600
    (tmp_path / SECRET_FILE).write_bytes(b"short")
    assert noise_secret(tmp_path) != first

"""A held-out clip computed back from reports of evaluations: it works without the rules, and not with them."""

import numpy as np
import pytest
from flamest.agent.egress.policy import DEFAULT_EVALUATIONS, Policy
from flamest.agent.egress.reported_evaluation import loss_cap, loss_step
from flamest.agent.extraction.store import FeatureRow, FeatureStore
from flamest.agent.tasks import DataSource, evaluate_model
from flamest.base.files import sha256_bytes
from flamest.experiments.inversion.belief import Prior
from flamest.experiments.inversion.evaluations import HIDDEN, Channel, EvaluationAttack
from flamest.experiments.inversion.updates import RECOVERED, nearest
from flamest.fedproto.head import HeadSpec
from flamest.fedproto.records import RunSettings
from flamest.runtime.clip_records import Clip

WIDTH, CLIPS = 24, 330
RUN = RunSettings("r", ("real", "made up"), HeadSpec(WIDTH, 2, HIDDEN), 80, 1, 9.0, "f", final_evaluation="model")
EXACT = Policy(report_loss="exact", report_loss_override=True, evaluation_noise=0.0)
MODES = {
    "off": {},
    "clip": {"privacy": "clip"},
    "record-dp": {"privacy": "record-dp"},
    "record-dp with an override": {"privacy": "record-dp", "report_evaluation": True},
}


def clips(count: int, seed: int) -> np.ndarray:
    """Half of the dimensions normal, half never negative, as BLIP's and Slow's are."""
    random = np.random.default_rng(seed)
    parts = [random.normal(size=(count, WIDTH // 2)), random.gamma(0.6, 0.7, size=(count, WIDTH // 2))]
    return np.concatenate(parts, axis=1).astype(np.float32)


PRIOR = Prior.of(clips(2000, 99), rotated=False)


def stolen(folder, policy: Policy, reports: int, seed: int = 1):
    """Attack a silo with a store on disk; its reports are made as the daemon's worker makes them."""
    x = clips(CLIPS, seed)
    with FeatureStore.open(folder / "store.sqlite") as store:
        store.add_rows(
            (f"{n}.mp4", FeatureRow(Clip(folder / f"{n}.mp4", sha256_bytes(b"%d" % n), "real", f"g{n // 5}"), x[n], 8,
                                    "f", "fp32"))
            for n in range(CLIPS)
        )  # fmt: skip
    source = DataSource(folder / "store.sqlite", None, policy.hold_out, 1, b"secret")
    held_out = 65
    noise, cap = policy.evaluation_noise, loss_cap(2)
    channel = Channel(held_out, loss_step(2, held_out), cap, noise * cap / held_out, noise)
    channel = channel if policy.report_loss == "rounded" else Channel(held_out)
    attack = EvaluationAttack(
        RUN.head, channel, PRIOR, lambda params: evaluate_model(source, RUN, params, policy), reports
    )
    found = attack.run()
    return found, nearest(found.estimate[None], x), nearest(PRIOR.mean[None], x)


def test_without_the_rules_as_many_reports_as_dimensions_give_a_clip(tmp_path):
    """The attack works: exact losses, a report for each dimension and a few to isolate the clip."""
    found, clip, _ = stolen(tmp_path, EXACT, 4 * WIDTH)
    assert clip.errors.min() < RECOVERED
    assert found.asked <= WIDTH + 20


def test_rounding_alone_does_not_stop_it(tmp_path):
    """A few reports for each dimension take the place of one: so noise is needed."""
    _, clip, guess = stolen(tmp_path, Policy(evaluation_noise=0.0), 10 * WIDTH)
    assert clip.cosines.max() > 0.98
    assert clip.cosines.max() > guess.cosines.max() + 0.05


@pytest.mark.parametrize("mode", MODES)
def test_a_run_of_reports_gives_no_clip_with_the_rules(tmp_path, mode):
    """On 24 dimensions, where each report weighs more than on 2,816; the bench has a day and a month."""
    found, clip, guess = stolen(tmp_path, Policy(**MODES[mode]), 81)
    assert clip.errors.min() > 4 * RECOVERED
    assert clip.cosines.max() <= guess.cosines.max() + 0.02
    assert (found.asked == 0) == (mode == "record-dp")


def test_a_day_of_reports_gives_no_clip_with_the_rules(tmp_path):
    _, clip, _ = stolen(tmp_path, Policy(), DEFAULT_EVALUATIONS)
    assert clip.errors.min() > 4 * RECOVERED

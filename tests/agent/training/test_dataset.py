"""The clips that a silo trains on, and the effect of one clip more or less."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flamest.agent.egress.policy import Policy
from flamest.agent.end_of_run_tasks import choose_model
from flamest.agent.extraction.aliases import LabelAliases
from flamest.agent.extraction.store import FeatureRow, FeatureStore, StoredFeatures
from flamest.agent.tasks import DataSource, RoundWork, evaluate_model, train_round
from flamest.agent.training.dataset import SiloData, silo_data
from flamest.agent.training.holdout import hold_out_groups_independently
from flamest.fedproto.head import HeadSpec, initial_params
from flamest.fedproto.records import GlobalModel, RunSettings
from flamest.runtime.clip_records import Clip, Segment

LABELS = ("fall", "run", "walk")
HEAD = HeadSpec(4, len(LABELS), ())


def stored(rows: list[tuple[int, str | None, str]]) -> StoredFeatures:
    """Clips as (number, label, group); the number is in the features, so that a row can be recognised."""
    numbers, labels, groups = zip(*rows, strict=True) if rows else ((), (), ())
    x = np.repeat(np.array(numbers, np.float32)[:, None], 4, axis=1).reshape(-1, 4)
    names = tuple(map(str, numbers))
    return StoredFeatures(x, labels, groups, names, names, names, "f", "fp32", 2)


def drawn(seed: int) -> list[tuple[int, str | None, str]]:
    """Groups of one clip up to many, of one label or mixed; some clips that the run does not know."""
    pick = random.Random(seed)
    groups, size = pick.randint(1, 12), pick.randint(2, 30)
    return [
        (
            number,
            pick.choice((*LABELS, None, "other")),
            f"g{pick.randint(1, groups) if pick.random() < 0.8 else -number}",
        )
        for number in range(size)
    ]


def sides(data: SiloData) -> dict[int, str]:
    reported = {int(number): "train" for number in data.train.x[:, 0]}
    return reported | {int(number): "held out" for number in data.held_out.x[:, 0]}


def moved(rows: list[tuple[int, str | None, str]], hold_out: float, seed: int, *, independent: bool) -> int:
    """Count the clips that change side, over all removals of a single one."""
    before = sides(silo_data(stored(rows), LABELS, hold_out=hold_out, seed=seed, independent=independent))
    count = 0
    for gone in range(len(rows)):
        rest = rows[:gone] + rows[gone + 1 :]
        after = sides(silo_data(stored(rest), LABELS, hold_out=hold_out, seed=seed, independent=independent))
        expected = {number: side for number, side in before.items() if number != rows[gone][0]}
        assert set(after) == set(expected)
        count += sum(after[number] != side for number, side in expected.items())
    return count


@pytest.mark.parametrize("hold_out", [0.1, 0.2, 0.5])
def test_without_one_clip_no_other_moves_if_groups_are_alone(hold_out: float) -> None:
    for seed in range(40):
        assert moved(drawn(seed), hold_out, seed, independent=True) == 0


def test_in_other_modes_the_share_is_met_and_clips_may_move() -> None:
    """So that the test above can fail, and docs/guides/evaluation.md says what is true."""
    assert sum(moved(drawn(seed), 0.2, seed, independent=False) for seed in range(10)) > 0


FEW = {"min_samples": 1, "min_samples_override": True}
PRIVATE = Policy(privacy="record-dp", epsilon=1e6, report_evaluation=True, hold_out=0.5, **FEW)
RUN = RunSettings("r", LABELS, HEAD, 9, 1, 9.0, "f", seed=3)
MODEL = GlobalModel(1, initial_params(HEAD, 0), "a" * 64)


def source_of(folder: Path, groups: list[str]) -> DataSource:
    """A store of one clip for each of ``groups``."""
    path = folder / "features.sqlite"
    with FeatureStore.open(path) as store:
        for number, group in enumerate(groups):
            clip = Clip(Path(f"{number}.avi"), f"{number:064x}", LABELS[number % 3], group)
            store.add_rows([(f"{number}.avi", FeatureRow(clip, np.full(4, number, np.float32), 2, "f", "fp32"))])
    return DataSource(path, None, PRIVATE.hold_out, 1)


def test_only_record_dp_splits_each_group_alone(tmp_path):
    source = source_of(tmp_path, [f"g{number}" for number in range(60)])
    rows = [(number, LABELS[number % 3], f"g{number}") for number in range(60)]
    alone = silo_data(stored(rows), LABELS, hold_out=0.5, seed=RUN.seed, independent=True)
    assert len(alone.held_out) != 30  # by all groups it is half of every label
    for policy, held_out in ((PRIVATE, len(alone.held_out)), (Policy(hold_out=0.5, **FEW), 30)):
        outcome = train_round(source, RoundWork(RUN, "a", MODEL, 0, tmp_path, policy))
        assert (outcome.refused, outcome.examples, outcome.held_out) == (None, 60 - held_out, held_out)
        assert outcome.evaluation.count == held_out
        assert evaluate_model(source, RUN, MODEL.params, policy).count == held_out
        assert choose_model(source, RUN, MODEL.params, tmp_path / "none", policy).final.count == held_out


def test_nothing_is_trained_when_every_clip_is_held_out(tmp_path):
    """One group is held out or not as a whole: never a training on nothing."""
    group = next(f"g{n}" for n in range(99) if len(hold_out_groups_independently([f"g{n}"], 0.5, RUN.seed)[1]))
    source = source_of(tmp_path, [group] * 6)
    outcome = train_round(source, RoundWork(RUN, "a", MODEL, 0, tmp_path, PRIVATE))
    assert (outcome.params, outcome.examples, outcome.held_out) == (None, 0, 6)
    assert outcome.refused is not None
    assert outcome.refused.reason == "few_samples"


def test_clips_with_common_frames_are_on_one_side_whatever_their_groups():
    rows = [(number, "walk", f"g{number}") for number in range(8)]
    cuts = tuple(Segment.of_seconds(number // 2 * 10, number // 2 * 10 + 5 + number % 2) for number in range(8))
    files = tuple(f"long.mp4#{cut}" for cut in cuts)
    overlapping = replace(stored(rows), paths=files, segments=cuts)
    for seed in range(20):
        side = sides(silo_data(overlapping, LABELS, hold_out=0.5, seed=seed))
        assert [side[number] for number in range(0, 8, 2)] == [side[number] for number in range(1, 8, 2)]
    alone = silo_data(overlapping, LABELS, hold_out=0.5, seed=0, independent=True)
    assert sides(alone) == sides(silo_data(stored(rows), LABELS, hold_out=0.5, seed=0, independent=True))


def test_an_alias_brings_a_silos_word_to_the_runs_class():
    rows = [(number, "Sturz", f"g{number}") for number in range(4)]
    data = silo_data(stored(rows), ["fall"], hold_out=0.25, seed=0, aliases=LabelAliases({"Sturz": "fall"}))
    assert (len(data.train), len(data.held_out), data.ignored) == (3, 1, 0)
    assert silo_data(stored(rows), ["fall"], hold_out=0.25, seed=0).ignored == 4

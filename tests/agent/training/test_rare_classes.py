"""Clips of rare classes are in no update, and still in a head of the silo's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flamest.agent.egress.policy import Policy
from flamest.agent.end_of_run_tasks import adopt_head
from flamest.agent.extraction.store import FeatureRow, FeatureStore
from flamest.agent.tasks import DataSource, RoundWork, train_round
from flamest.agent.training.dataset import FeatureTable, SideRows, SiloData
from flamest.fedproto.head import HeadSpec, initial_params
from flamest.fedproto.model_file import read_model
from flamest.fedproto.records import GlobalModel, RunSettings, TrainSettings
from flamest.runtime.clip_records import Clip

LABELS = ("fall", "run", "walk")
WIDTH = 6
POLICY = Policy(min_samples=20, min_samples_override=True, min_class_samples=10, hold_out=0.0, adopt="own")


def run_of(hidden: tuple[int, ...], *, balanced: bool = False) -> RunSettings:
    train = TrainSettings(batch_size=8, class_balanced=balanced)
    return RunSettings("r", LABELS, HeadSpec(WIDTH, len(LABELS), hidden), 3, 1, 9.0, "f", train=train)


def source_of(folder: Path, counts: tuple[int, int, int], *, shift: float = 0.0) -> DataSource:
    """A store with so many clips of each label; ``shift`` moves those of the last one."""
    (folder / "state").mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(5)
    with FeatureStore.open(folder / "features.sqlite") as store:
        rows = []
        for label, count in enumerate(counts):
            for number in range(count):
                name = f"{LABELS[label]}{number}"
                clip = Clip(Path(f"{name}.mp4"), name.encode().hex().zfill(64), LABELS[label], name)
                x = random.normal(size=WIDTH) + label + (shift if label == 2 else 0.0)
                rows.append((clip.path.name, FeatureRow(clip, x.astype(np.float32), 2, "f", "fp32")))
        store.add_rows(rows)
    return DataSource(folder / "features.sqlite", "fp32", POLICY.hold_out, 1)


def trained(folder: Path, counts: tuple[int, int, int], run: RunSettings, policy: Policy = POLICY, shift: float = 0.0):
    model = GlobalModel(1, initial_params(run.head, 0), "a" * 64)
    source = source_of(folder, counts, shift=shift)
    return train_round(source, RoundWork(run, "anna", model, 0, folder / "state", policy))


@pytest.mark.parametrize("hidden", [(), (5,)], ids=["softmax regression", "perceptron"])
@pytest.mark.parametrize("balanced", [False, True])
def test_an_update_is_the_same_to_the_bit_without_a_rare_class(tmp_path: Path, hidden, balanced: bool) -> None:
    run = run_of(hidden, balanced=balanced)
    without = trained(tmp_path / "without", (12, 15, 0), run)
    for number, (count, shift) in enumerate([(1, 0.0), (9, 0.0), (9, 50.0)]):
        outcome = trained(tmp_path / str(number), (12, 15, count), run, shift=shift)
        assert (outcome.examples, outcome.left_out) == (27, count)
        for name, tensor in without.params.items():
            assert outcome.params[name].tobytes() == tensor.tobytes()


def test_a_class_at_the_floor_is_in_the_update(tmp_path: Path) -> None:
    run = run_of(())
    outcome = trained(tmp_path / "at", (12, 15, 10), run)
    assert (outcome.examples, outcome.left_out) == (37, 0)
    assert (
        outcome.params["0.weight"].tobytes() != trained(tmp_path / "w", (12, 15, 0), run).params["0.weight"].tobytes()
    )


def test_clips_left_out_do_not_count_towards_the_minimum(tmp_path: Path) -> None:
    outcome = trained(tmp_path, (12, 7, 9), run_of(()))
    assert outcome.params is None
    assert (outcome.refused.reason, outcome.examples, outcome.left_out) == ("few_samples", 12, 16)


def test_a_head_of_its_own_knows_the_rare_class(tmp_path: Path) -> None:
    run, source = run_of(()), source_of(tmp_path, (12, 15, 9), shift=4.0)
    own = tmp_path / "alone.safetensors"
    adopted = adopt_head(source, run, initial_params(run.head, 0), own, POLICY)
    assert adopted.candidate == "own"
    with FeatureStore.open(source.store) as store:
        x = store.read("f", None).x
    weights = read_model(own).params
    answers = (x @ weights["0.weight"].T + weights["0.bias"]).argmax(axis=1)
    assert (answers[27:] == 2).sum() > 4


def test_held_out_clips_of_a_rare_class_stay() -> None:
    table = FeatureTable(np.arange(8, dtype=np.float32).reshape(4, 2), np.array([0, 0, 0, 1]))
    rows = SideRows((4, 5, 6, 7), ("a", "b", "c", "d"), ("4", "5", "6", "7"))
    data = SiloData(table, table, 0, rows, rows)
    common = data.without_rare_classes(2)
    assert common.rows == SideRows((4, 5, 6), ("a", "b", "c"), ("4", "5", "6"))
    assert common.train.x.tobytes() == table.x[:3].tobytes()
    assert (common.held_out, common.held_out_rows) == (table, rows)
    assert data.without_rare_classes(1) is data
    nothing = replace(data, train=table.rows(np.empty(0, np.int64)), rows=SideRows())
    assert len(nothing.without_rare_classes(2).train) == 0

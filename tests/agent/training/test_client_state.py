"""FedDyn's h_i over rounds that count, rounds that do not, and crashes."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from flamest.agent.egress.policy import Policy
from flamest.agent.extraction.store import FeatureRow, FeatureStore
from flamest.agent.tasks import DataSource, RoundWork, train_round
from flamest.agent.training.client_state import ClientState, TrainedRound
from flamest.agent.training.dataset import FeatureTable
from flamest.agent.training.federated import train_silo
from flamest.agent.training.trainer import HeadTrainer
from flamest.base.errors import StorageError
from flamest.base.files import sha256_bytes
from flamest.fedproto.head import HeadSpec, initial_params, params_sha256
from flamest.fedproto.records import GlobalModel, RunSettings, Strategy
from flamest.runtime.clip_records import Clip

FEW = Policy(min_samples=1)
SPEC = HeadSpec(inputs=6, outputs=2, hidden=(4,))
RUN = RunSettings("r", ("x", "y"), SPEC, 9, 1, 9.0, "f", strategy=Strategy("feddyn", alpha=0.1))


def model(number: int, seed: int | None = None) -> GlobalModel:
    params = initial_params(SPEC, number if seed is None else seed)
    return GlobalModel(number, params, params_sha256(params))


def trained(number: int) -> TrainedRound:
    h = {name: np.full(shape, number + 0.1) for name, shape in SPEC.shapes.items()}
    return TrainedRound(initial_params(SPEC, 100 + number), 10 + number, 0.5 / number, h)


@pytest.fixture
def state(tmp_path) -> ClientState:
    return ClientState.of_run(tmp_path, RUN)


def value(correction) -> float:
    """Return the one value that fills a file above."""
    assert list(correction) in ([], list(SPEC.shapes))
    values = {float(x) for tensor in correction.values() for x in tensor.flat}
    return values.pop() if values else 0.0


def test_a_new_silo_starts_at_zero(state):
    assert state.correction(1, 0) == {}
    assert state.trained(model(1)) is None


def test_runs_without_end_leave_the_files_of_two(tmp_path):
    made_up = [msgspec.structs.replace(RUN, run=f"run-{number}") for number in range(6)]
    for run in made_up:
        for number in range(1, 5):
            state = ClientState.of_run(tmp_path, run)
            state.correction(number, number - 1)
            state.save(model(number), trained(number))
    folders = list((tmp_path / "feddyn").iterdir())
    assert {folder.name for folder in folders} == {run.sha256[:16] for run in made_up[-2:]}
    assert all(len(list(folder.iterdir())) <= 2 for folder in folders)


def test_a_file_left_by_an_ended_worker_is_removed_next_round(state):
    state.save(model(1), trained(1))
    (state.folder / ".round-000002.arrays.abc.tmp").write_bytes(b"half")
    state.correction(2, 1)
    assert [path.name for path in state.folder.iterdir()] == ["round-000001.arrays"]


def test_training_resumes_from_the_round_that_counted(state):
    state.save(model(1), trained(1))
    assert value(state.correction(2, 1)) == 1.1
    state.save(model(2), trained(2))
    assert value(state.correction(3, 2)) == 2.1
    assert [path.name for path in state.folder.iterdir()] == ["round-000002.arrays"]


def test_a_round_that_did_not_count_is_rolled_back(state):
    state.save(model(1), trained(1))
    state.correction(2, 1)
    state.save(model(2), trained(2))  # refused, late, or abandoned
    assert value(state.correction(3, 1)) == 1.1
    assert [path.name for path in state.folder.iterdir()] == ["round-000001.arrays"]


def test_a_first_round_that_did_not_count_goes_back_to_zero(state):
    state.save(model(1), trained(1))
    assert state.correction(2, 0) == {}
    assert list(state.folder.iterdir()) == []


def test_an_interrupted_round_returns_what_was_trained_before(state):
    state.save(model(4), trained(4))
    state.correction(4, 0)
    again = state.trained(model(4))
    assert again is not None
    assert params_sha256(again.params) == params_sha256(trained(4).params)
    assert (again.examples, again.loss, value(again.correction)) == (14, 0.125, 4.1)


def test_another_model_of_the_same_round_is_trained_again(state):
    state.save(model(4), trained(4))
    assert state.trained(model(4, seed=77)) is None


@pytest.mark.parametrize("harm", ["removed", "cut", "flipped"])
def test_a_lost_file_starts_again_at_zero(state, harm):
    state.save(model(3), trained(3))
    path = state.folder / "round-000003.arrays"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    if harm == "removed":
        path.unlink()
    else:
        path.write_bytes(content if harm == "flipped" else content[:40])
    assert state.correction(4, 3) == {}


def test_runs_share_no_state_and_a_finished_one_leaves_none(tmp_path, state):
    other = ClientState.of_run(tmp_path, RunSettings(**{**vars_of(RUN), "run": "other"}))
    state.save(model(1), trained(1))
    assert other.correction(2, 1) == {}
    other.save(model(1), trained(2))
    other.remove()
    assert value(state.correction(2, 1)) == 1.1
    assert not other.folder.exists()


def vars_of(run: RunSettings) -> dict:
    return {name: getattr(run, name) for name in run.__struct_fields__}


@pytest.fixture
def source(tmp_path) -> DataSource:
    path = tmp_path / "features.sqlite"
    fill(path, 0, 30)
    return DataSource(path, None, 0.0, 1)


def fill(path, first: int, last: int) -> None:
    random = np.random.default_rng(first)
    with FeatureStore.open(path) as store:
        rows = []
        for row in range(first, last):
            clip = Clip(path.with_name(f"{row}.mp4"), sha256_bytes(f"{row}".encode()), "xy"[row % 2], f"g{row}")
            x = (random.normal(size=6) + 2 * (row % 2)).astype(np.float32)
            rows.append((f"{row}.mp4", FeatureRow(clip, x, 4, "f", "fp32")))
        store.add_rows(rows)


def work(tmp_path, number: int, counted: int, start: GlobalModel) -> RoundWork:
    state = tmp_path / "state"
    state.mkdir(exist_ok=True)
    return RoundWork(RUN, "anna", GlobalModel(number, start.params, start.sha256), counted, state, FEW)


def expected_rounds(source, start: GlobalModel, numbers: list[int]) -> list[str]:
    """The pure function over rounds that all count, each from the same model."""
    with FeatureStore.open(source.store, create=False, read_only=True) as store:
        stored = store.read("f", None)
    labels = [RUN.labels.index(label) for label in stored.labels]
    table, correction, found = FeatureTable(stored.x, np.array(labels)), {}, []
    trainer = HeadTrainer(SPEC, threads=1)
    for number in numbers:
        result, correction = train_silo(trainer, RUN, "anna", number, start.params, table, correction)
        found.append(params_sha256(result.params))
    return found


def test_the_workers_rounds_are_those_of_the_pure_function(tmp_path, source):
    start = model(0)
    found = [
        params_sha256(train_round(source, work(tmp_path, number, number - 1, start)).params) for number in (1, 2, 3)
    ]
    assert found == expected_rounds(source, start, [1, 2, 3])
    assert len(set(found)) == 3


def test_a_round_that_did_not_count_has_no_effect_on_the_next(tmp_path, source):
    start = model(0)
    first = train_round(source, work(tmp_path, 1, 0, start))
    train_round(source, work(tmp_path, 2, 1, start))
    third = train_round(source, work(tmp_path, 3, 1, start))  # round 2 was abandoned
    assert [params_sha256(out.params) for out in (first, third)] == expected_rounds(source, start, [1, 3])
    assert params_sha256(third.params) != expected_rounds(source, start, [1, 2, 3])[2]


def test_a_crash_after_training_gives_the_same_update_despite_new_clips(tmp_path, source):
    start = model(0)
    earlier = train_round(source, work(tmp_path, 1, 0, start))
    fill(source.store, 30, 60)
    after = train_round(source, work(tmp_path, 1, 0, start))
    assert (params_sha256(after.params), after.examples) == (params_sha256(earlier.params), 30)
    assert train_round(source, work(tmp_path, 2, 1, start)).examples == 60


def test_a_state_that_cannot_be_saved_ends_the_round(tmp_path, source):
    (tmp_path / "state").mkdir(exist_ok=True)
    (tmp_path / "state" / "feddyn").write_text("in the way")
    with pytest.raises(StorageError, match="feddyn"):
        train_round(source, work(tmp_path, 1, 0, model(0)))


def test_the_names_of_new_folders_are_durable_too(tmp_path, state, monkeypatch):
    synced = []
    monkeypatch.setattr("flamest.agent.training.client_state.fsync_directory", synced.append)
    state.save(model(1), trained(1))
    state.save(model(2), trained(2))
    assert synced == [tmp_path, tmp_path / "feddyn"]

"""State after a stop, a crash or damage to the disk, and the next start."""

import dataclasses
import os

import apsw
import msgspec
import pytest
from flamest.base.errors import DataError, LockedError, SettingsError, StorageError
from flamest.base.files import FileLock, sha256_bytes
from flamest.coordinator.admin.history import History, is_served
from flamest.coordinator.rounds import (
    Cohort,
    RoundPolicy,
    Submission,
    UpdateSummary,
    after_abandon,
    after_close,
    on_update,
)
from flamest.coordinator.storage import run_store as state_module
from flamest.coordinator.storage.database import DATABASE_FILE
from flamest.coordinator.storage.journal import RoundEnd, StoredUpdate
from flamest.coordinator.storage.run_store import RunStore
from flamest.coordinator.storage.spool import Spool, keep_spare
from flamest.coordinator.storage.strategy_state import StrategyState
from flamest.coordinator.strategies.composition import aggregate, first_state
from flamest.coordinator.strategies.fedavg import fedavg
from flamest.fedproto.head import HeadSpec, initial_params, params_sha256
from flamest.fedproto.model_file import read_model
from flamest.fedproto.records import Evaluation, RunSettings, Strategy
from flamest.fedproto.tensors import encode_params

SPEC = HeadSpec(inputs=3, outputs=2, hidden=(4,))
RUN = RunSettings("r", ("x", "y"), SPEC, rounds=3, min_silos=1, deadline_s=9.0, fingerprint="f", seed=4)
POLICY = RoundPolicy(rounds=3, min_silos=1, deadline_s=9.0)
COHORT = Cohort(frozenset("ab"), 2)
END = RoundEnd(seconds=1.5, sent_bytes=77)


@pytest.fixture(autouse=True)
def no_waiting_for_the_lock(monkeypatch):
    monkeypatch.setattr(state_module, "LOCK_TRIES", 1)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "state"


def opened(folder, run=RUN, **options):
    return RunStore.open(folder, run, **options)


def load(store):
    return store.load(POLICY, COHORT)


def send(store, state, silo: str, seed: int = 1, examples: int = 5):
    """An accepted update, durable; the state that counts it."""
    payload = encode_params(SPEC, initial_params(SPEC, seed))
    report = UpdateSummary(silo, "0a" * 16, examples, f"digest-{silo}")
    state, _ = on_update(state, Submission(state.open.number, state.model_sha256, report), None, 0.0)
    spool = Spool(store.spool_folder, len(payload))
    try:
        spool.feed(payload)
        spool.finish(sha256_bytes(payload))
        store.accept(StoredUpdate(state.open.number, report, sha256_bytes(payload), 200, Evaluation(0.5, 3, 4)), spool)
    finally:
        spool.discard()
    return state


def close(store, state):
    params = fedavg(SPEC, store.contributions(state.open.number))
    after = after_close(state, params_sha256(params), COHORT)
    store.close_round(after, params, END)
    store.tidy()
    return after


def without_clock(state):
    return dataclasses.replace(state, open=state.open and dataclasses.replace(state.open, deadline=None))


def test_a_new_run_starts_from_the_settings_seed(folder):
    with opened(folder) as store:
        state, params = load(store)
    assert params_sha256(params) == params_sha256(initial_params(SPEC, RUN.seed)) == state.model_sha256
    assert (state.open.number, state.closed) == (1, 0)


@pytest.mark.parametrize("stop_after", ["begin", "update", "close", "abandon", "finish"])
def test_a_restarted_run_resumes_where_it_stopped(folder, stop_after):
    with opened(folder) as store:
        state, _ = load(store)
        if stop_after != "begin":
            state = send(store, send(store, state, "b"), "a", seed=2)
        if stop_after in ("close", "abandon", "finish"):
            state = close(store, state)
        if stop_after == "abandon":
            state = after_abandon(state, COHORT)
            store.abandon_round(state, END)
        while stop_after == "finish" and state.open:
            state = close(store, send(store, state, "a", seed=state.open.number))
    with opened(folder) as store:
        again, params = load(store)
    assert again == without_clock(state)
    assert params_sha256(params) == state.model_sha256


CARRYING = {
    "feddyn": Strategy("feddyn", alpha=0.1),
    "momentum": Strategy(server_momentum=0.9),
    "average of the last two": Strategy(average_last=2),
    "feddyn and an average": Strategy("feddyn", alpha=0.1, average_last=2),
}


def close_with(store, run, state, params, server_state):
    made = aggregate(run.strategy, SPEC, params, store.contributions(state.open.number), server_state, 4)
    after = after_close(state, params_sha256(made.params), COHORT)
    store.close_round(after, made.params, END, made.state)
    store.tidy()
    return after, made.params, made.state


def model_after_all_rounds(folder, run, *, stopping: bool) -> str:
    """Of three rounds that close and one that does not; with ``stopping`` the coordinator restarts in each."""
    store = opened(folder, run)
    state, params = load(store)
    server_state = store.server_state(state)
    while state.open:
        for silo in "ab":
            state = send(store, state, silo, seed=state.open.number + ord(silo))
        state, params, server_state = close_with(store, run, state, params, server_state)
        if state.open and state.last_round == 1:
            state = after_abandon(state, COHORT)
            store.abandon_round(state, END)
        if stopping:
            store.close()
            store = opened(folder, run)
            state, params = load(store)
            server_state = store.server_state(state)
    store.close()
    return state.model_sha256


@pytest.mark.parametrize("name", CARRYING)
def test_strategy_state_survives_a_restart_to_the_bit(folder, name):
    run = msgspec.structs.replace(RUN, strategy=CARRYING[name])
    quiet = model_after_all_rounds(folder / "quiet", run, stopping=False)
    assert model_after_all_rounds(folder / "stopping", run, stopping=True) == quiet
    assert model_after_all_rounds(folder / "plain", RUN, stopping=False) != quiet
    kept = [path.name for path in (folder / "stopping" / "runs" / "r" / "memory").iterdir()]
    assert sorted(kept) == ["round-000003.arrays", "round-000004.arrays"]


def test_a_strategy_without_state_writes_no_file(folder):
    model_after_all_rounds(folder, RUN, stopping=False)
    assert not (folder / "runs" / "r" / "memory").exists()


def test_strategy_state_of_an_uncommitted_round_is_not_used(folder):
    run = msgspec.structs.replace(RUN, strategy=CARRYING["feddyn"])
    with opened(folder, run) as store:
        state, params = load(store)
        state, params, server_state = close_with(store, run, send(store, state, "a"), params, store.server_state(state))
        StrategyState(folder / "runs" / "r" / "memory", run).write(2, "ab" * 32, server_state)  # then a power cut
    with opened(folder, run) as store:
        again, _ = load(store)
        found = store.server_state(again)
    assert found.rounds_left == server_state.rounds_left == 2
    assert all((found.arrays["h"][name] == tensor).all() for name, tensor in server_state.arrays["h"].items())
    assert [path.name for path in (folder / "runs" / "r" / "memory").iterdir()] == ["round-000001.arrays"]


def test_the_folder_of_the_strategy_state_is_durable(folder, monkeypatch):
    synced = []
    monkeypatch.setattr("flamest.coordinator.storage.strategy_state.fsync_directory", synced.append)
    model_after_all_rounds(folder, msgspec.structs.replace(RUN, strategy=CARRYING["momentum"]), stopping=False)
    assert synced == [folder / "runs" / "r"]


@pytest.mark.parametrize("harm", ["damaged", "lost", "of another model"])
def test_with_damaged_strategy_state_the_run_resumes_one_round_earlier(folder, harm):
    run = msgspec.structs.replace(RUN, strategy=CARRYING["feddyn"])
    with opened(folder, run) as store:
        state, params = load(store)
        server_state = store.server_state(state)
        for _ in range(2):
            state, params, server_state = close_with(store, run, send(store, state, "a"), params, server_state)
        path = folder / "runs" / "r" / "memory" / "round-000002.arrays"
        if harm == "damaged":
            damage(path)
        elif harm == "lost":
            path.unlink()
        else:
            of_another = dataclasses.replace(first_state(run), arrays={"h": {"0.bias": params["0.bias"]}})
            StrategyState(path.parent, run).write(2, "ab" * 32, of_another)
    with opened(folder, run) as store:
        state, params = load(store)
        assert (state.closed, state.last_round, state.open.number) == (1, 3, 4)
        assert store.server_state(state).rounds_left == 2
    with History.open(folder, "r") as history:
        assert [row.status for row in history.rounds()] == ["closed", "lost", "lost", "open"]


def test_contributions_are_in_order_of_silo_name(folder):
    results = []
    for order in ("abc", "cba", "bca"):
        with opened(folder / order) as store:
            state, _ = load(store)
            for silo in order:
                state = send(store, state, silo, seed=ord(silo), examples=ord(silo))
            assert [part.silo for part in store.contributions(1)] == ["a", "b", "c"]
            results.append(close(store, state).model_sha256)
    assert len(set(results)) == 1


def test_leftovers_of_a_crash_are_removed_acknowledged_updates_stay(folder):
    with opened(folder) as store:
        send(store, load(store)[0], "a")
        (store.spool_folder / "upload.x.tmp").write_bytes(b"half")
    run = folder / "runs" / "r"
    (run / "updates" / "000001" / "ghost.f32").write_bytes(b"renamed, never committed")
    (run / "models" / ".round-000001.safetensors.x.tmp").write_bytes(b"half a model")
    (run / "updates" / "000000").mkdir()
    with opened(folder) as store:
        state, _ = load(store)
        assert list(state.open.accepted) == ["a"]
        assert [part.silo for part in store.contributions(1)] == ["a"]
        left = {path.name for path in run.rglob("*") if path.is_file()}
        assert left == {"a.f32", "round-000000.safetensors", "last_round.json"}


def test_an_update_that_was_not_committed_does_not_count(folder):
    with opened(folder) as store:
        state, _ = load(store)

        class Full:
            def __getattr__(self, name):
                return getattr(database, name)

            def __enter__(self):
                return database.__enter__()

            def __exit__(self, *_):
                database.__exit__(apsw.FullError, apsw.FullError("disk full"), None)
                raise apsw.FullError("disk full")

        database, store.journal.db = store.journal.db, Full()
        with pytest.raises(StorageError, match="disk full"):
            send(store, state, "a")
        store.journal.db = database
        assert store.accepted_update(1, "a") is None
        send(store, state, "a")  # space has returned
        assert store.accepted_update(1, "a").silo == "a"


def test_changed_settings_of_a_run_are_refused_naming_their_keys(folder):
    with opened(folder) as store:
        load(store)
    changed = msgspec.structs.replace(RUN, rounds=9, seed=5)
    with opened(folder, changed) as store:
        with pytest.raises(SettingsError, match=r"other settings \(rounds, seed differ\)"):
            load(store)
    with opened(folder, msgspec.structs.replace(changed, run="r2")) as store:
        assert load(store)[0].open.number == 1


def test_a_second_coordinator_is_refused_status_is_not_one(folder):
    with opened(folder):
        assert is_served(folder)
        with pytest.raises(LockedError) as refused:
            opened(folder)
        assert refused.value.exit_code == 75
    assert not is_served(folder)
    assert not is_served(folder / "nowhere")


def test_the_lock_is_tried_again_while_status_holds_it(folder, monkeypatch):
    folder.mkdir()
    monkeypatch.setattr(state_module, "LOCK_TRIES", 3)
    other = FileLock.take(folder / "lock", owner="status")
    monkeypatch.setattr(state_module.time, "sleep", lambda seconds: other.release())
    opened(folder).close()


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) - 3] ^= 1
    path.write_bytes(bytes(content))


def test_a_damaged_model_is_quarantined_and_the_run_resumes_earlier(folder):
    """Never silently, and nothing is overwritten."""
    with opened(folder) as store:
        first = close(store, send(store, load(store)[0], "a"))
        close(store, send(store, first, "a", seed=2))
    model = folder / "runs" / "r" / "models" / "round-000002.safetensors"
    damage(model)
    bad = model.read_bytes()
    with opened(folder) as store:
        state, params = load(store)
        assert (state.closed, state.model_sha256, state.open.number) == (1, first.model_sha256, 4)
        assert params_sha256(params) == first.model_sha256
        assert dict(state.counted) == {"a": 1}
        state = close(store, send(store, state, "a", seed=2))  # and it can be finished
        state = close(store, send(store, state, "a", seed=3))
        assert state.open is None
    assert (folder / "quarantine" / "r-round-000002.safetensors").read_bytes() == bad
    assert not model.exists()
    with History.open(folder, "r") as history:
        assert [row.status for row in history.rounds()] == ["closed", "lost", "lost", "closed", "closed"]


def test_without_an_intact_model_nothing_starts_or_changes(folder):
    with opened(folder) as store:
        close(store, send(store, load(store)[0], "a"))
    models = folder / "runs" / "r" / "models"
    for path in models.iterdir():
        damage(path)
    before = {path.name: path.read_bytes() for path in models.iterdir()}
    with opened(folder) as store:
        with pytest.raises(DataError, match="round-000001") as refused:
            load(store)
    assert (refused.value.code, refused.value.exit_code) == ("corrupt_model", 65)
    assert {path.name: path.read_bytes() for path in models.iterdir()} == before


def test_a_damaged_update_is_found_when_the_round_closes(folder):
    with opened(folder) as store:
        state = send(store, load(store)[0], "a")
        damage(folder / "runs" / "r" / "updates" / "000001" / "a.f32")
        with pytest.raises(DataError) as refused:
            close(store, state)
    assert refused.value.code == "corrupt_update"


def test_a_lost_database_does_not_restart_the_run(folder):
    with opened(folder) as store:
        close(store, send(store, load(store)[0], "a"))
    for path in folder.glob(f"{DATABASE_FILE}*"):
        path.unlink()
    with pytest.raises(DataError, match="does not know the run") as refused:
        opened(folder)
    assert refused.value.code == "lost_run"


def test_a_damaged_database_is_found_at_the_start(folder):
    with opened(folder) as store:
        load(store)
    path = folder / DATABASE_FILE
    content = bytearray(path.read_bytes())
    for place in range(4096, len(content), 7):
        content[place] ^= 0x5A
    path.write_bytes(bytes(content))
    with pytest.raises(DataError) as refused:
        opened(folder)
    assert refused.value.code == "corrupt_state"
    assert not is_served(folder)


def test_a_database_of_a_newer_version_is_not_touched(folder):
    with opened(folder) as store:
        load(store)
        store.journal.db.pragma("user_version", 99)
    before = (folder / DATABASE_FILE).read_bytes()
    with pytest.raises(SettingsError, match="newer version"):
        opened(folder)
    assert (folder / DATABASE_FILE).read_bytes() == before


def test_old_models_are_removed_only_when_asked(folder):
    for keep, names in ((0, [0, 1, 2, 3]), (2, [2, 3])):
        with opened(folder / str(keep), keep_models=keep) as store:
            state, _ = load(store)
            while state.open:
                state = close(store, send(store, state, "a", seed=state.open.number))
        models = sorted((folder / str(keep) / "runs" / "r" / "models").iterdir())
        assert [path.name for path in models] == [f"round-{n:06d}.safetensors" for n in names]


def test_a_model_on_disk_says_what_it_is(folder):
    with opened(folder) as store:
        after = close(store, send(store, load(store)[0], "a"))
    model = read_model(folder / "runs" / "r" / "models" / "round-000001.safetensors")
    assert (model.run, model.round, model.labels, model.fingerprint) == ("r", 1, ("x", "y"), "f")
    assert params_sha256(model.params) == after.model_sha256


def test_history_has_a_row_per_round(folder):
    with opened(folder) as store:
        state = close(store, send(store, send(store, load(store)[0], "a"), "b", examples=11))
        store.journal.refuse(2, "c", "not_finite", "bad")
        store.journal.refuse(2, "c", "not_finite", "bad again")
        store.abandon_round(after_abandon(state, COHORT), END)
        with History.open(folder, "r") as history:  # next to the writer
            first, second, third = history.rounds()
            silos = history.silos()
    assert (first.status, first.accepted, first.examples, first.received_bytes) == ("closed", 2, 16, 400)
    assert (first.seconds, first.sent_bytes, first.model_sha256) == (1.5, 77, state.model_sha256)
    assert first.evaluation == Evaluation(0.5, 6, 8)
    assert (second.status, second.refused, second.evaluation) == ("abandoned", 2, None)
    assert (third.status, third.round) == ("open", 3)
    assert [(row.silo, row.updates, row.refused, row.last_refusal) for row in silos] == [
        ("a", 1, 0, None),
        ("b", 1, 0, None),
        ("c", 0, 2, "not_finite"),
    ]


def test_only_models_of_closed_rounds_are_found(folder):
    with opened(folder, keep_models=1) as store:
        close(store, send(store, load(store)[0], "a"))
    with History.open(folder, "r") as history:
        assert history.model_file(None)[1] == 1
        with pytest.raises(DataError, match="that round made none"):
            history.model_file(2)
        with pytest.raises(DataError, match="not kept any more"):
            history.model_file(0)


def test_a_folder_without_state_says_how_to_begin(folder):
    with pytest.raises(DataError, match="holds no coordinator's state"):
        with History.open(folder, "r"):
            pass


def test_a_state_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        opened(tmp_path / "file" / "state")


def test_an_upload_overwrites_the_file_of_a_closed_round(tmp_path):
    old = tmp_path / "old"
    old.write_bytes(b"a longer one than the next")
    inode = old.stat().st_ino
    keep_spare(old, tmp_path)
    spool = Spool(tmp_path, 4)
    spool.feed(b"abcd")
    assert spool.finish() == sha256_bytes(b"abcd")
    kept = tmp_path / "kept"
    spool.move_to(kept)
    spool.discard()
    assert (kept.read_bytes(), kept.stat().st_ino) == (b"abcd", inode)
    assert list(tmp_path.iterdir()) == [kept]


def test_spare_files_are_reused_and_removed_with_the_run(folder):
    with opened(folder) as store:
        state, _ = load(store)
        inodes, spares = [], []
        while state.open is not None:
            number = state.open.number
            for silo in "ab":
                state = send(store, state, silo)
            inodes.append({path.stat().st_ino for path in folder.glob(f"runs/*/updates/{number:06d}/*")})
            state = close(store, state)
            spares.append(sorted(path.name for path in store.spool_folder.iterdir()))
    assert inodes[0] == inodes[1] == inodes[2]
    assert spares == [["spare.a.f32", "spare.b.f32"]] * 2 + [[]]


def test_a_spool_accepts_exactly_the_announced_bytes(tmp_path):
    spool = Spool(tmp_path, 4)
    spool.feed(b"abc")
    with pytest.raises(DataError, match="payload of 3 bytes, expected 4"):
        spool.finish(sha256_bytes(b"abc"))
    with pytest.raises(DataError, match="more than 4 bytes"):
        spool.feed(b"de")
    spool.feed(b"d")
    with pytest.raises(DataError) as refused:
        spool.finish(sha256_bytes(b"other"))
    assert refused.value.code == "payload_digest"
    spool.finish(sha256_bytes(b"abcd"))
    assert spool.content() == b"abcd"
    spool.discard()
    spool.discard()
    assert os.listdir(tmp_path) == []


def test_a_piece_after_the_discard_is_not_written(tmp_path):
    spool = Spool(tmp_path, 4)
    spool.discard()
    with pytest.raises(StorageError, match="discarded"):
        spool.feed(b"x")
    with pytest.raises(StorageError, match="discarded"):
        spool.move_to(tmp_path / "y")

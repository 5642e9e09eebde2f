"""A database that lacks rounds which have ended: its -wal file cut, exchanged or gone, or an older copy of it.

Each case copies the state folder as a crash leaves it, damages the copy, and starts on it.
"""

from __future__ import annotations

import json
import os
import shutil
import struct

import pytest
from flamest.base.errors import DataError, FlamestError
from flamest.base.files import sha256_bytes
from flamest.coordinator.rounds import (
    Cohort,
    RoundPolicy,
    Submission,
    UpdateSummary,
    after_abandon,
    after_close,
    on_update,
)
from flamest.coordinator.storage import last_round as last_round_module
from flamest.coordinator.storage.backup import back_up, restore
from flamest.coordinator.storage.database import DATABASE_FILE
from flamest.coordinator.storage.journal import RoundEnd, StoredUpdate
from flamest.coordinator.storage.last_round import LAST_ROUND_FILE, check_last_round
from flamest.coordinator.storage.run_store import RunStore
from flamest.coordinator.storage.spool import Spool
from flamest.coordinator.strategies.fedavg import fedavg
from flamest.fedproto.head import HeadSpec, initial_params, params_sha256
from flamest.fedproto.records import RunSettings
from flamest.fedproto.tensors import encode_params

SPEC = HeadSpec(inputs=3, outputs=2, hidden=(4,))
ROUNDS = 6
RUN = RunSettings("r", ("x", "y"), SPEC, rounds=9, min_silos=1, deadline_s=9.0, fingerprint="f", seed=4)
POLICY, COHORT = RoundPolicy(9, 1, 9.0), Cohort(frozenset("abc"), 3)
WAL = f"{DATABASE_FILE}-wal"
LOST = {"lost_rounds", "corrupt_state", "lost_run"}


def send(store, state, silo):
    content = encode_params(SPEC, initial_params(SPEC, 100 * state.open.number + ord(silo)))
    summary = UpdateSummary(silo, f"{state.open.number:031x}{silo}", 5, f"digest {silo}")
    state, _ = on_update(state, Submission(state.open.number, state.model_sha256, summary), None, 0.0)
    spool = Spool(store.spool_folder, len(content))
    spool.feed(content)
    spool.finish(sha256_bytes(content))
    store.accept(StoredUpdate(state.open.number, summary, sha256_bytes(content), len(content), None), spool)
    spool.discard()
    return state


def close(store, state):
    params = fedavg(SPEC, store.contributions(state.open.number))
    after = after_close(state, params_sha256(params), COHORT)
    store.close_round(after, params, RoundEnd(1.0, 0))
    store.tidy()
    return after


def a_round(store, state):
    return close(store, send(store, send(store, state, "a"), "b"))


@pytest.fixture(scope="module")
def crashed(tmp_path_factory):
    """A folder as kill -9 leaves it after some rounds, and by round the -wal file's size at its end."""
    live, folder = tmp_path_factory.mktemp("live") / "state", tmp_path_factory.mktemp("crashed") / "state"
    ends = {}
    with RunStore.open(live, RUN) as store:
        state, _ = store.load(POLICY, COHORT)
        ends[0] = (live / WAL).stat().st_size
        for number in range(1, ROUNDS + 1):
            state = a_round(store, state)
            ends[number] = (live / WAL).stat().st_size
        state = send(store, state, "a")
        shutil.copytree(live, folder)
    return folder, ends


@pytest.fixture
def state(crashed, tmp_path):
    shutil.copytree(crashed[0], tmp_path / "state")
    return tmp_path / "state"


def start(folder):
    """The last round that the next start knows, or the code of its refusal."""
    try:
        with RunStore.open(folder, RUN) as store:
            return store.load(POLICY, COHORT)[0].last_round
    except FlamestError as error:
        refused = error
    assert refused.exit_code == 65
    assert "restore" in (refused.fix or "")
    return refused.code


def cut(folder, size):
    os.truncate(folder / WAL, size)


def run_folder(folder):
    return folder / "runs" / "r"


def model(folder, number):
    return run_folder(folder) / "models" / f"round-{number:06d}.safetensors"


def test_an_undamaged_crash_resumes_at_its_last_round(state):
    assert start(state) == ROUNDS


def test_a_wal_file_cut_at_any_frame_is_said(crashed, tmp_path):
    """Cut at every frame's end, one byte before, and in the middle: the next start has all rounds or names the loss."""
    folder, ends = crashed
    page = struct.unpack(">I", (folder / WAL).read_bytes()[8:12])[0]
    frame, whole = page + 24, (folder / WAL).stat().st_size
    sizes = range(32, whole + 1, frame)
    assert len(sizes) > 20
    for number, end in enumerate(sizes):
        for size in {end, end - 1, max(0, end - frame // 2)} if number % 3 == 0 else {end}:
            copy = tmp_path / "copy"
            shutil.copytree(folder, copy)
            cut(copy, size)
            assert start(copy) == (ROUNDS if size >= ends[ROUNDS] else "lost_rounds") or (
                size < ends[0] and start(copy) in LOST
            ), (size, ends)
            shutil.rmtree(copy)


def test_after_a_refusal_the_whole_wal_file_can_be_put_back(state):
    whole = (state / WAL).read_bytes()
    cut(state, len(whole) // 2)
    assert start(state) == "lost_rounds"
    assert (state / WAL).exists()
    (state / WAL).write_bytes(whole)
    (state / f"{DATABASE_FILE}-shm").unlink(missing_ok=True)
    assert start(state) == ROUNDS


@pytest.mark.parametrize("damage", ["emptied", "deleted", "zeros", "bit"])
def test_a_damaged_wal_file_is_never_resumed_from(state, damage):
    wal = state / WAL
    if damage == "emptied":
        wal.write_bytes(b"")
    elif damage == "deleted":
        wal.unlink()
    elif damage == "zeros":
        wal.write_bytes(bytes(wal.stat().st_size))
    else:
        content = bytearray(wal.read_bytes())
        content[len(content) // 2] ^= 1
        wal.write_bytes(content)
    assert start(state) in LOST


def older_and_newer(tmp_path, first, second):
    """Copies of one run's folder after so many rounds, as a crash leaves it at each time."""
    live, copies = tmp_path / "live", []
    with RunStore.open(live, RUN) as store:
        state, _ = store.load(POLICY, COHORT)
        for number in range(1, second + 1):
            state = a_round(store, state)
            if number in (first, second):
                copies.append(shutil.copytree(live, tmp_path / f"after-{number}"))
    return copies


def test_a_wal_file_of_an_older_copy_is_said(tmp_path):
    older, newer = older_and_newer(tmp_path, 2, 5)
    shutil.copy(older / WAL, newer / WAL)
    assert start(newer) == "lost_rounds"


def test_an_older_wal_file_after_an_orderly_stop_is_said(tmp_path):
    older, newer = older_and_newer(tmp_path, 2, 5)
    assert start(newer) == 5  # ends in order: the database holds everything
    shutil.copy(older / WAL, newer / WAL)
    assert start(newer) in {5, *LOST}


@pytest.mark.parametrize("rounds", [1, 3])
def test_an_older_copy_of_the_database_is_said(tmp_path, rounds):
    older, newer = older_and_newer(tmp_path, 5 - rounds, 5)
    for folder in (older, newer):
        assert start(folder) in (5 - rounds, 5)
    shutil.copy(older / DATABASE_FILE, newer / DATABASE_FILE)
    assert start(newer) == "lost_rounds"


def test_an_older_database_with_an_older_note_is_said_by_the_models(tmp_path):
    older, newer = older_and_newer(tmp_path, 3, 5)
    for folder in (older, newer):
        start(folder)
    for name in (DATABASE_FILE, f"runs/r/{LAST_ROUND_FILE}"):
        shutil.copy(older / name, newer / name)
    assert start(newer) == "lost_rounds"


def test_lost_rounds_are_said_when_their_models_are_gone_too(state, crashed):
    cut(state, crashed[1][2])
    for number in range(3, ROUNDS + 1):
        model(state, number).unlink()
    assert start(state) == "lost_rounds"


@pytest.mark.parametrize("keep", [1, 2])
def test_lost_rounds_are_said_whatever_models_are_kept(tmp_path, keep):
    live, copy = tmp_path / "live", tmp_path / "copy"
    with RunStore.open(live, RUN, keep_models=keep) as store:
        state, _ = store.load(POLICY, COHORT)
        state = a_round(store, state)
        end = (live / WAL).stat().st_size
        for _ in range(3):
            state = a_round(store, state)
        shutil.copytree(live, copy)
    cut(copy, end)
    assert start(copy) == "lost_rounds"


@pytest.mark.parametrize(
    "content", [None, b"", b"\xff\xfe", b"[" * 4000, b"x" * 5000, b'{"run":"r","round":9223372036854775808}']
)
def test_a_missing_or_damaged_note_alone_stops_nothing(state, content):
    note = run_folder(state) / LAST_ROUND_FILE
    note.unlink()
    if content is not None:
        note.write_bytes(content)
    assert start(state) == ROUNDS
    assert json.loads(note.read_bytes())["round"] == ROUNDS


@pytest.mark.parametrize("content", [None, b"garbage"])
def test_without_its_note_one_newer_model_says_the_cut_wal_file(state, crashed, content):
    note = run_folder(state) / LAST_ROUND_FILE
    note.unlink()
    if content is not None:
        note.write_bytes(content)
    cut(state, crashed[1][ROUNDS - 1])
    assert start(state) == "lost_rounds"


def test_a_note_that_is_a_fifo_or_a_folder_blocks_nothing(state):
    note = run_folder(state) / LAST_ROUND_FILE
    note.unlink()
    os.mkfifo(note)
    assert start(state) == ROUNDS


def test_a_note_with_a_changed_number_is_damaged_not_believed(state):
    note = run_folder(state) / LAST_ROUND_FILE
    found = json.loads(note.read_bytes())
    note.write_text(json.dumps({**found, "round": 2**63 - 1}))
    assert start(state) == ROUNDS


def test_a_crash_between_model_and_commit_resumes(state, monkeypatch):
    """The model of the open round is on disk, its row is not: that is no lost round."""
    with RunStore.open(state, RUN) as store:
        live, _ = store.load(POLICY, COHORT)

        def crash(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(store.journal, "end_round", crash)
            with pytest.raises(KeyboardInterrupt):
                close(store, live)
    assert model(state, ROUNDS + 1).exists()
    with RunStore.open(state, RUN) as store:
        live, _ = store.load(POLICY, COHORT)
        assert (live.last_round, sorted(live.open.accepted)) == (ROUNDS, ["a"])
        assert close(store, live).last_round == ROUNDS + 1
    assert start(state) == ROUNDS + 1


def test_a_crash_between_commit_and_note_resumes(state, monkeypatch):
    with RunStore.open(state, RUN) as store:
        live, _ = store.load(POLICY, COHORT)
        before = (run_folder(state) / LAST_ROUND_FILE).read_bytes()
        close(store, live)
    (run_folder(state) / LAST_ROUND_FILE).write_bytes(before)
    assert start(state) == ROUNDS + 1


def test_an_abandoned_round_that_is_lost_is_said(state):
    end = None
    with RunStore.open(state, RUN) as store:
        live, _ = store.load(POLICY, COHORT)
        end = (state / WAL).stat().st_size
        live = after_abandon(live, COHORT)
        store.abandon_round(live, RoundEnd(1.0, 0))
        copy = shutil.copytree(state, state.with_name("copy"))
    cut(copy, end)
    assert start(copy) == "lost_rounds"


def test_rounds_given_up_for_a_damaged_model_are_no_lost_rounds(state):
    model(state, ROUNDS).write_bytes(b"damaged")
    assert start(state) == ROUNDS + 1  # the open round ended too
    assert start(state) == ROUNDS + 1


def test_two_runs_folders_mixed_are_said(state, tmp_path):
    other = tmp_path / "other"
    with RunStore.open(other, RUN) as store:
        live, _ = store.load(POLICY, COHORT)
        for _ in range(ROUNDS):
            live = close(store, send(store, live, "c"))
    shutil.rmtree(state / "runs")
    shutil.copytree(other / "runs", state / "runs")
    assert start(state) == "lost_rounds"
    assert not (state / "quarantine").exists()


def test_a_lost_start_of_a_run_is_said(tmp_path):
    live, copy = tmp_path / "live", tmp_path / "copy"
    with RunStore.open(live, RUN) as store:
        store.load(POLICY, COHORT)
        shutil.copytree(live, copy)
    os.truncate(copy / WAL, 0)
    assert start(copy) == "lost_run"


def test_a_refusal_changes_no_file_of_the_run(state, crashed):
    cut(state, crashed[1][3])

    def content():
        names = (path for path in state.rglob("*") if path.is_file() and not path.name.endswith("-shm"))
        return {path: path.read_bytes() for path in names}

    before = content()
    assert start(state) == "lost_rounds"
    assert {path: data for path, data in content().items() if path.name != "lock"} == {
        path: data for path, data in before.items() if path.name != "lock"
    }


def test_a_backup_of_lost_rounds_is_refused(state, crashed, tmp_path):
    cut(state, crashed[1][3])
    with pytest.raises(DataError) as refused:
        back_up(state, tmp_path / "copy")
    assert refused.value.code == "lost_rounds"


def test_a_restored_backup_resumes_at_its_own_round(tmp_path, monkeypatch):
    """An older backup over newer models: it knows its own rounds, and the newer ones are in the folder set aside."""
    live = tmp_path / "live"
    with RunStore.open(live, RUN) as store:
        state, _ = store.load(POLICY, COHORT)
        state = a_round(store, a_round(store, state))
        back_up(live, tmp_path / "copy")
        for _ in range(3):
            state = a_round(store, state)
    kept = restore(live, tmp_path / "copy")["kept"]
    assert start(live) == 2
    assert not model(live, 3).exists()
    assert (tmp_path / kept / "runs/r/models/round-000005.safetensors").exists()


def test_a_backup_copied_by_hand_resumes(tmp_path):
    live = tmp_path / "live"
    with RunStore.open(live, RUN) as store:
        state, _ = store.load(POLICY, COHORT)
        a_round(store, state)
        back_up(live, tmp_path / "copy")
    assert start(tmp_path / "copy") == 1


def test_a_backup_leaves_out_models_newer_than_its_rows(tmp_path, monkeypatch):
    from flamest.coordinator.storage import backup as backup_module

    live = tmp_path / "live"
    with RunStore.open(live, RUN) as store:
        state, _ = store.load(POLICY, COHORT)
        states = [a_round(store, state)]

        def copy_and_continue(*arguments):
            copied(*arguments)
            states.append(a_round(store, states[-1]))  # the server runs on while the files are copied

        copied = backup_module.copy_database
        monkeypatch.setattr(backup_module, "copy_database", copy_and_continue)
        back_up(live, tmp_path / "copy")
    restore(tmp_path / "again", tmp_path / "copy")
    assert start(tmp_path / "again") == len(states) - 1


def test_lost_receipts_of_the_open_round_are_said_and_asked_for_again(tmp_path, caplog):
    live, copy = tmp_path / "live", tmp_path / "copy"
    with RunStore.open(live, RUN) as store:
        state, _ = store.load(POLICY, COHORT)
        state = a_round(store, state)
        end = (live / WAL).stat().st_size
        for silo in "abc":
            state = send(store, state, silo)
        shutil.copytree(live, copy)
    cut(copy, end)
    assert start(copy) == 1
    (said,) = [record for record in caplog.records if record.message == "receipts_lost"]
    assert said.levelname == "ERROR"


def test_one_update_between_its_file_and_its_row_is_no_lost_receipt(state, caplog):
    updates = run_folder(state) / "updates" / f"{ROUNDS + 1:06d}"
    (updates / "b.f32").write_bytes(b"renamed, not committed")
    assert start(state) == ROUNDS
    assert not [record for record in caplog.records if record.message == "receipts_lost"]


def test_a_run_whose_open_round_is_missing_is_damaged_not_finished(state):
    with RunStore.open(state, RUN) as store:
        store.load(POLICY, COHORT)
        with store.journal.db:
            store.journal.db.execute("DELETE FROM updates WHERE round = ?", (ROUNDS + 1,))
            store.journal.db.execute("DELETE FROM rounds WHERE status = 'open'")
    assert start(state) == "corrupt_state"


def test_a_round_committed_on_a_full_disk_needs_no_note(state, monkeypatch, caplog):
    def full(*_, **__):
        from flamest.base.errors import StorageError

        raise StorageError("no space", code="disk_full")

    with RunStore.open(state, RUN) as store:
        live, _ = store.load(POLICY, COHORT)
        monkeypatch.setattr(last_round_module, "write_atomic", full)
        close(store, live)
    assert "last_round_not_written" in caplog.text
    monkeypatch.undo()
    assert start(state) == ROUNDS + 1


def test_the_check_reads_next_to_a_running_coordinator(tmp_path):
    with RunStore.open(tmp_path / "state", RUN) as store:
        state, _ = store.load(POLICY, COHORT)
        for _ in range(3):
            state = a_round(store, state)
            check_last_round(tmp_path / "state", "r")

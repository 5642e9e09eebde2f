"""Disks that are full, read-only or broken, and files that changed on them."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from flamest.base import files
from flamest.base.errors import DataError, StorageError
from flamest.base.files import sha256_bytes
from flamest.coordinator.admin.status import status_lines, status_of
from flamest.coordinator.rounds import Cohort, RoundPolicy, Submission, UpdateSummary, after_close, on_update
from flamest.coordinator.serving.health import HEALTHY, Health, create_health_file, read_health, write_health
from flamest.coordinator.storage import payloads as payloads_module
from flamest.coordinator.storage import spool as spool_module
from flamest.coordinator.storage.journal import RoundEnd, StoredUpdate
from flamest.coordinator.storage.models import ModelStore
from flamest.coordinator.storage.run_store import RunStore
from flamest.coordinator.storage.spool import Spool
from flamest.coordinator.strategies.fedavg import fedavg
from flamest.fedproto.head import HeadSpec, initial_params, params_sha256
from flamest.fedproto.records import RunSettings
from flamest.fedproto.tensors import encode_params

SPEC = HeadSpec(inputs=3, outputs=2, hidden=(4,))
RUN = RunSettings("r", ("x", "y"), SPEC, rounds=1, min_silos=1, deadline_s=9.0, fingerprint="f")
POLICY, COHORT = RoundPolicy(1, 1, 9.0), Cohort(frozenset("a"), 1)
PROGRAM = Path(__file__).with_name("full_disk.py")


def may_mount() -> bool:
    """Return True when this machine gives a process a mount namespace of its own."""
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "-Urm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def submit(store: RunStore, state):
    content = encode_params(SPEC, initial_params(SPEC, 9))
    report = UpdateSummary("a", "0a" * 16, 5, "d")
    after, _ = on_update(state, Submission(1, state.model_sha256, report), None, 0.0)
    spool = Spool(store.spool_folder, len(content))
    try:
        spool.feed(content)
        spool.finish(sha256_bytes(content))
        store.accept(StoredUpdate(1, report, sha256_bytes(content), 1, None), spool)
    finally:
        spool.discard()
    return after


def close(store: RunStore, state) -> str:
    params = fedavg(SPEC, store.contributions(1))
    store.close_round(after_close(state, params_sha256(params), COHORT), params, RoundEnd(1.0, 0))
    return params_sha256(params)


def attempt(work):
    """The StorageError that ``work`` raised, or None; its result, or None."""
    try:
        return None, work()
    except StorageError as error:
        return error, None


class Disk:
    """Counts what would touch the disk, and lets one call fail."""

    def __init__(self, monkeypatch, failing: int, number: int = errno.ENOSPC) -> None:
        self.calls, self._failing, self._errno = 0, failing, number
        fsync_directory = self._watched(files.fsync_directory)
        for module in (files, payloads_module):
            monkeypatch.setattr(module, "fsync_directory", fsync_directory)
        for name in ("fsync", "replace"):
            monkeypatch.setattr(os, name, self._watched(getattr(os, name)))
        for name in ("mkstemp",):
            monkeypatch.setattr(files.tempfile, name, self._watched(getattr(files.tempfile, name)))
        assert spool_module.tempfile is files.tempfile

    def _watched(self, work):
        def call(*arguments, **options):
            self.calls += 1
            if self.calls == self._failing:
                raise OSError(self._errno, os.strerror(self._errno))
            return work(*arguments, **options)

        return call


def test_a_full_disk_at_any_step_leaves_nothing_half_done(tmp_path, monkeypatch, caplog):
    """No space at each step of an update and of the round's end; then there is space again."""
    with monkeypatch.context() as patch, RunStore.open(tmp_path / "calm", RUN) as store:
        state, _ = store.load(POLICY, COHORT)
        disk = Disk(patch, failing=0)
        expected = close(store, submit(store, state))
        steps = disk.calls
    assert steps >= 9
    for failing in range(1, steps + 1):
        folder = tmp_path / str(failing)
        with RunStore.open(folder, RUN) as store:
            state, _ = store.load(POLICY, COHORT)
            before = {path for path in folder.rglob("*") if path.suffix != ".f32"}
            with monkeypatch.context() as patch:
                Disk(patch, failing)
                refused, done = attempt(lambda store=store, state=state: close(store, submit(store, state)))
            if refused is None:  # the round is committed; only the note of it could not be written
                assert done == expected
                assert "last_round_not_written" in caplog.text
                continue
            assert (refused.code, refused.exit_code) == ("disk_full", 74), failing
            assert not [path for path in set(folder.rglob("*")) - before if path.name.endswith(".tmp")]
            if store.accepted_update(1, "a") is None:
                state = submit(store, state)
            else:
                state, _ = on_update(state, Submission(1, state.model_sha256, store.accepted_update(1, "a")), None, 0.0)
            assert close(store, state) == expected


@pytest.mark.skipif(not may_mount(), reason="this machine lets no process mount a file system of its own")
def test_on_a_really_full_file_system_the_run_stops_and_resumes(tmp_path):
    """A real file system of 8 MB."""
    command = ["unshare", "-Urm", sys.executable, str(PROGRAM), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "update": "disk_full",
        "probe": "disk_full",
        "health": "disk_full",
        "probe after": "nothing",
        "close": "disk_full",
        "health after": "",
        "finished": True,
        "same after a restart": True,
        "left": [],
        "size of health": 1024,
    }


def test_health_is_written_in_place_and_read_back(tmp_path):
    assert read_health(tmp_path) == HEALTHY
    create_health_file(tmp_path)
    inode = (tmp_path / "health").stat().st_ino
    write_health(tmp_path, StorageError("no room " * 1000, code="disk_full"))
    health = read_health(tmp_path)
    assert (health.degraded, bool(health.since), len(health.detail) < 200) == ("disk_full", True, True)
    write_health(tmp_path, None)
    assert read_health(tmp_path) == Health()
    assert (tmp_path / "health").stat().st_ino == inode
    write_health(tmp_path / "nowhere", None)


def test_a_full_disk_shows_in_status_while_it_lasts(make_federation, monkeypatch):
    """The server stays up, says DEGRADED disk_full, and recovers without a restart."""
    from flamest.coordinator.serving import server
    from flamest.fedproto.records import Update

    monkeypatch.setattr(server, "DISK_RETRY_S", 0.05)
    federation = make_federation("a", rounds=1)
    federation.start()
    full = True
    whole = RunStore.accept, RunStore.probe

    def sometimes(which):
        def call(*arguments):
            if full:
                raise StorageError("no space left", code="disk_full")
            return whole[which](*arguments)

        return call

    monkeypatch.setattr(RunStore, "accept", sometimes(0))
    monkeypatch.setattr(RunStore, "probe", sometimes(1))
    with federation.client("a", give_up_after_s=60.0) as client:
        run = client.join()
        model = client.fetch(run, client.wait(run, 0, 5))

        def degraded() -> bool:
            now = status_of(federation.settings())
            return now["degraded"] == "disk_full" and "DEGRADED disk_full" in "\n".join(status_lines(now))

        sending = threading.Thread(
            target=client.submit, args=(run, Update(1, model.sha256, "aa" * 16, 5, model.params)), daemon=True
        )
        sending.start()
        deadline = 600
        while not degraded() and (deadline := deadline - 1):
            threading.Event().wait(0.05)
        assert degraded()
        full = False
        sending.join(60)
        assert not sending.is_alive()
    with federation.client("a") as client:
        client.wait(run, 1, 20)
    deadline = 600
    while status_of(federation.settings())["degraded"] and (deadline := deadline - 1):
        threading.Event().wait(0.05)
    assert status_of(federation.settings())["degraded"] is None


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("step", ["mkdir", "open"])
def test_an_unusable_state_folder_is_named_in_one_line(tmp_path, monkeypatch, number, step):
    """Exit code 74."""
    folder, failing = tmp_path / "state", {"mkdir": Path, "open": os}[step]
    whole = getattr(failing, step)

    def fail(path, *arguments, **options):
        if "state" in str(path):
            raise OSError(number, os.strerror(number))
        return whole(path, *arguments, **options)

    monkeypatch.setattr(failing, step, fail)
    with pytest.raises(StorageError) as refused:
        RunStore.open(folder, RUN)
    assert (refused.value.code, refused.value.exit_code) == ("storage", 74)
    assert str(folder) in refused.value.message
    assert "\n" not in refused.value.message


def damaged_files(whole: bytes, flips: int, cuts: int):
    """The file with one bit turned, or cut short."""
    chance = random.Random(6)
    for place in chance.sample(range(8 * len(whole)), flips):
        content = bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        yield bytes(content)
    for length in chance.sample(range(len(whole)), cuts):
        yield whole[:length]


def test_every_flipped_bit_and_truncation_of_a_model_is_found(tmp_path):
    """200 flips and 100 cuts of one model file, all found."""
    shelf = ModelStore(tmp_path, RUN, keep=0)
    params = initial_params(SPEC, 1)
    shelf.write(3, params)
    path, expected = shelf.path(3), params_sha256(params)
    whole, found = path.read_bytes(), 0
    for content in damaged_files(whole, 200, 100):
        path.write_bytes(content)
        try:
            assert params_sha256(shelf.read(3, expected)) == expected
        except DataError as error:
            found += error.code == "corrupt_model"
    assert found == 300
    path.write_bytes(whole)
    assert params_sha256(shelf.read(3, expected)) == expected

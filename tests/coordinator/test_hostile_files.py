"""Files of the coordinator that are not what they should be: each is a named end with its exit code, soon."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time

import msgspec
import pytest
from flamest.base.errors import DataError, FlamestError, IdentityError, StorageError
from flamest.base.files import sha256_bytes
from flamest.coordinator.admin.authority import AllowList, Enrolment, Silos, read_silos, write_silos
from flamest.coordinator.admin.history import served_address
from flamest.coordinator.cli import main
from flamest.coordinator.serving.health import HEALTHY, read_health, write_health
from flamest.coordinator.settings import load_coordinator_settings
from flamest.coordinator.storage.backup import LISTING, back_up, check_backup, restore
from flamest.coordinator.storage.run_store import RunStore
from flamest.fedproto.tensor_file import TensorFile, read_tensors, write_tensors
from typer.testing import CliRunner

SECONDS = 20
HUGE = 200 << 30  # bytes of a sparse file


class Blocked(BaseException):
    """Not an OSError as TimeoutError is, which the code under test would name."""


@pytest.fixture(autouse=True)
def time_limit():
    """A read that blocks, as of a FIFO, ends the test."""

    def blocked(*_):
        raise Blocked("a file was read for too long")

    before = signal.signal(signal.SIGALRM, blocked)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def put(path, kind):
    """Replace ``path`` by something else."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "huge":
        path.touch()
        os.truncate(path, HUGE)
    elif isinstance(kind, bytes):
        path.write_bytes(kind)


KINDS = ["fifo", "folder", "device", "loop", "huge", b"\xff\xfe\x00\x01", b"[" * 100_000, b'{"a":' * 50_000, b""]


def names(kinds=KINDS):
    return [kind if isinstance(kind, str) else repr(kind[:5]) for kind in kinds]


def typed(*words):
    done = CliRunner().invoke(main.app, [*map(str, words), "--json"])
    assert not isinstance(done.exception, Blocked)
    return done.exit_code, done.stdout


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A federation whose server has run and stopped."""
    from flamest.tests.conftest import Federation

    federation = Federation(tmp_path_factory.mktemp("begun"), ("a", "b"))
    federation.start()
    federation.stop()
    return federation


@pytest.fixture
def folder(begun, tmp_path):
    shutil.copytree(begun.folder, tmp_path / "federation")
    return tmp_path / "federation"


FILES = {
    "coordinator.toml": {78},
    "silos.json": {65, 74},
    "ca.pem": {65, 74, 77, 78},
    "server.pem": {65, 74, 77, 78},
    "state/coordinator.sqlite": {65, 74},
}


@pytest.mark.parametrize("kind", KINDS, ids=names())
@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_kind_ends_commands_by_name(folder, name, kind):
    put(folder / name, kind)
    started = time.monotonic()
    code, out = typed("doctor", "--config", folder / "coordinator.toml")
    assert code in (65, 78), out
    assert "error" in json.loads(out.splitlines()[-1])
    with pytest.raises(FlamestError) as refused:
        _use(folder)
    assert refused.value.exit_code in FILES[name], (refused.value.code, refused.value.message)
    assert time.monotonic() - started < SECONDS


def _use(folder):
    """Read all that a start of the server reads, up to its port."""
    from flamest.fedproto.tls import check_files

    settings = load_coordinator_settings(folder / "coordinator.toml")
    check_files(settings.server.files)
    AllowList(settings.server.silos)
    with RunStore.open(settings.server.state, settings.run_settings()) as store:
        from flamest.coordinator.rounds import Cohort, RoundPolicy

        store.load(RoundPolicy(3, 1, 60.0), Cohort(frozenset("ab"), 2))
    raise FlamestError("nothing was refused")


@pytest.mark.parametrize("kind", KINDS, ids=names())
def test_a_model_of_another_kind_is_a_damaged_one(folder, kind):
    put(folder / "state/runs/run-1/models/round-000000.safetensors", kind)
    with pytest.raises(DataError) as refused:
        _use(folder)
    assert (refused.value.code, refused.value.exit_code) == ("corrupt_model", 65)


@pytest.mark.parametrize("kind", KINDS, ids=names())
def test_state_files_that_only_inform_stop_nothing(folder, kind):
    state = folder / "state"
    put(state / "health", kind)
    put(state / "address", kind)
    write_health(state, None)
    assert read_health(state) == HEALTHY
    with RunStore.open(state, load_coordinator_settings(folder / "coordinator.toml").run_settings()):
        assert served_address(state) is None or kind == b""


def test_a_lock_that_is_a_fifo_blocks_no_command(folder):
    put(folder / "state/lock", "fifo")
    assert typed("status", "--config", folder / "coordinator.toml")[0] == 69  # nothing runs


def test_folders_among_uploads_and_payloads_are_removed(folder):
    run = folder / "state/runs/run-1"
    (run / "spool/upload.x.tmp/deep").mkdir(parents=True)
    (run / "updates/000001/a.f32/deep").mkdir(parents=True)
    put(run / "updates/000009", "fifo")
    with pytest.raises(FlamestError, match="nothing was refused"):
        _use(folder)
    assert not list((run / "spool").iterdir())


ENTRY = {"certificate_sha256": "0" * 64, "added": "2026-01-01T00:00:00Z", "expires": "2027-01-01T00:00:00Z"}


@pytest.mark.parametrize(
    "silos",
    [
        {"a": {**ENTRY, "expires": "soon"}},
        {"a": {**ENTRY, "expires": "2027-01-01"}},  # without an offset
        {"a": {**ENTRY, "expires": "2027-01-01T00:00:00+99:00"}},
        {"a": {**ENTRY, "earlier": {"0" * 64: "\ud800".encode("utf-8", "replace").decode()}}},
        {"a": {**ENTRY, "revoked": ""}},
        {"../../x": ENTRY},
        {"a\n": ENTRY},
        {"a": {**ENTRY, "more": 1}},
        {"a": {**ENTRY, "added": 2**63}},
        {"a": None},
        [],
    ],
)
def test_an_allow_list_is_refused_as_a_whole(tmp_path, silos):
    path = tmp_path / "silos.json"
    path.write_text(json.dumps({"silos": silos}))
    with pytest.raises(DataError) as refused:
        read_silos(path)
    assert (refused.value.code, refused.value.exit_code) == ("bad_allow_list", 65)


@pytest.mark.parametrize("place", ["a", "0" * 64, "2026-01-01T00:00:00Z"])
def test_an_allow_list_with_invalid_utf8_is_refused_by_name(tmp_path, place):
    path = tmp_path / "silos.json"
    data = json.dumps({"silos": {"a": ENTRY}}).encode()
    path.write_bytes(data.replace(f'"{place}"'.encode(), b'"' + place.encode()[:-1] + b'\xff"', 1))
    with pytest.raises(DataError) as refused:
        read_silos(path)
    assert (refused.value.code, refused.value.exit_code) == ("bad_allow_list", 65)


@pytest.mark.parametrize("kind", KINDS, ids=names())
def test_a_running_server_serves_nobody_on_a_bad_list_and_recovers(tmp_path, kind):
    """No last good list is kept: a silo that is being revoked might be served on it."""
    path = tmp_path / "silos.json"
    good = Silos({"a": Enrolment("0" * 64, added="2026-01-01T00:00:00Z", expires="2027-01-01T00:00:00Z")})
    write_silos(path, good)
    allow_list = AllowList(path)
    put(path, kind)
    for _ in range(2):
        with pytest.raises(StorageError):
            allow_list.check("a", "0" * 64)
        with pytest.raises(StorageError):
            allow_list.names()
    put(path, msgspec.json.encode(good))
    allow_list.check("a", "0" * 64)
    with pytest.raises(IdentityError):
        allow_list.check("b", "0" * 64)


@pytest.mark.parametrize(
    "line",
    [
        "rounds = 9223372036854775808",
        "rounds = -9223372036854775808",
        "rounds = 1e400",
        "seed = 9223372036854775808",
        "hidden = [9223372036854775807, 9223372036854775807]",
        "hidden = [4294967296, 4294967296]",
        "inputs = 9223372036854775807",
        "deadline_s = nan",
        "deadline_s = inf",
        "min_silos = 9223372036854775808",
        "min_silos = true",
    ],
)
def test_numbers_beyond_every_bound_are_settings_errors(folder, line):
    config, key = folder / "coordinator.toml", line.split(" = ")[0]
    text = "\n".join(line if one.startswith(f"{key} =") else one for one in config.read_text().splitlines())
    config.write_text(text)
    with pytest.raises(FlamestError) as refused:
        load_coordinator_settings(config).run_settings()
    assert refused.value.exit_code == 78


@pytest.mark.parametrize(
    "line", ["norm_times = nan", "examples_times = nan", "examples_times = inf", "examples_times = 0.5"]
)
def test_checks_that_check_nothing_are_settings_errors(folder, line):
    config, key = folder / "coordinator.toml", line.split(" = ")[0]
    config.write_text("\n".join(line if one.startswith(f"{key} =") else one for one in config.read_text().splitlines()))
    with pytest.raises(FlamestError) as refused:
        load_coordinator_settings(config)
    assert refused.value.exit_code == 78


@pytest.fixture
def backup(folder, tmp_path):
    back_up(folder / "state", tmp_path / "backup")
    return tmp_path / "backup"


def relist(backup, change):
    listing = json.loads((backup / LISTING).read_bytes())
    change(listing["files"])
    (backup / LISTING).write_text(json.dumps(listing))


@pytest.mark.parametrize(
    "name",
    ["../outside", "/etc/hostname", "runs/../../outside", "runs//x", ".", "", "runs/.hidden", "a\x00b", "x" * 300],
)
def test_a_backup_with_names_outside_a_state_folder_is_refused(backup, tmp_path, name):
    (tmp_path / "outside").write_bytes(b"not the backup's")
    relist(backup, lambda files: files.update({name: sha256_bytes(b"not the backup's")}))
    with pytest.raises(DataError) as refused:
        restore(tmp_path / "state", backup)
    assert (refused.value.code, refused.value.exit_code) == ("bad_backup", 65)
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("where", ["runs", "runs/run-1/models", "runs/run-1/models/round-000000.safetensors"])
def test_a_backup_with_a_link_is_refused(backup, tmp_path, where):
    moved = shutil.move(backup / where, tmp_path / "moved")
    (backup / where).symlink_to(moved)
    with pytest.raises(DataError) as refused:
        check_backup(backup)
    assert refused.value.code == "bad_backup"


@pytest.mark.parametrize("kind", KINDS, ids=names())
@pytest.mark.parametrize("name", [LISTING, "coordinator.sqlite"])
def test_a_backup_with_a_file_of_another_kind_is_refused(backup, name, kind):
    put(backup / name, kind)
    with pytest.raises(DataError) as refused:
        check_backup(backup)
    assert refused.value.code == "bad_backup"


def test_a_restore_that_fails_leaves_the_old_state(folder, backup, monkeypatch):
    from flamest.coordinator.storage import backup as backup_module

    before = sorted(path.relative_to(folder) for path in (folder / "state").rglob("*"))

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(backup_module, "_copy_file", fail)
    with pytest.raises(StorageError):
        restore(folder / "state", backup)
    assert sorted(path.relative_to(folder) for path in (folder / "state").rglob("*")) == before


@pytest.mark.parametrize("shape", [[2**63], [-1], [2**31, 2**31, 4], [1] * 1000])
def test_strategy_state_of_an_absurd_shape_is_damaged(tmp_path, shape):
    import numpy as np

    path = tmp_path / "x.arrays"
    write_tensors(path, TensorFile({}, {"a": np.zeros(3)}))
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["arrays"][0][2] = shape
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    with pytest.raises(DataError):
        read_tensors(path)


@pytest.mark.parametrize("kind", KINDS, ids=names())
def test_strategy_state_of_another_kind_is_damaged(tmp_path, kind):
    put(tmp_path / "x.arrays", kind)
    with pytest.raises((DataError, StorageError)):
        read_tensors(tmp_path / "x.arrays")

"""Problems that `doctor` finds, and the fix that it names."""

import json
import time

import msgspec
import pytest
from flamest.base.errors import DataError, LockedError
from flamest.coordinator.admin import authority
from flamest.coordinator.admin.doctor import examine
from flamest.coordinator.cli import main
from flamest.coordinator.serving.attendance import Attendance, write_attendance
from flamest.coordinator.storage.backup import back_up, check_backup, restore
from flamest.coordinator.storage.database import DATABASE_FILE
from flamest.fedproto.records import Update
from typer.testing import CliRunner


@pytest.fixture
def federation(make_federation):
    """One closed round of two, and an update in the second; the server has stopped."""
    federation = make_federation("a", "b", rounds=3, min_silos=2, fingerprint='"imported:mine:6"')
    federation.start()
    for name, answered in (("a", 0), ("b", 0), ("a", 1)):
        with federation.client(name) as client:
            run = client.join()
            status = client.wait(run, answered, 5)
            model = client.fetch(run, status)
            client.submit(run, Update(status.round, model.sha256, f"{status.round:031x}{name}", 5, model.params))
    federation.stop()
    return federation


def found(federation, state: str) -> dict[str, str]:
    return {one.check: f"{one.detail} {one.fix}" for one in examine(federation.config) if one.state == state}


def typed(*words) -> tuple[int, dict]:
    result = CliRunner().invoke(main.app, [*map(str, words), "--json"])
    return result.exit_code, json.loads(result.stdout.splitlines()[-1])


def test_a_healthy_coordinator_has_no_findings_and_nothing_changes(federation):
    before = {path: path.read_bytes() for path in federation.folder.rglob("*") if path.is_file()}
    assert found(federation, "wrong") == {}
    assert set(found(federation, "warn")) <= {"server", "state"}  # it does not run; a test machine's disk may be full
    code, answer = typed("doctor", "--config", federation.config)
    assert (code, answer["healthy"]) == (0, True)
    left = {path for path in federation.folder.rglob("*") if path.is_file()} - before.keys()
    assert {path: path.read_bytes() for path in before} == before
    assert {path.name for path in left} <= {
        f"{DATABASE_FILE}-wal",
        f"{DATABASE_FILE}-shm",
    }  # SQLite's own, for whoever reads


def test_certificates_that_end_soon_are_named_with_the_renew_command(federation):
    path = federation.folder / "silos.json"
    silos = authority.read_silos(path).silos
    a, b = silos["a"], silos["b"]
    soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 29 * 86400))
    ended = msgspec.structs.replace(b, expires="2026-01-02T00:00:00Z")
    left = {
        "a": msgspec.structs.replace(a, expires=soon),
        "b": ended,
        "c": msgspec.structs.replace(ended, revoked=soon),
    }
    authority.write_silos(path, authority.Silos(left))
    warnings = [one for one in examine(federation.config) if (one.check, one.state) == ("silos", "warn")]
    assert [one.detail for one in warnings] == [
        f"silo 'a': its certificate ends on {soon[:10]}",
        "silo 'b': its certificate ended on 2026-01-02",
    ]
    assert f"flamest-coordinator silo renew a --dir {federation.folder};" in warnings[0].fix
    for name in ("a", "b"):
        authority.renew_enrolment(federation.folder, name, None)
    assert "silos" not in found(federation, "warn")


def test_a_damaged_database_is_named_with_the_restore_command(federation):
    """Exit code 65."""
    path = federation.state / DATABASE_FILE
    content = bytearray(path.read_bytes())
    content[100:4000] = b"\xff" * 3900
    path.write_bytes(content)
    assert f"flamest-coordinator restore --config {federation.config} --from" in found(federation, "wrong")["database"]
    code, answer = typed("doctor", "--config", federation.config)
    assert (code, answer["error"]["code"]) == (65, "unhealthy")
    assert "flamest-coordinator restore" in answer["error"]["fix"]


def test_a_damaged_model_a_readable_key_and_bad_settings_are_found(federation):
    model = federation.state / "runs" / "run-1" / "models" / "round-000001.safetensors"
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.write_bytes(content)
    (federation.folder / "server-key.pem").chmod(0o644)
    wrong = found(federation, "wrong")
    assert set(wrong) == {"model", "key"}
    assert "chmod 600" in wrong["key"]
    federation.config.write_text("[server]\n")
    assert set(found(federation, "wrong")) == {"settings"}


def test_an_update_overwritten_during_a_backup_is_copied_again(federation, tmp_path, monkeypatch):
    (path,) = federation.state.glob("runs/*/updates/*/a.f32")
    copied = []

    def copy_file(source, target):
        target.write_bytes(source.read_bytes())
        copied.append(source)
        if source == path and copied.count(path) == 1:  # the round ended, and the next upload took its file
            with target.open("r+b") as file:
                file.write(b"other")

    monkeypatch.setattr("flamest.coordinator.storage.backup._copy_file", copy_file)
    back_up(federation.state, tmp_path / "copy")
    assert copied.count(path) == 2
    assert (tmp_path / "copy" / path.relative_to(federation.state)).read_bytes() == path.read_bytes()


def test_a_run_resumes_from_a_backup_of_a_running_server(federation, tmp_path):
    federation.start()
    copy = tmp_path / "copy"
    code, made = typed("backup", "--config", federation.config, "--to", copy)
    assert (code, made["files"]) == (0, len(check_backup(copy)))
    with pytest.raises(LockedError):
        restore(federation.state, copy)
    before = federation.rounds()
    federation.stop()
    (federation.state / DATABASE_FILE).write_bytes(b"nothing of it is left")
    code, done = typed("restore", "--config", federation.config, "--from", copy)
    assert code == 0
    assert (
        tmp_path / "f0" / "federation" / "state.before-restore-1" / DATABASE_FILE
    ).read_bytes() == b"nothing of it is left"
    assert done["kept"].endswith("state.before-restore-1")
    assert found(federation, "wrong") == {}
    federation.start()
    assert [(row["status"], row["accepted"]) for row in federation.rounds()] == [("closed", 2), ("open", 1)]
    assert [row["model_sha256"] for row in federation.rounds()] == [row["model_sha256"] for row in before]
    with federation.client("b") as client:  # the open round closes with the update that the backup held
        run = client.join()
        status = client.wait(run, 1, 5)
        client.submit(run, Update(2, status.model_sha256, "0c" * 16, 5, client.fetch(run, status).params))
        assert client.wait(run, 2, 5).round == 3


def test_a_changed_backup_is_refused_and_the_state_stays(federation, tmp_path):
    copy = tmp_path / "copy"
    back_up(federation.state, copy)
    damaged = copy / "runs" / "run-1" / "models" / "round-000001.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    before = (federation.state / DATABASE_FILE).read_bytes()
    with pytest.raises(DataError, match="is not what was written") as refused:
        restore(federation.state, copy)
    assert refused.value.code == "bad_backup"
    assert (federation.state / DATABASE_FILE).read_bytes() == before
    with pytest.raises(DataError, match="cannot be used as a backup"):
        check_backup(federation.state)
    code, answer = typed("restore", "--config", federation.config, "--from", copy, "--verify")
    assert (code, answer["error"]["code"]) == (65, "bad_backup")


@pytest.mark.parametrize("left", ["older", "none"])
def test_doctor_names_the_restore_for_lost_rounds(federation, left):
    database = federation.state / DATABASE_FILE
    older = database.read_bytes()
    federation.start()
    with federation.client("b") as client:
        run = client.join()
        model = client.fetch(run, status := client.wait(run, 1, 5))
        client.submit(run, Update(status.round, model.sha256, "b" * 32, 5, model.params))
        client.wait(run, 2, 5)
    federation.stop()
    database.unlink()
    if left == "older":
        database.write_bytes(older)
    assert "flamest-coordinator restore --config" in found(federation, "wrong")["database"]


def test_doctor_names_a_round_that_all_silos_declined(federation):
    assert "rounds" not in found(federation, "warn")
    attendance = Attendance("run-1", ("a", "b"), {"a": 3, "b": 2})
    write_attendance(federation.state, attendance)
    assert "rounds" not in found(federation, "warn"), "b has yet to decline round 3"
    write_attendance(federation.state, msgspec.structs.replace(attendance, declined={"a": 3, "b": 3}))
    assert "all 2 silos declined round 3" in found(federation, "warn")["rounds"]
    assert "run --check-config --bundle" in found(federation, "warn")["rounds"]


def test_doctor_names_a_fingerprint_that_no_silo_has(federation):
    federation.config.write_text(federation.config.read_text().replace("imported:mine:6", "imported:mine:7"))
    assert "7-d" in found(federation, "wrong")["settings"]


def test_doctor_says_once_where_the_settings_should_be(tmp_path):
    result = CliRunner().invoke(main.app, ["doctor", "--dir", str(tmp_path / "new")])
    assert result.exit_code == 65
    assert result.output.count("fix:") == 1
    assert result.output.count("flamest-coordinator init") == 1
    assert "flamest-agent" not in result.output
    assert "--dir" in result.output

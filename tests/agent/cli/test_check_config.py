"""``flamest-agent run --check-config``: the settings, and where they are weaker than the defaults."""

import json
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
from flamest.agent.cli.main import app
from flamest.agent.egress.ledger import read_ledger
from flamest.agent.extraction.store import FeatureRow, FeatureStore
from flamest.agent.settings import PLACEHOLDER_HOST, TEMPLATE
from flamest.agent.status import LOCK_FILE
from flamest.base.files import FileLock, sha256_bytes
from flamest.runtime.clip_records import Clip
from typer.testing import CliRunner


@pytest.fixture
def check_policy(tmp_path, monkeypatch):
    monkeypatch.setattr("flamest.agent.settings.check_files", lambda files: None)
    for name in ("features.sqlite", "c", "s", "k"):
        (tmp_path / name).touch()

    def check(policy: str, *options: str) -> str:
        file = tmp_path / "agent.toml"
        connection = '[coordinator]\naddress = "h:1"\nca = "c"\ncertificate = "s"\nkey = "k"\n'
        file.write_text(f'state = "state"\nstore = "features.sqlite"\n{connection}[policy]\n{policy}\n')
        done = CliRunner().invoke(app, ["run", "--config", str(file), "--check-config", "--offline", *options])
        assert done.exit_code == 0
        return done.stdout

    return check


def test_check_config_names_every_weakening_of_the_policy(check_policy):
    weak = "evaluation_noise = 0\nmin_samples = 4\nmin_samples_override = true"
    assert check_policy(weak).count("OVERRIDE: ") == 2
    assert len(json.loads(check_policy(weak, "--json"))["overrides"]) == 2
    assert "OVERRIDE" not in check_policy("hold_out = 0.3")


def row_of(label: str) -> FeatureRow:
    clip = Clip(Path(f"{label}.mp4"), sha256_bytes(label.encode()), label, label)
    return FeatureRow(clip, np.zeros(6, np.float32), 0, "fingerprint", "fp32")  # as the federation's runs pin it


def settings_of(federation, silo: str, address: str, *, bundle: Path | None = None, labels=("run", "walk")) -> Path:
    """Write an agent.toml as keygen does, filled in, and a store with a clip of each label."""
    home = federation.silo_folder / silo
    with FeatureStore.open(home / "features.sqlite") as store:
        store.add_rows((label, row_of(label)) for label in labels)
    text = TEMPLATE.format(key=f"{silo}.key").replace(f"{PLACEHOLDER_HOST}:7443", address)
    for name in ("ca", "silo"):
        (home / f"{name}.pem").write_bytes((federation.folder / "silos" / silo / f"{name}.pem").read_bytes())
    if bundle is not None:
        text = text.replace('# bundle = "bundle" ', f'bundle = "{bundle}" ')
    (home / "agent.toml").write_text(text)
    return home


def checked(home: Path, *options: str) -> tuple[int, dict]:
    done = CliRunner().invoke(app, ["run", "--dir", str(home), "--check-config", "--json", *options])
    return done.exit_code, json.loads(done.stdout.splitlines()[-1])


def test_check_config_reaches_the_coordinator_and_enters_the_certificate(make_federation):
    federation = make_federation("a")
    federation.start()
    home = settings_of(federation, "a", federation.address)
    code, answer = checked(home)
    assert (code, answer["ok"], answer["dial"], answer["run"]) == (0, True, "reached", "run-1")
    assert [entry.what for entry in read_ledger(home / "state").entries] == ["enrolment"]
    assert checked(home)[0] == 0
    assert len(read_ledger(home / "state").entries) == 1, "the same certificate is entered once"


def test_next_to_a_daemon_no_unentered_certificate_is_shown(make_federation):
    federation = make_federation("a")
    federation.start()
    home = settings_of(federation, "a", federation.address)
    (home / "state").mkdir()
    with FileLock.take(home / "state" / LOCK_FILE, owner="flamest-agent"):
        code, answer = checked(home)
        assert (code, answer["dial"], answer["error"]["code"]) == (75, "failed", "locked")
    assert checked(home)[0] == 0
    with FileLock.take(home / "state" / LOCK_FILE, owner="flamest-agent"):
        assert checked(home)[0] == 0, "it was entered before"


def test_check_config_without_a_coordinator_says_that_the_settings_are_good(make_federation):
    federation = make_federation("a")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        home = settings_of(federation, "a", f"127.0.0.1:{free.getsockname()[1]}")
        code, answer = checked(home)
    assert (code, answer["ok"], answer["dial"]) == (69, True, "unreachable")
    assert answer["error"]["fix"]
    assert checked(home, "--offline")[0] == 0


def test_check_config_of_a_revoked_silo_ends_with_77(make_federation):
    from flamest.coordinator.admin.authority import revoke_silo

    federation = make_federation("a", "b")
    federation.start()
    home = settings_of(federation, "a", federation.address)
    revoke_silo(federation.folder, "a")
    code, answer = checked(home)
    assert (code, answer["dial"], answer["error"]["code"]) == (77, "refused", "revoked")


def test_check_config_compares_the_bundle_with_the_run(make_federation, toy_bundle):
    from flamest.runtime.bundle.manifest_reading import read_manifest

    manifest = read_manifest(toy_bundle)
    federation = make_federation("a", inputs=manifest.width + 1, fingerprint=f'"{manifest.fingerprint}"')
    federation.start()
    home = settings_of(federation, "a", federation.address, bundle=toy_bundle)
    code, answer = checked(home)
    assert (code, answer["error"]["code"]) == (65, "feature_width")
    assert f"gives {manifest.width}-d embeddings, the run expects {manifest.width + 1}-d" in answer["error"]["message"]
    assert f"inputs = {manifest.width}" in answer["error"]["fix"]


def test_check_config_compares_the_store_with_the_run(make_federation):
    federation = make_federation("a", inputs=7)
    federation.start()
    code, answer = checked(settings_of(federation, "a", federation.address))
    assert (code, answer["error"]["code"]) == (65, "feature_width")
    assert "the store's embeddings are 6-d, the run expects 7-d" in answer["error"]["message"]


def test_check_config_names_labels_that_the_run_does_not_know(make_federation):
    federation = make_federation("a", "b")
    federation.start()
    code, answer = checked(settings_of(federation, "a", federation.address, labels=("run", "Walk")))
    assert (code, answer["dial"]) == (0, "reached")
    assert answer["notes"] == [
        "labels that are no class of the run, whose clips are not used: Walk",
        '\'Walk\' may be the run\'s walk: if so, under [labels.alias] in agent.toml: "Walk" = "walk"',
    ]
    code, answer = checked(settings_of(federation, "b", federation.address, labels=("Run", "Walk")))
    assert (code, answer["ok"]) == (65, False)
    assert "none of this silo's labels is a class of the run: Run, Walk" in answer["error"]["message"]


def test_check_config_refuses_the_templates_address(make_federation):
    federation = make_federation("a")
    home = settings_of(federation, "a", f"{PLACEHOLDER_HOST}:7443")
    code, answer = checked(home)
    assert (code, answer["error"]["code"]) == (78, "settings")
    assert "as keygen wrote it" in answer["error"]["message"]
    run = CliRunner().invoke(app, ["run", "--dir", str(home)])
    assert run.exit_code == 78, "the daemon does not wait for it either"


@pytest.mark.parametrize("options", [["--check-config"], []], ids=["check", "run"])
@pytest.mark.parametrize("name", ["silo.pem", "ca.pem"])
def test_a_silo_without_certificates_learns_how_it_gets_them(make_federation, name, options):
    home = settings_of(make_federation("a"), "a", "h:1")
    (home / name).unlink()
    done = CliRunner().invoke(app, ["run", "--dir", str(home), "--json", *options])
    error = json.loads(done.stdout.splitlines()[-1])["error"]
    assert (done.exit_code, error["code"]) == (78, "settings")
    assert f"{name} is missing" in error["message"]
    assert "silo add" in error["fix"]


def with_videos(home: Path, bundle: Path, *clips: str) -> Path:
    """Let the settings name the bundle, and a folder of empty files called like clips."""
    for name in clips:
        (home / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        (home / "videos" / name).touch()
    (home / "videos").mkdir(exist_ok=True)
    text = (home / "agent.toml").read_text()
    text = text.replace('# bundle = "bundle" ', f'bundle = "{bundle}" ').replace(
        '# videos = "videos" ', "videos = 'videos'"
    )
    (home / "agent.toml").write_text(text)
    return home


def test_check_config_warns_of_too_few_clips(make_federation, toy_bundle):
    home = settings_of(make_federation("a"), "a", "h:1")
    with_videos(home, toy_bundle, *(f"run/{number}.mp4" for number in range(50)))
    code, answer = checked(home, "--offline")
    assert code == 0
    assert [words.split(":")[0] for words in answer["warnings"]] == [
        "50 labelled clips, about 40 to train on, policy.min_samples 256",
        "every one of the 50 groups has one clip",
    ]
    (home / "a.key").chmod(0o644)
    assert f"chmod 600 {home / 'a.key'}" in checked(home, "--offline")[1]["warnings"][0]


@pytest.mark.parametrize(
    ("clips", "table", "said"),
    [
        ((), None, "holds no video files"),
        (("1.mp4", "2.mp4"), None, "none of the 2 clips of"),
        ((), "path,label\nrun/1.mp4,run\n", "run/1.mp4: no such file"),
    ],
    ids=["empty", "without labels", "missing files"],
)
def test_check_config_refuses_videos_that_cannot_be_trained_on(make_federation, toy_bundle, clips, table, said):
    home = with_videos(settings_of(make_federation("a"), "a", "h:1"), toy_bundle, *clips)
    if table:
        (home / "videos" / "labels.csv").write_text(table)
    code, answer = checked(home, "--offline")
    assert (code, answer["error"]["code"]) == (65, "no_clips")
    assert said in answer["error"]["message"]


def test_check_config_hashes_every_file_of_the_bundle(make_federation, toy_bundle, tmp_path):
    changed = tmp_path / "bundle"
    shutil.copytree(toy_bundle, changed)
    largest = max(changed.glob("*.onnx"), key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[-1] ^= 1
    largest.write_bytes(content)
    home = with_videos(settings_of(make_federation("a"), "a", "h:1"), changed, "run/1.mp4")
    code, answer = checked(home, "--offline")
    assert (code, answer["error"]["code"]) == (65, "bundle_tampered")


def test_a_missing_key_names_keygen(make_federation):
    home = settings_of(make_federation("a"), "a", "h:1")
    (home / "a.key").unlink()
    code, answer = checked(home)
    assert code == 78
    assert "flamest-agent keygen" in answer["error"]["message"]


def test_status_shows_what_left_before_the_last_start(make_federation):
    from flamest.agent.status import AgentStatus, write_status

    home = settings_of(make_federation("a"), "a", "h:1")
    (home / "state").mkdir()
    write_status(home / "state", AgentStatus(doing="finished", silo="a", updates_sent=1, update_bytes=1_300_000))
    shown = CliRunner().invoke(app, ["status", "--dir", str(home)]).stdout
    assert "left this silo, by its ledger: 1 update, 1.30 MB\n" in shown
    assert "clips:" not in shown
    assert "run -" not in shown


def test_status_ends_with_69_when_no_agent_runs(make_federation):
    from flamest.agent.status import AgentStatus, write_status

    home = settings_of(make_federation("a"), "a", "h:1")
    never = CliRunner().invoke(app, ["status", "--dir", str(home), "--json"])
    assert (never.exit_code, json.loads(never.stdout)["error"]["code"]) == (69, "not_running")
    (home / "state").mkdir()
    write_status(home / "state", AgentStatus(doing="stopped", silo="a", adopted="final", adopted_run="before"))
    stopped = CliRunner().invoke(app, ["status", "--dir", str(home), "--json"])
    answer = json.loads(stopped.stdout.splitlines()[-1])
    assert (stopped.exit_code, answer["alive"], answer["silo"], answer["error"]["code"]) == (
        69,
        False,
        "a",
        "not_running",
    )
    assert f"flamest-agent run --dir {home}" in answer["error"]["fix"]
    shown = CliRunner().invoke(app, ["status", "--dir", str(home)]).stdout
    assert "model in use: the final one of run 'before'" in shown


@pytest.mark.parametrize("words", [["run"], ["status"], ["egress"], ["run", "--check-config"]])
def test_without_settings_every_command_says_where_it_looked(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, [*words, "--json"])
    answer = json.loads(done.stdout.splitlines()[-1])
    assert (done.exit_code, answer["error"]["code"]) == (2, "usage")
    assert "no agent.toml in the current folder" in answer["error"]["message"]
    assert "--dir DIR" in answer["error"]["fix"]


def test_doctor_next_to_settings_checks_the_silo(make_federation, toy_bundle):
    federation = make_federation("a")
    federation.start()
    home = settings_of(federation, "a", federation.address)
    with_videos(home, toy_bundle, "run/1.mp4")
    done = CliRunner().invoke(app, ["doctor", "--dir", str(home), "--json"])
    found = {(one["check"], one["state"]) for one in json.loads(done.stdout.splitlines()[-1])["silo"]}
    assert found == {
        ("settings", "ok"),
        ("certificate", "ok"),
        ("data", "ok"),
        ("data", "warn"),
        ("coordinator", "ok"),
        ("daemon", "warn"),
    }
    assert not (home / "state").exists(), "it changes nothing"
    (home / "silo.pem").unlink()
    shown = CliRunner().invoke(app, ["doctor", "--dir", str(home)]).stdout
    assert "wrong  certificate" in shown
    assert f"fix: flamest-agent run --dir {home}" in shown


def test_doctor_without_settings_says_that_none_were_checked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 0
    assert "no agent.toml here" in done.stdout


def test_status_shows_the_progress_of_an_extraction(make_federation):
    from flamest.agent.status import AgentStatus, write_status

    home = settings_of(make_federation("a"), "a", "h:1")
    (home / "state").mkdir()
    write_status(home / "state", AgentStatus(doing="extracting", detail="33 of 54 clips", silo="a", pid=7))
    with FileLock.take(home / "state" / LOCK_FILE, owner="flamest-agent"):
        shown = CliRunner().invoke(app, ["status", "--dir", str(home)]).stdout
    assert "running (PID 7): extracting: 33 of 54 clips, since" in shown


def test_extract_and_train_take_their_paths_from_the_settings(make_federation, toy_bundle, clips, monkeypatch):
    home = with_videos(settings_of(make_federation("a"), "a", "h:1"), toy_bundle)
    (home / "features.sqlite").unlink()
    for label in ("run", "walk"):
        (home / "videos" / label).mkdir()
        clips.write_clip(home / "videos" / label / "1.mp4", seed=len(label))
    monkeypatch.chdir(home)
    done = CliRunner().invoke(app, ["extract"])
    assert done.exit_code == 0, done.output
    assert "from agent.toml: bundle " in done.stdout
    done = CliRunner().invoke(app, ["train", "--out", "m.safetensors", "--passes", "1", "--hidden", "4"])
    assert done.exit_code == 0, done.output
    assert f"from agent.toml: store {home / 'features.sqlite'}" in done.stdout
    monkeypatch.chdir(home / "videos")
    done = CliRunner().invoke(app, ["extract", "--bundle", str(toy_bundle), "--json"])
    assert done.exit_code == 2
    assert "--videos and --store: not given" in json.loads(done.stdout)["error"]["message"]

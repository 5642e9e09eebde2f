"""The operator's commands, as typed."""

import json
import socket
import subprocess
import sys
import time

import pytest
from flamest.coordinator.admin.history import loss_text
from flamest.coordinator.admin.status import history_lines, status_of
from flamest.coordinator.cli import main
from flamest.coordinator.serving import server
from flamest.coordinator.settings import load_coordinator_settings
from flamest.export.cli.main import app as export_app
from flamest.fedproto.model_file import read_model
from flamest.fedproto.records import Evaluation, SubjectEvaluation, Update
from typer.testing import CliRunner


def typed(*words) -> tuple[int, dict, str]:
    """Exit code, the last line of stdout as JSON, everything that was printed."""
    result = CliRunner().invoke(main.app, [*map(str, words), "--json"])
    lines = result.stdout.splitlines()
    return result.exit_code, json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}, result.output


def output_of(*words) -> str:
    """Output for people."""
    result = CliRunner().invoke(main.app, list(map(str, words)))
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def trained(make_federation):
    """A federation after one round of two, its server stopped."""
    federation = make_federation("a", "b", rounds=2, min_silos=1)
    federation.start()
    for name in "ab":
        with federation.client(name) as client:
            run = client.join()
            status = client.wait(run, 0, 5)
            model = client.fetch(run, status)
            client.submit(run, Update(1, model.sha256, name.encode().hex() * 16, 10, model.params))
    with federation.client("a") as client:
        client.wait(run, 1, 5)
    federation.stop()
    return federation


def test_from_init_to_a_checked_configuration(tmp_path):
    from flamest.agent.identity import make_request

    (tmp_path / "labels.txt").write_text("walk\nrun\n\n", encoding="utf-8")
    fed = tmp_path / "fed"
    options = ["--labels-file", tmp_path / "labels.txt", "--fingerprint", "f" * 64]
    code, made, _ = typed("init", fed, "--host", "localhost", *options)
    assert (code, made["labels"], made["hosts"]) == (0, 2, ["localhost"])
    csr = make_request("ward-3", tmp_path).csr_path
    code, added, _ = typed("silo", "add", "ward-3", "--csr", csr, "--dir", fed)
    assert (code, added["files"]) == (0, ["silo.pem", "ca.pem"])
    code, listed, _ = typed("silo", "list", "--dir", fed)
    assert [(silo["name"], silo["revoked"]) for silo in listed["silos"]] == [("ward-3", None)]
    config = fed / "coordinator.toml"
    config.write_text(config.read_text().replace("0.0.0.0:7443", "127.0.0.1:0"))  # a port that no program has
    before = {path: path.read_bytes() for path in fed.rglob("*") if path.is_file()}
    code, checked, _ = typed("run", "--config", config, "--check-config")
    assert (code, checked["ok"], checked["silos"]) == (0, True, ["ward-3"])
    assert {path: path.read_bytes() for path in fed.rglob("*") if path.is_file()} == before, "nothing is written"
    code, _, _ = typed("silo", "revoke", "ward-3", "--dir", fed)
    assert code == 0
    assert "revoked 2" in output_of("silo", "list", "--dir", fed)


def test_a_renewed_silo_is_listed_with_both_certificates(make_federation):
    federation = make_federation("a", "b")
    (before,) = (silo for silo in typed("silo", "list", "--dir", federation.folder)[1]["silos"] if silo["name"] == "a")
    code, renewed, _ = typed("silo", "renew", "a", "--dir", federation.folder)
    assert (code, renewed["files"]) == (0, ["silo.pem", "ca.pem"])
    assert renewed["earlier"] == {before["certificate_sha256"]: before["expires"]}
    a, b = typed("silo", "list", "--dir", federation.folder)[1]["silos"]
    assert (a["expires"], a["earlier"]) == (renewed["expires"], renewed["earlier"])
    assert (b["revoked"], b["earlier"]) == (None, {})
    line, other = output_of("silo", "list", "--dir", federation.folder).splitlines()
    assert f"certificate until {a['expires'][:10]} (365 days), the old one until {before['expires'][:10]}" in line
    assert "the old one" not in other
    assert "uses it without a restart" in output_of("silo", "renew", "b", "--dir", federation.folder)


def test_renew_says_that_a_running_server_needs_no_restart():
    output = output_of("renew", "--help")
    assert "SIGHUP" in output
    assert "Start the server again" not in output


def test_init_says_what_to_do_next(tmp_path):
    output = output_of("init", tmp_path / "fed", "--host", "localhost")
    for words in ("flamest-agent keygen", "flamest-coordinator silo add --dir", "flamest-coordinator run --dir"):
        assert words in output


@pytest.mark.parametrize(
    ("words", "exit_code", "code"),
    [
        (["init", "{new}"], 2, "usage"),
        (["init", "{new}", "--host", "bad host"], 2, "usage"),
        (["init", "{new}", "--host", "h", "--labels", "a,b", "--labels-file", "{new}"], 2, "usage"),
        (["init", "{fed}", "--host", "h"], 74, "storage"),
        (["silo", "add", "c", "--csr", "{new}", "--dir", "{fed}"], 78, "settings"),
        (["silo", "add", "a", "--csr", "{csr}", "--dir", "{fed}"], 2, "usage"),
        (["silo", "add", "c", "--csr", "{csr}", "--dir", "{fed}"], 77, "request_name"),
        (["silo", "add", "C!", "--csr", "{csr}", "--dir", "{fed}"], 2, "usage"),
        (["silo", "revoke", "c", "--dir", "{fed}"], 65, "unknown_silo"),
        (["silo", "renew", "c", "--dir", "{fed}"], 65, "unknown_silo"),
        (["silo", "renew", "a", "--csr", "{new}", "--dir", "{fed}"], 78, "settings"),
        (["silo", "list", "--dir", "{new}"], 74, "storage"),
        (["run", "--config", "{new}"], 78, "settings"),
        (["status", "--config", "{fed}/coordinator.toml"], 69, "no_state"),
        (["history", "--config", "{fed}/coordinator.toml"], 65, "no_state"),
        (["model", "--config", "{fed}/coordinator.toml", "--out", "{new}"], 65, "no_state"),
    ],
)
def test_an_error_has_its_exit_code_and_a_fix(make_federation, tmp_path, words, exit_code, code):
    federation = make_federation("a")
    places = {"new": tmp_path / "new", "fed": federation.folder, "csr": federation.silo_folder / "a" / "a.csr"}
    found, answer, output = typed(*(word.format(**places) for word in words))
    assert (found, answer["error"]["code"]) == (exit_code, code), output


def test_status_shows_the_run_with_and_without_a_server(trained):
    _, now, _ = typed("status", "--config", trained.config)
    assert (now["running"], now["address"], now["phase"], now["round"], now["closed"]) == (False, None, "open", 2, 1)
    assert [(silo["silo"], silo["updates"], silo["last_round"]) for silo in now["silos"]] == [("a", 1, 1), ("b", 1, 1)]
    trained.start()
    now = status_of(trained.settings())
    assert (now["running"], now["address"]) == (True, trained.address)
    assert f"running at {trained.address}" in output_of("status", "--config", trained.config)


def test_status_says_when_the_run_is_finished(make_federation):
    federation = make_federation("a", rounds=1)
    federation.start()
    with federation.client("a") as client:
        run = client.join()
        model = client.fetch(run, client.wait(run, 0, 5))
        client.submit(run, Update(1, model.sha256, "aa" * 16, 10, model.params))
        client.wait(run, 1, 5)
    assert status_of(federation.settings())["phase"] == "finished"


def test_history_is_a_row_per_round(trained):
    _, found, _ = typed("history", "--config", trained.config)
    first, second = found["rounds"]
    assert (first["status"], first["accepted"], first["examples"], first["loss"]) == ("closed", 2, 20, None)
    assert first["received_bytes"] > 2 * 4 * 53
    assert first["sent_bytes"] > 2 * 4 * 53
    assert (second["status"], second["accepted"]) == ("open", 0)
    table = output_of("history", "--config", trained.config).splitlines()
    assert len(table) == 3
    assert len({len(line.split()) for line in table[1:]}) == 1
    assert history_lines([])[0].split()[0] == "round"


def test_model_exports_a_whole_file(trained, tmp_path):
    _, taken, _ = typed("model", "--config", trained.config, "--out", tmp_path / "m.safetensors")
    model = read_model(tmp_path / "m.safetensors")
    assert (taken["round"], model.round, model.run, list(model.labels)) == (1, 1, "run-1", ["fall", "run", "walk"])
    _, start, _ = typed("model", "--config", trained.config, "--out", tmp_path / "0.safetensors", "--round", 0)
    assert start["round"] == 0
    code, answer, _ = typed("model", "--config", trained.config, "--out", tmp_path / "9.safetensors", "--round", 9)
    assert (code, answer["error"]["code"]) == (65, "no_model")


def test_renew_makes_a_certificate_for_the_same_names(make_federation):
    federation = make_federation()
    _, answer, _ = typed("renew", "--dir", federation.folder)
    assert answer["hosts"] == ["127.0.0.1", "localhost"]


def test_the_coordinator_loads_no_heavy_module_when_it_runs(make_federation):
    federation = make_federation("a")
    code = """
import sys
from pathlib import Path
from flamest.base.process import Shutdown
from flamest.coordinator.serving.server import serve
from flamest.coordinator.serving import server
from flamest.coordinator.settings import load_coordinator_settings
shutdown = Shutdown()
shutdown.request()
serve(load_coordinator_settings(Path(sys.argv[1])), shutdown)
print(sorted({"torch", "onnxruntime", "onnx", "av", "sklearn", "PIL", "tokenizers"} & set(sys.modules)))
"""
    out = subprocess.run(
        [sys.executable, "-c", code, str(federation.config)], check=True, capture_output=True, text=True
    ).stdout
    assert out == "[]\n"


def test_a_claimed_codec_error_does_not_widen_the_history():
    row = dict.fromkeys(("loss", "accuracy", "seconds", "bytes_per_silo", "model_sha256", "clock_moved"))
    row |= dict.fromkeys(("round", "accepted", "refused", "examples", "received_bytes", "sent_bytes"), 1)
    head, line = history_lines([{**row, "status": "closed", "codec_error": 1e300, "updates": []}])
    assert len(line) < len(head)


# --- init, --check-config, and what they know of the bundle ---


def test_init_fills_in_the_bundles_fingerprint_width_and_blocks(tiny_bundle, tmp_path):
    from flamest.runtime.bundle.manifest_reading import read_manifest

    manifest = read_manifest(tiny_bundle)
    words = ["--host", "localhost", "--labels", "a,b"]
    code, made, _ = typed("init", tmp_path / "fed", *words, "--bundle", tiny_bundle)
    assert (code, made["fingerprint"], made["inputs"]) == (0, manifest.fingerprint, manifest.width)
    settings = load_coordinator_settings(tmp_path / "fed" / "coordinator.toml")
    assert (settings.run.fingerprint, settings.run.inputs) == (manifest.fingerprint, manifest.width)
    assert settings.run.head.blocks == (manifest.vlm.width, manifest.cnn.width)
    assert settings.run.final_evaluation == "model", "the model that one takes away is measured"
    inspected = tmp_path / "facts.json"
    shown = CliRunner().invoke(export_app, ["inspect", str(tiny_bundle), "--json"])
    inspected.write_text(shown.stdout)
    code, same, _ = typed("init", tmp_path / "elsewhere", *words, "--bundle", inspected)
    assert (code, same["fingerprint"], same["blocks"]) == (0, made["fingerprint"], made["blocks"])


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--fingerprint", "abc"], "64 hexadecimal digits"),
        (["--fingerprint", "imported:mine:12", "--inputs", "13"], "the embeddings are 12-d"),
        (["--labels", "a,b,a"], "a twice"),
        (["--labels", "a"], "expected 2 or more"),
    ],
)
def test_init_refuses_what_no_run_can_have(tmp_path, words, part):
    code, answer, _ = typed("init", tmp_path / "fed", "--host", "localhost", *words)
    assert (code, answer["error"]["code"]) == (2, "usage")
    assert part in answer["error"]["message"]
    assert answer["error"]["fix"]
    assert not (tmp_path / "fed").exists()


@pytest.mark.parametrize(
    ("text", "part"), [("", "no class name"), ("a\n", "'a' alone"), ("a\nb\n\na\n", "'a' in lines 1, 4")]
)
def test_init_refuses_a_labels_file_with_the_place_of_the_problem(tmp_path, text, part):
    (tmp_path / "labels.txt").write_text(text, encoding="utf-8")
    words = ["--host", "localhost", "--labels-file", tmp_path / "labels.txt"]
    code, answer, _ = typed("init", tmp_path / "fed", *words)
    assert (code, answer["error"]["code"]) == (2, "usage")
    assert part in answer["error"]["message"]
    assert "labels.txt" in answer["error"]["message"]


def test_init_takes_the_width_from_the_fingerprint_of_imported_embeddings(tmp_path):
    fingerprint = ["--fingerprint", "imported:mine:12"]
    code, made, _ = typed("init", tmp_path / "fed", "--host", "localhost", "--labels", "a,b", *fingerprint)
    assert (code, made["inputs"]) == (0, 12)
    assert load_coordinator_settings(tmp_path / "fed" / "coordinator.toml").run.inputs == 12


def test_init_never_advises_to_remove_a_folder_with_the_authoritys_key(make_federation):
    federation = make_federation()
    code, answer, output = typed("init", federation.folder, "--host", "localhost")
    assert (code, answer["error"]["code"]) == (74, "storage")
    assert "ca-key.pem" in answer["error"]["message"]
    assert not any(word in output for word in ("remove", "delete", "rm "))
    code, answer, output = typed("backup", "--dir", federation.folder, "--out", federation.folder)
    assert "remove" not in output


CHECKED = {
    "a fingerprint of three letters": ('fingerprint = "{print}"', 'fingerprint = "abc"', "64 hexadecimal digits"),
    "another width": ("inputs = 12", "inputs = 2816", "imported:mine:12 are 12-d"),
    "a label twice": ('"fall", "run"', '"fall", "fall"', "'fall' is there twice"),
    "an address elsewhere": ("127.0.0.1:0", "192.0.2.1:7443", "no server can listen there"),
    "a missing key": ('key = "server-key.pem"', 'key = "nowhere.pem"', "nowhere.pem"),
    "another key": ('key = "server-key.pem"', 'key = "ca-key.pem"', "not the key of"),
    "no allow-list": ('silos = "silos.json"', 'silos = "nowhere.json"', "allow-list"),
}


@pytest.mark.parametrize("case", sorted(CHECKED))
def test_check_config_refuses_what_cannot_work(make_federation, case):
    federation = make_federation("a", fingerprint='"imported:mine:12"', inputs=12)
    assert typed("run", "--dir", federation.folder, "--check-config")[0] == 0
    old, new, part = CHECKED[case]
    text = federation.config.read_text()
    old = old.replace("{print}", "imported:mine:12")
    assert old in text
    federation.config.write_text(text.replace(old, new))
    code, answer, output = typed("run", "--dir", federation.folder, "--check-config")
    assert code in (74, 77, 78), output
    assert part in answer["error"]["message"]
    assert answer["error"]["fix"]


def test_check_config_refuses_other_settings_of_a_run_that_has_begun(trained):
    text = trained.config.read_text().replace('fingerprint = "fingerprint"', 'fingerprint = "imported:mine:6"')
    trained.config.write_text(text.replace('name = "run-1"', 'name = "run-2"'))
    assert typed("run", "--dir", trained.folder, "--check-config")[0] == 0, "run-2 has not begun"
    trained.config.write_text(text)
    code, answer, _ = typed("run", "--dir", trained.folder, "--check-config")
    assert (code, answer["error"]["code"]) == (78, "other_settings")
    assert "(fingerprint differ)" in answer["error"]["message"]


def test_check_config_compares_with_the_bundle(tiny_bundle, make_federation):
    from flamest.runtime.bundle.manifest_reading import read_manifest

    manifest = read_manifest(tiny_bundle)
    federation = make_federation("a", fingerprint=f'"{manifest.fingerprint}"', inputs=manifest.width - 1)
    code, answer, _ = typed("run", "--dir", federation.folder, "--check-config")
    assert code == 0
    assert any("--bundle DIR" in note for note in answer["notes"])
    code, answer, _ = typed("run", "--dir", federation.folder, "--check-config", "--bundle", tiny_bundle)
    assert code == 78
    assert f"the bundle gives {manifest.width}-d embeddings" in answer["error"]["message"]
    assert f"inputs = {manifest.width}" in answer["error"]["fix"]


def test_check_config_finds_an_address_in_use(make_federation):
    federation = make_federation("a", fingerprint='"imported:mine:6"')
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        text = federation.config.read_text()
        federation.config.write_text(text.replace("127.0.0.1:0", f"127.0.0.1:{taken.getsockname()[1]}"))
        code, answer, _ = typed("run", "--dir", federation.folder, "--check-config")
    assert (code, answer["error"]["code"]) == (75, "locked")


# --- a model's own accuracy, silos that decline, hints ---


def evaluated(federation, number: int, correct: int) -> None:
    """One round of silo a, which reports ``correct`` of 10 for the model that the round starts from."""
    with federation.client("a") as client:
        run = client.join()
        status = client.wait(run, number - 1, 5)
        model = client.fetch(run, status)
        measured = Evaluation(0.5, correct, 10)
        client.submit(run, Update(status.round, model.sha256, f"{number:032x}", 10, model.params, measured))


def test_history_shows_the_accuracy_of_the_rows_own_model(make_federation, tmp_path):
    federation = make_federation("a", rounds=3, final_evaluation='"model"')
    federation.start()
    for number, correct in ((1, 2), (2, 5)):
        evaluated(federation, number, correct)
    with federation.client("a") as client:
        client.wait(client.join(), 2, 5)
    first, second, third = typed("history", "--dir", federation.folder)[1]["rounds"]
    assert (first["accuracy"], first["incoming"]["accuracy"]) == (0.5, 0.2)
    assert (second["accuracy"], second["accuracy_missing"]) == (None, "pending")
    assert (third["accuracy"], third["accuracy_missing"]) == (None, "no-model")
    evaluated(federation, 3, 7)
    with federation.client("a") as client:
        run = client.join()
        client.wait(run, 3, 5)
        assert "waiting" in output_of("history", "--dir", federation.folder)
        client.report_evaluation(run, 3, [SubjectEvaluation(0, Evaluation(0.1, 9, 10))])
    rows = typed("history", "--dir", federation.folder)[1]["rounds"]
    assert [row["accuracy"] for row in rows] == [0.5, 0.7, 0.9]
    taken = typed("model", "--dir", federation.folder, "--out", tmp_path / "m.safetensors")[1]
    assert (taken["round"], taken["accuracy"]) == (3, 0.9)
    assert "9 of 10 correct" in output_of("model", "--dir", federation.folder, "--out", tmp_path / "m.safetensors")
    assert "last model: round 3, accuracy 0.900" in output_of("status", "--dir", federation.folder)


def test_an_unmeasured_last_model_comes_with_the_setting_that_measures_it(make_federation, tmp_path):
    federation = make_federation("a", rounds=1)
    federation.start()
    evaluated(federation, 1, 4)
    with federation.client("a") as client:
        client.wait(client.join(), 1, 5)
    (row,) = typed("history", "--dir", federation.folder)[1]["rounds"]
    assert (row["accuracy"], row["accuracy_missing"]) == (None, "not-asked")
    for words in (["history"], ["status"], ["model", "--out", tmp_path / "m.safetensors"]):
        assert "run.final_evaluation" in output_of(*words, "--dir", federation.folder)


def test_status_names_silos_that_declined_or_were_not_seen(make_federation):
    federation = make_federation("a", "b", rounds=2, min_silos=2)
    federation.start()
    with federation.client("a") as client:
        run = client.join()
        assert client.wait(run, 0, 5).round == 1
        client.wait(run, 1, 0.1)  # asks for what follows round 1, without an update
    until = time.monotonic() + 20
    while not (federation.state / "attendance.json").exists() or "declined" not in str(shown_silos(federation)):
        assert time.monotonic() < until
        time.sleep(0.05)
    a, b = shown_silos(federation)
    assert (a["seen"], a["declined_round"], b["seen"], b["declined_round"]) == (True, 1, False, None)
    output = output_of("status", "--dir", federation.folder)
    assert "declined round 1" in output
    assert f"run --dir {federation.folder} --check-config --bundle DIR" in output
    assert "not seen since the server's start" in output
    evaluated(federation, 1, 4)  # an update after all
    assert "declines" not in output_of("status", "--dir", federation.folder)


def shown_silos(federation) -> list[dict]:
    silos = status_of(federation.settings())["silos"]
    return silos if any(silo["declined_round"] for silo in silos) else []


def test_status_ends_with_69_when_no_server_runs(trained):
    code, now, _ = typed("status", "--dir", trained.folder)
    assert (code, now["running"], now["error"]["code"]) == (69, False, "not_running")
    assert f"--dir {trained.folder}" in now["error"]["fix"]


def test_every_hint_names_the_folder_that_was_given(make_federation, tmp_path):
    federation = make_federation("a")
    where = f"--dir {federation.folder}"
    for words in (["silo", "add", "a", "--csr", federation.silo_folder / "a" / "a.csr"], ["silo", "revoke", "c"]):
        assert where in typed(*words, "--dir", federation.folder)[1]["error"]["fix"]
    assert where in typed("history", "--dir", federation.folder)[1]["error"]["fix"]
    _, answer, _ = typed("history", "--config", federation.config)
    assert f"--config {federation.config}" in answer["error"]["fix"]


@pytest.mark.parametrize("words", [["status"], ["history"], ["doctor"], ["run"], ["model", "--out", "m"]])
def test_the_settings_are_found_in_the_current_folder(make_federation, monkeypatch, tmp_path, words):
    federation = make_federation("a")
    monkeypatch.chdir(tmp_path)
    code, answer, _ = typed(*words)
    assert (code, answer["error"]["code"]) == (2, "usage")
    monkeypatch.chdir(federation.folder)
    code, answer, _ = typed(*words, *(["--check-config"] if words == ["run"] else []))
    assert "current folder" not in answer.get("error", {}).get("message", "")


def test_backup_takes_out_and_to(trained, tmp_path):
    for option in ("--out", "--to"):
        code, made, _ = typed("backup", "--dir", trained.folder, option, tmp_path / option)
        assert (code, (tmp_path / option / "backup.json").exists()) == (0, True), made


@pytest.mark.parametrize(
    ("closed", "said"),
    [
        (0, ["stopped after 0 of 3 rounds", "start it again to resume"]),
        (1, ["stopped after 1 of 3 rounds", "start it again to resume", "take the model"]),
        (3, ["run 'run-1' finished", "take the model"]),
    ],
)
def test_a_stopped_server_offers_only_a_trained_model(make_federation, monkeypatch, closed, said):
    federation = make_federation("a")
    monkeypatch.setattr(server, "serve", lambda *_, **__: server.Served("run-1", closed, 3, "0" * 64))
    lines = output_of("run", "--dir", federation.folder, "--log-level", "error").splitlines()
    assert len(lines) == len(said)
    assert all(words in line for words, line in zip(said, lines, strict=True))


def test_an_untouched_template_is_told_the_bundles_lines(tiny_bundle, tmp_path):
    fed = tmp_path / "fed"
    output_of("init", fed, "--host", "localhost")
    code, answer, _ = typed("run", "--dir", fed, "--check-config", "--bundle", tiny_bundle)
    assert code == 78
    assert "TO FILL IN" in answer["error"]["fix"]
    assert "in [run] fingerprint = " in answer["error"]["fix"]
    assert "run.labels" in answer["error"]["message"]
    assert "run.head" not in answer["error"]["message"]


def test_a_folder_without_a_bundle_is_explained_to_the_operator(tmp_path):
    for words in (["init", tmp_path / "fed", "--host", "localhost"],):
        code, answer, _ = typed(*words, "--bundle", tmp_path)
        assert (code, answer["error"]["code"]) == (65, "bad_data")
        assert "from the operator" not in answer["error"]["fix"]
        assert "flamest-export" in answer["error"]["fix"]


def test_a_missing_server_certificate_is_made_by_renew(make_federation):
    federation = make_federation("a", fingerprint='"imported:mine:6"')
    (federation.folder / "server.pem").unlink()
    code, answer, _ = typed("run", "--dir", federation.folder, "--check-config")
    assert (code, answer["error"]["code"]) == (78, "settings")
    assert f"flamest-coordinator renew --dir {federation.folder} --host NAME" in answer["error"]["fix"]
    assert typed("renew", "--dir", federation.folder)[0] == 78
    assert typed("renew", "--dir", federation.folder, "--host", "localhost")[0] == 0
    assert typed("run", "--dir", federation.folder, "--check-config")[0] == 0


def test_a_model_for_a_missing_folder_says_so(trained, tmp_path):
    code, answer, _ = typed("model", "--dir", trained.folder, "--out", tmp_path / "a" / "b" / "m.safetensors")
    assert (code, answer["error"]["code"]) == (74, "storage")
    assert f"the folder {tmp_path / 'a' / 'b'} does not exist" in answer["error"]["message"]
    assert "mkdir -p" in answer["error"]["fix"]


@pytest.mark.parametrize(("count", "text"), [(12, "0.5"), (240, "0.52"), (4000, "0.523")])
def test_losses_have_no_digits_that_silos_round_away(count, text):
    assert loss_text(0.5234, count) == text


def test_an_earlier_run_is_read_by_its_name(trained, tmp_path):
    first = typed("history", "--dir", trained.folder)[1]["rounds"]
    text = trained.config.read_text().replace('name = "run-1"', 'name = "run-2"')
    trained.config.write_text(text.replace("labels = [", 'labels = ["sit", ').replace("rounds = 2", "rounds = 5"))
    place, out = ["--dir", trained.folder], tmp_path / "m.safetensors"
    code, answer, _ = typed("model", *place, "--out", out)
    assert (code, answer["error"]["code"]) == (65, "no_model")
    assert "run-1" in answer["error"]["fix"]
    trained.start()
    trained.stop()
    assert typed("status", *place)[1]["other_runs"] == ["run-1"]
    assert [row["status"] for row in typed("history", *place)[1]["rounds"]] == ["open"]
    assert typed("history", *place, "--run", "run-1")[1]["rounds"] == first
    _, taken, _ = typed("model", *place, "--run", "run-1", "--out", out)
    assert (taken["run"], taken["round"], taken["labels"]) == ("run-1", 1, 3)
    assert typed("evaluation", *place, "--run", "run-1")[1]["error"]["code"] == "not_measured"
    code, answer, _ = typed("history", *place, "--run", "run-9")
    assert (code, answer["error"]["code"]) == (65, "no_run")
    assert "run-2, run-1" in answer["error"]["message"] or "run-1, run-2" in answer["error"]["message"]

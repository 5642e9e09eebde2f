"""The operator's commands, as typed."""

import json
import subprocess
import sys

import pytest
from flamest.coordinator.admin.status import history_lines, status_of
from flamest.coordinator.cli import main
from flamest.fedproto.model_file import read_model
from flamest.fedproto.records import Update
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
    before = {path: path.read_bytes() for path in fed.rglob("*") if path.is_file()}
    code, checked, _ = typed("run", "--config", fed / "coordinator.toml", "--check-config")
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
    for words in ("flamest-agent keygen", "flamest-coordinator silo add", "flamest-coordinator run --config"):
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
        (["status", "--config", "{fed}/coordinator.toml"], 65, "no_state"),
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

"""``flamest-agent egress``: the ledger for people and for programs."""

import json

import pytest
from flamest.agent.cli.main import app
from flamest.agent.egress.accountant import Spend
from flamest.agent.egress.entry import ReportedResult, TensorSent
from flamest.agent.egress.ledger import LEDGER_FILE, Ledger
from typer.testing import CliRunner


@pytest.fixture
def state(tmp_path):
    ledger = Ledger.open(tmp_path, now=lambda: "2026-01-02T03:04:05Z")
    ledger.append("enrolment", sha256="cc" * 32, bytes=700, detail="certificate of silo 'a', shown to host:7443")
    ledger.append("policy", policy={"min_samples": 4}, overrides=("min_samples 4 is below the floor of 256",))
    tensors = (TensorSent("0.weight", (512, 2816), "float32"), TensorSent("0.bias", (512,), "float32"))
    ledger.append(
        "update",
        run="run-1",
        round=3,
        update_id="ab" * 16,
        examples=300,
        tensors=tensors,
        codec="fp32",
        bytes=6_398_600,
        sha256="dd" * 32,
        reported={"loss": 0.25, "correct": 60, "count": 80},
        results=(ReportedResult(0.25, 60, 80),),
        privacy=Spend(0.4, 1.0, 15),
        overrides=("min_samples 4 is below the floor of 256",),
    )
    results = (ReportedResult(0.5, 50, 80), ReportedResult(1.25, 20, 80, 1, ((0, 9, 40), (2, 11, 40))))
    ledger.append("evaluation", run="run-1", round=3, bytes=90, models=2, sha256="ee" * 32, results=results)
    ledger.append("refused", run="run-1", round=4, code="few_samples", detail="3 labelled clips to train on")
    return tmp_path


def run(*words):
    return CliRunner().invoke(app, ["egress", *map(str, words)])


def test_egress_prints_what_left_and_what_did_not(state):
    output = run("--state", state)
    assert output.exit_code == 0
    for words in (
        "2026-01-02T03:04:05Z  round 3 of run-1: the classifier's parameters left, 6,398,600 bytes as fp32",
        "0.weight [512, 2816], 0.bias [512]",
        "trained on 300 clips\n",
        "reported: the run's model predicts 60 of 80 held-out clips correctly, loss 0.25\n",
        f"SHA-256 {'dd' * 32}",
        "15 steps, a clip in each with chance 0.4, noise 1",
        "OVERRIDE: min_samples 4 is below the floor of 256",
        "certificate of silo 'a', shown to host:7443",
        "round 3 of run-1: 2 models evaluated on the held-out clips, 90 bytes",
        "reported: the run's model predicts 50 of 80 held-out clips correctly, loss 0.5\n",
        "reported: model 1 predicts 20 of 80 held-out clips correctly (9 of 40 of class 0, 11 of 40 of class 2), "
        "loss 1.25\n",
        "round 4 of run-1: NOTHING LEFT, refused (few_samples)",
        "5 entries: 1 update of 6.40 MB in all may have left, with the evaluations of 3 models; 1 was refused or "
        "withdrawn",
        "the ledger is intact",
    ):
        assert words in output.stdout


def test_json_has_every_entry_and_the_totals(state):
    reported = json.loads(run("--state", state, "--json").stdout.splitlines()[-1])
    assert [entry["what"] for entry in reported["entries"]] == [
        "enrolment",
        "policy",
        "update",
        "evaluation",
        "refused",
    ]
    assert {key: reported[key] for key in ("updates", "bytes", "refused", "overrides", "whole", "problems")} == {
        "updates": 1,
        "bytes": 6_398_600,
        "refused": 1,
        "overrides": 1,
        "whole": True,
        "problems": [],
    }


def test_verify_exits_with_65_when_a_line_is_gone(state):
    assert run("--state", state, "--verify").exit_code == 0
    path = state / LEDGER_FILE
    kept = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(kept[:2] + kept[3:]))
    output = run("--state", state, "--verify", "--json")
    assert output.exit_code == 65
    assert json.loads(output.stdout.splitlines()[-1])["error"]["code"] == "ledger_broken"
    assert "BROKEN" in run("--state", state).stdout  # what is left can still be read


def test_without_settings_the_error_names_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output = run()
    assert output.exit_code == 2
    assert "--config agent.toml" in output.output


def test_egress_of_a_silo_without_updates_counts_none(tmp_path):
    Ledger.open(tmp_path).append("policy", policy={"min_samples": 256, "refuse_worse": True})
    reported = json.loads(run("--state", tmp_path, "--json").stdout.splitlines()[-1])
    assert [entry["what"] for entry in reported["entries"]] == ["policy"]
    assert (reported["updates"], reported["bytes"], reported["whole"]) == (0, 0, True)
    shown = run("--state", tmp_path).stdout
    assert "policy from here on: min_samples = 256, refuse_worse = true\n" in shown
    assert "1 entry: 0 updates of" in shown


def test_a_folder_without_a_ledger_is_an_error(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        done = run("--state", folder)
        assert done.exit_code == 65
        assert "holds no egress ledger" in done.output
        assert "--config agent.toml" in done.output


def test_names_from_the_coordinator_are_escaped(tmp_path):
    Ledger.open(tmp_path).append("refused", run="\x1b[2J", round=1, code="min_samples", detail="too few")
    done = run("--state", tmp_path)
    assert done.exit_code == 0, done.output
    assert "\x1b" not in done.output
    assert "\\x1b[2J" in done.output

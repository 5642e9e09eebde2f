"""The status names the model that a silo uses, and the run that it is from, over restarts and later runs."""

import pytest
from flamest.agent.cli.main import app
from flamest.agent.end_of_run import FINAL_MODEL, model_in_use
from flamest.agent.settings import PLACEHOLDER_HOST, TEMPLATE
from flamest.agent.status import AgentStatus, write_status
from typer.testing import CliRunner

GAIN = {"gain": 0.1, "low": -0.1, "high": 0.3, "clips": 20, "groups": 10}
USED = {"adopted": "final", "adopted_why": "", "adopted_run": "first", "adopted_round": 80, "gain": GAIN}


def test_a_restarted_daemon_knows_the_model_in_use(tmp_path):
    write_status(tmp_path, AgentStatus(run="second", round=3, **USED))
    assert model_in_use(tmp_path) == {}, "the file is gone: no model is in use"
    (tmp_path / FINAL_MODEL).touch()
    assert model_in_use(tmp_path) == USED


def test_without_a_readable_status_nothing_is_claimed(tmp_path):
    (tmp_path / FINAL_MODEL).touch()
    assert model_in_use(tmp_path) == {}
    (tmp_path / "status.json").write_text("{")
    assert model_in_use(tmp_path) == {}


def test_a_status_of_an_earlier_version_is_read(tmp_path):
    (tmp_path / FINAL_MODEL).touch()
    (tmp_path / "status.json").write_text('{"doing": "finished", "run": "r", "adopted": "own"}')
    nothing = {"adopted_why": "", "adopted_run": "", "adopted_round": 0, "gain": {}}
    assert model_in_use(tmp_path) == {"adopted": "own", **nothing}


def status_of(tmp_path, **fields) -> list[str]:
    (tmp_path / "state").mkdir()
    (tmp_path / "agent.toml").write_text(TEMPLATE.format(key="a.key").replace(PLACEHOLDER_HOST, "localhost"))
    write_status(tmp_path / "state", AgentStatus(doing="finished", silo="a", **fields))
    return CliRunner().invoke(app, ["status", "--dir", str(tmp_path)]).stdout.splitlines()


@pytest.mark.parametrize(
    ("adopted", "words"),
    [
        ("own", "this silo's own of run 'first', round 80"),
        ("final", "the final one of run 'first', round 80"),
        ("tuned", "the final one of run 'first', tuned on this silo's clips, round 80"),
        ("blend", "half-way between the final one of run 'first' and that tuned on this silo's clips, round 80"),
    ],
)
def test_the_status_says_which_model_is_in_use_and_what_joining_gained(tmp_path, adopted, words):
    shown = status_of(tmp_path, **{**USED, "adopted": adopted, "adopted_why": "because"})
    place = shown.index(f"model in use: {words} ({tmp_path / 'state' / FINAL_MODEL})")
    assert shown[place + 1] == "  because"
    assert shown[place + 2].startswith(
        "  gain of the final model over the own head: +10.0 points (95 % interval -10.0 to +30.0)"
    )
    assert "flamest-agent evaluate" in shown[place + 2]


def test_without_a_gain_the_status_says_how_to_measure_one(tmp_path):
    shown = status_of(tmp_path, **{**USED, "gain": {}})
    place = next(number for number, line in enumerate(shown) if line.startswith("model in use: "))
    assert "flamest-agent evaluate" in shown[place + 1]
    assert not any("gain of the final model" in line for line in shown)

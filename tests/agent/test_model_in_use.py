"""The status names the model that a silo uses, and the run that it is from, over restarts and later runs."""

from flamest.agent.end_of_run import FINAL_MODEL, model_in_use
from flamest.agent.status import AgentStatus, write_status

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

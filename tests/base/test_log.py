import json
import logging

import pytest
from flamest.base.log import Log, configure_logging


@pytest.fixture
def quiet_root():
    root = logging.getLogger("flamest")
    yield
    root.handlers[:] = []
    root.propagate = True


def test_events_are_logfmt_with_quotes_where_needed(capsys, quiet_root):
    configure_logging()
    Log("coordinator").info("round_closed", round=12, why="two words", share=0.25)
    line = capsys.readouterr().err.strip()
    assert line.endswith('level=info part=coordinator event=round_closed round=12 why="two words" share=0.25')


def test_a_line_break_in_a_value_cannot_forge_an_event(capsys, quiet_root):
    configure_logging()
    Log("agent").info("x", name="a\nlevel=error event=forged")
    assert capsys.readouterr().err.count("\n") == 1


def test_json_lines_are_json(capsys, quiet_root, monkeypatch):
    monkeypatch.setenv("FLAMEST_LOG", "json")
    configure_logging()
    Log("agent").warning("late", round=3)
    entry = json.loads(capsys.readouterr().err)
    assert (entry["level"], entry["event"], entry["round"]) == ("warning", "late", 3)

import json
import logging
import os
import signal
import subprocess
import sys
import time

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


LOOP = """
import sys
from flamest.base.process import Shutdown
stop = Shutdown.on_signals()
print("ready", flush=True)
stop.wait(20)
if sys.argv[1] == "stuck":
    import time; time.sleep(20)
print("ended in order", flush=True)
"""


@pytest.mark.parametrize(("mode", "signals", "status"), [("fine", 1, 0), ("stuck", 2, 128 + signal.SIGTERM)])
def test_the_first_sigterm_asks_and_the_second_ends_at_once(mode, signals, status):
    process = subprocess.Popen([sys.executable, "-c", LOOP, mode], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    for _ in range(signals):
        os.kill(process.pid, signal.SIGTERM)
        time.sleep(0.2)
    out, _ = process.communicate(timeout=10)
    assert process.returncode == status
    assert ("ended in order" in out) == (status == 0)

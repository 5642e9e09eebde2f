"""The lines that long work says where nobody watches a bar."""

import pytest
from flamest.base import progress


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_the_time_left_is_reckoned_from_the_first_step_and_not_from_what_went_before(clock, capsys):
    """Networks are opened first, for a minute or more; 22 clips of a second each were then said to take 230 s."""
    lines = progress._Lines("extracting", 22, "clips")
    clock[0] = 60.0
    lines.advance()
    assert capsys.readouterr().err == "extracting: 1/22 clips\n"
    for _ in range(11):
        clock[0] += 1.0
        lines.advance()
    assert capsys.readouterr().err == "extracting: 11/22 clips, about 11 s left\n"


def test_the_last_step_is_always_said(clock, capsys):
    lines = progress._Lines("extracting", 2, "clips")
    for _ in range(2):
        clock[0] += 0.1
        lines.advance()
    assert capsys.readouterr().err == "extracting: 2/2 clips, about 0 s left\n"

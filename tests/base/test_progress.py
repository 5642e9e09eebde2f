"""Progress lines that long work prints where there is no terminal."""

import pytest
from flamest.base import progress


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_the_time_left_is_estimated_from_the_first_step_on(clock, capsys):
    """Networks are opened first, for a minute or more; counting that, 22 clips of a second each would show 230 s."""
    with progress.progress_bar("extracting", 22, unit="clips") as lines:
        clock[0] = 60.0
        lines.advance()
        assert capsys.readouterr().err == "extracting: 1/22 clips\n"
        for _ in range(11):
            clock[0] += 1.0
            lines.advance()
        assert capsys.readouterr().err == "extracting: 11/22 clips, about 11 s left\n"


def test_the_last_step_is_always_printed(clock, capsys):
    with progress.progress_bar("extracting", 2, unit="clips") as lines:
        for _ in range(2):
            clock[0] += 0.1
            lines.advance()
        assert capsys.readouterr().err == "extracting: 2/2 clips\n"

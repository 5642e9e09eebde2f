"""Times as they are shown and stored, and jumps of the wall clock."""

import time

import pytest
from flamest.base.clock import ClockWatch, days_until, parse_utc, utc_date, utc_now, utc_text


def test_a_time_is_written_in_utc_to_the_second():
    assert utc_text(0.0) == "1970-01-01T00:00:00Z"
    assert utc_text(1_764_494_144.9) == "2025-11-30T09:15:44Z"


def test_a_written_time_is_read_back():
    assert parse_utc(utc_text(86_400.0)).timestamp() == 86_400.0


def test_every_function_follows_the_same_wall_clock(monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 86_400.5)
    assert utc_text() == "1970-01-02T00:00:00Z"
    assert utc_date() == "1970-01-02"
    assert utc_now().timestamp() == 86_400.5
    assert days_until(parse_utc("1970-01-03T12:00:00Z")) == pytest.approx(1.5, abs=1e-4)


def test_a_jump_is_reported_once_and_a_correction_never():
    wall, steady = [1000.0], [50.0]
    watch = ClockWatch(lambda: wall[0], lambda: steady[0])
    wall[0], steady[0] = 1010.0, 60.0
    assert watch.jump() == 0.0
    wall[0] -= 2.0  # a correction
    assert watch.jump() == 0.0
    wall[0] += 3600.0
    assert watch.jump() == pytest.approx(3598.0)
    assert watch.jump() == 0.0

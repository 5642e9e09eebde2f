"""The process ends at every step on an update's way to disk and of a round's end; nothing is lost or counted twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("failpoints.py")


STEPS = {"write", "fsync", "rename", "fsync of the folder", "statement", "commit", "reply"}


def check_all_points(folder: Path, *options: str) -> tuple[dict[str, int], int]:
    """Count of each step in a run, and of the points that were tried."""
    command = [sys.executable, str(PROGRAM), str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    calm, *points = map(json.loads, done.stdout.splitlines())
    assert calm["code"] == 0
    assert set(calm["steps"]) == STEPS
    for found in points:
        assert found["code"] == 77, found  # or the point was never reached
        assert (found["model"], found["rows"], found["left"]) == (calm["model"], ["a", "b"], []), found
        for silo in found["answered"]:  # who had a receipt gets the same one again
            assert found["verdicts"].get(silo, "duplicate") == "duplicate", found
    assert {"accepted", "duplicate"} <= {found["verdicts"].get("a") for found in points}
    return calm["steps"], len(points)


def test_a_crash_at_any_step_leads_to_the_same_model(tmp_path):
    """Before and after the first write, fsync, rename, fsync of the folder, statement, commit and reply."""
    assert check_all_points(tmp_path)[1] == 14


@pytest.mark.soak
def test_a_crash_at_every_single_point_leads_to_the_same_model(tmp_path):
    """Every point of two updates and the round's end."""
    steps, tried = check_all_points(tmp_path, "every")
    assert tried == 2 * sum(steps.values())

"""Drift: new clips are held against those trained on, in few looks whose levels add up."""

from __future__ import annotations

import numpy as np
import pytest
from flamest.agent.cli.daemon import _status_lines
from flamest.agent.drift import DRIFT_FILE, LEVEL, Drift, DriftWatch, look_for_drift
from flamest.agent.extraction.store import FeatureRow, FeatureStore
from flamest.agent.settings import load_agent_settings
from flamest.agent.status import AgentStatus, StatusNotes, read_status
from flamest.agent.training.trained_clips import note_trained
from flamest.base.errors import DataError
from flamest.runtime.clip_records import Clip

WIDTH = 6


def add_clips(path, numbers, *, shift=0.0, clips=4):
    """Add clips of these numbers, so many to a group; without a label, as new clips often are."""
    random = np.random.default_rng(next(iter(numbers)))
    rows = []
    for number in numbers:
        if number % clips == 0:
            centre = random.normal(size=WIDTH) + shift
        x = (centre + 0.2 * random.normal(size=WIDTH)).astype(np.float32)
        clip = Clip(path.parent / f"{number}.mp4", f"{number:064x}", None, f"scene{number // clips}")
        rows.append((f"{number}.mp4", FeatureRow(clip, x, 2, "f", "fp32")))
    with FeatureStore.open(path) as store:
        store.add_rows(rows)


@pytest.fixture
def trained(tmp_path):
    """A store of 80 clips, of which 60 were trained on."""
    path = tmp_path / "features.sqlite"
    add_clips(path, range(80))
    note_training(tmp_path)
    return path


def note_training(state, run="r", settings="s1", clips=80):
    every = [f"{number:064x}" for number in range(clips)]
    note_trained(state, run, settings, every[: 3 * clips // 4], fingerprint="f", stored=every)


def look(path):
    return look_for_drift(path, None, path.parent)


def test_clips_that_were_there_at_the_training_are_not_new(trained):
    assert look(trained) == Drift(run="r")
    add_clips(trained, range(80, 90))
    assert look(trained) == Drift(run="r", new=10)  # too few to look at


def test_other_clips_are_found_once_and_that_stays_until_the_next_training(trained):
    add_clips(trained, range(80, 120), shift=3.0)
    found = look(trained)
    assert (found.new, found.clips, found.groups, found.looks) == (40, 40, 10, 1)
    assert found.found
    assert found.p <= found.level == LEVEL / 2
    add_clips(trained, range(120, 200))
    later = look(trained)
    assert (later.found, later.clips, later.new) == (found.found, 40, 120)
    note_training(trained.parent, settings="s2", clips=200)
    assert look(trained) == Drift(run="r")


def test_like_clips_are_looked_at_seldom_and_at_ever_smaller_levels(trained):
    looked = []
    for start in range(80, 400, 20):
        add_clips(trained, range(start, start + 20))
        looked.append(look(trained))
    assert not any(each.found for each in looked)
    assert [each.looks for each in looked[1::2][:4]] == [1, 2, 2, 3]  # 40 clips, 40 more, 80 more
    assert looked[-1].level == LEVEL / (looked[-1].looks * (looked[-1].looks + 1))
    assert sum(LEVEL / (k * (k + 1)) for k in range(1, 1000)) < LEVEL


def test_clips_of_few_groups_are_not_looked_at(trained):
    with FeatureStore.open(trained) as store:
        rows = []
        for number in range(80, 160):
            clip = Clip(trained.parent / f"{number}.mp4", f"{number:064x}", None, f"one{number % 7}")
            rows.append((f"{number}.mp4", FeatureRow(clip, np.full(WIDTH, 9, np.float32), 2, "f", "fp32")))
        store.add_rows(rows)
    assert look(trained) == Drift(run="r", new=80)


@pytest.mark.parametrize("content", [b"", b"{", b'{"settings": 1}', b"\xff", b"[" * 100000])
def test_a_damaged_file_begins_anew(trained, content):
    add_clips(trained, range(80, 120), shift=3.0)
    (trained.parent / DRIFT_FILE).write_bytes(content)
    assert look(trained).looks == 1


def test_without_a_training_there_is_nothing_to_hold_them_against(tmp_path):
    path = tmp_path / "features.sqlite"
    add_clips(path, range(40))
    assert look(path) == Drift()
    note_trained(tmp_path, "r", "s", ["0" * 64])  # as an earlier version has noted it
    assert look(path) == Drift()


class CountingWorker:
    def __init__(self, error=None):
        self.calls, self.error = 0, error

    def call(self, function, *arguments):
        self.calls += 1
        if self.error is not None:
            raise self.error
        return function(*arguments)


def test_the_watch_looks_when_the_store_has_changed_and_says_so(trained, caplog):
    notes = StatusNotes(trained.parent, AgentStatus())
    watch, worker = DriftWatch(trained, None, trained.parent, 0.0), CountingWorker()
    watch.look_if_due(worker, notes)
    watch.look_if_due(worker, notes)
    assert worker.calls == 1
    add_clips(trained, range(80, 120), shift=3.0)
    watch.look_if_due(worker, notes)
    assert worker.calls == 2
    status = read_status(trained.parent)
    assert status.drift["found"]
    lines = "\n".join(_status_lines(status, settings_of(trained.parent), trained.parent, alive=True))
    assert "NEW CLIPS ARE UNLIKE those that run 'r' was trained on: 40 clips of 10 groups" in lines
    assert "camera, light" in lines
    assert [record.fields["clips"] for record in caplog.records if record.getMessage() == "drift"] == [40]


def test_a_failure_is_logged_and_does_not_end_the_daemon(trained, caplog):
    notes = StatusNotes(trained.parent, AgentStatus())
    watch = DriftWatch(trained, None, trained.parent, 0.0)
    watch.look_if_due(CountingWorker(DataError("secret.mp4 is damaged", code="store_damaged")), notes)
    assert notes.status.drift == {}
    [record] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert (record.getMessage(), record.fields) == ("drift_not_looked_for", {"code": "store_damaged"})
    watch.look_if_due(CountingWorker(), notes)
    assert notes.status.drift["run"] == "r"


def test_few_new_clips_are_counted_in_the_status(trained):
    text = Drift(run="r", new=10).text
    assert text == "new clips since the training of run 'r': 10; from 32 of 8 groups on they are compared"
    assert Drift(run="r").text == ""
    assert "not unlike those trained on (p = 0.4)" in Drift(run="r", new=40, looks=1, p=0.4).text


def settings_of(folder):
    from flamest.agent.settings import TEMPLATE

    (folder / "agent.toml").write_text(TEMPLATE.format(key="silo.key"))
    return load_agent_settings(folder / "agent.toml")

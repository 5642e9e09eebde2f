"""Clips that a run has trained on prove nothing for its models later, wherever the split puts them."""

from __future__ import annotations

import msgspec
import numpy as np
from flamest.agent.training.dataset import FeatureTable, SideRows, SiloData
from flamest.agent.training.trained_clips import TRAINED_CLIPS, note_trained, trained_clips


def test_clips_of_all_rounds_of_a_run_add_up(tmp_path):
    note_trained(tmp_path, "r", "s1", ["b", "a"])
    note_trained(tmp_path, "r", "s1", ["c"])
    assert trained_clips(tmp_path, "r", "s1") == {"a", "b", "c"}
    assert trained_clips(tmp_path, "r") == {"a", "b", "c"}
    assert (trained_clips(tmp_path, "other"), trained_clips(tmp_path, "r", "s2")) == (frozenset(), frozenset())


def test_another_run_forgets_those_of_the_one_before(tmp_path):
    note_trained(tmp_path, "r", "s1", ["a"])
    note_trained(tmp_path, "r", "s2", ["b"])
    assert trained_clips(tmp_path, "r") == {"b"}


def test_the_file_is_written_only_when_clips_are_new(tmp_path):
    note_trained(tmp_path, "r", "s", ["a", "b"])
    before = (tmp_path / TRAINED_CLIPS).stat().st_ino
    note_trained(tmp_path, "r", "s", ["b"])
    assert (tmp_path / TRAINED_CLIPS).stat().st_ino == before


def test_a_damaged_file_is_as_none_and_written_again(tmp_path):
    assert trained_clips(tmp_path, "r") == frozenset()
    for text in (b"{", b"[]", b'{"run": 3}', b"\xff"):
        (tmp_path / TRAINED_CLIPS).write_bytes(text)
        assert trained_clips(tmp_path, "r") == frozenset()
    note_trained(tmp_path, "r", "s", [])
    assert msgspec.json.decode((tmp_path / TRAINED_CLIPS).read_bytes())["clips"] == []


def test_a_group_with_one_trained_clip_is_left_out_whole():
    rows = SideRows((4, 5, 6, 7), ("g", "h", "g", "i"), ("c4", "c5", "c6", "c7"))
    held_out = FeatureTable(np.arange(4, dtype=np.float32)[:, None], np.arange(4))
    data = SiloData(held_out.rows(np.empty(0, np.int64)), held_out, 0, SideRows(), rows)
    left = data.untrained({"c6", "elsewhere"})
    assert left.held_out_rows == SideRows((5, 7), ("h", "i"), ("c5", "c7"))
    assert left.held_out.y.tolist() == [1, 3]
    assert data.untrained(()) is data

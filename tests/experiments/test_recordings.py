"""Splits of clips that are segments of recordings."""

from __future__ import annotations

import random

import numpy as np
import pytest
from flamest.agent.training.shared_frames import Extent, joined_groups
from flamest.base.errors import DataError
from flamest.experiments.partition import dirichlet, iid
from flamest.experiments.recordings import (
    shared_recordings,
    silo_units,
    smallest_share,
    split_units,
)
from flamest.runtime.clip_records import Segment


def part(recording: str, start: float, end: float) -> Extent:
    return Extent(recording, Segment.of_seconds(start, end))


def overlap(first: Extent, second: Extent) -> bool:
    """Two clips share a frame, said in the plainest way."""
    if first.recording != second.recording:
        return False
    if first.segment is None or second.segment is None:
        return True
    return first.segment.start_us < second.segment.end_us and second.segment.start_us < first.segment.end_us


def test_groups_that_share_frames_have_one_name():
    extents = [part("a", 0, 4), part("a", 3, 6), part("a", 6, 9), part("b", 0, 4)]
    assert joined_groups(["w", "v", "u", "t"], extents) == ("v", "v", "u", "t")  # 6 is the end of one, start of another


def test_a_whole_file_shares_frames_with_each_segment_of_it():
    extents = [part("a", 90, 99), Extent("a"), part("b", 0, 1)]
    assert joined_groups(["2", "1", "3"], extents) == ("1", "1", "3")


def test_whole_files_keep_groups_and_are_units_of_their_own():
    extents = [Extent("a"), Extent("b"), Extent("a")]  # a store of two folders may have one path twice
    assert joined_groups(["1", "2", "3"], extents) == ("1", "2", "3")
    assert silo_units(["1", "1", "1"], extents).tolist() == [0, 1, 2]


def test_a_group_joins_across_recordings():
    extents = [part("a", 0, 2), part("a", 1, 3), part("b", 0, 2), part("b", 1, 3)]
    assert joined_groups(["x", "y", "y", "z"], extents) == ("x", "x", "x", "x")


def test_no_frame_is_in_two_groups_of_random_clips():
    draw = random.Random(0)
    for _ in range(200):
        extents, groups = [], []
        for _ in range(draw.randint(2, 14)):
            start = draw.randint(0, 20)
            whole = draw.random() < 0.1
            name = draw.choice("abc")
            extents.append(Extent(name) if whole else part(name, start, start + draw.randint(1, 6)))
            groups.append(draw.choice("pqrst"))
        joined = joined_groups(groups, extents)
        segmented = {clip.recording for clip in extents if clip.segment}
        for row, first in enumerate(extents):
            for other, second in enumerate(extents):
                if overlap(first, second) and first.recording in segmented:
                    assert joined[row] == joined[other]
                if groups[row] == groups[other]:
                    assert joined[row] == joined[other]


def test_a_recording_is_one_unit_unless_groups_divide_it():
    extents = [part("a", 0, 1), part("b", 0, 1), part("a", 1, 2), part("b", 1, 2), Extent("c")]
    assert silo_units(["a", "b", "a", "b", "c"], extents).tolist() == [0, 1, 0, 1, 2]
    assert silo_units(["p", "p", "q", "p", "p"], extents).tolist() == [0, 1, 2, 1, 3]


def test_units_of_one_clip_are_split_as_rows_are():
    y = np.arange(60) % 3
    split = lambda y: dirichlet(y, silos=3, seed=1, smallest=smallest_share(len(y), 60, 3))  # noqa: E731
    made, plain = split_units(np.arange(60), y, split), split(y)
    assert all(np.array_equal(a, b) for a, b in zip(made.silos, plain.silos, strict=True))


def test_silos_get_whole_units_and_all_rows():
    units = np.repeat(np.arange(12), 5)
    y = np.tile(np.arange(5), 12)
    made = split_units(units, y, lambda y: iid(len(y), silos=3, seed=0))
    assert sorted(np.concatenate(made.silos).tolist()) == list(range(60))
    assert not made.unused
    owners = [set(units[rows].tolist()) for rows in made.silos]
    assert all(not a & b for place, a in enumerate(owners) for b in owners[:place])


def test_too_few_recordings_are_named_with_a_way_out():
    with pytest.raises(DataError, match="the 6 clips are of 2 recordings") as raised:
        split_units(np.repeat([0, 1], 3), np.zeros(6, np.int64), lambda y: iid(len(y), silos=3, seed=0))
    assert "column group" in raised.value.fix


def test_recordings_with_segments_on_both_sides_are_counted():
    extents = [part("a", 0, 1), part("a", 1, 2), part("b", 0, 1), Extent("c"), Extent("c")]
    assert shared_recordings(extents, np.array([0, 2, 3]), np.array([1, 4])) == 1

"""Identity and notation of a clip and of its segments."""

from __future__ import annotations

import hashlib

import pytest
from flamest.runtime.clip_records import Segment, clip_identity, seconds_text

FILE = hashlib.sha256(b"a video").hexdigest()


def test_a_whole_file_is_known_by_its_content():
    assert clip_identity(FILE, None) == FILE


def test_a_segments_identity_is_its_files_hash_with_start_and_end():
    expected = hashlib.sha256(f"segment:{FILE}:12500000:17000000".encode()).hexdigest()
    assert clip_identity(FILE, Segment.of_seconds(12.5, 17)) == expected
    others = {
        clip_identity(FILE, Segment(12_500_001, 17_000_000)),
        clip_identity("0" * 64, Segment.of_seconds(12.5, 17)),
    }
    assert expected not in others
    assert len(others) == 2


@pytest.mark.parametrize(
    ("microseconds", "text"), [(0, "0"), (12_500_000, "12.5"), (17_000_000, "17"), (100, "0.0001")]
)
def test_seconds_are_written_without_trailing_zeros(microseconds, text):
    assert seconds_text(microseconds) == text


def test_seconds_that_are_written_differently_are_one_segment():
    assert Segment.of_seconds(12.5, 17) == Segment.of_seconds(float("12.500000"), float("17.0"))
    assert str(Segment.of_seconds(12.5, 17)) == "t=12.5,17"

"""The segments of a file that cannot be read are given up after few of them."""

from pathlib import Path

import pytest
from flamest.base.errors import DataError
from flamest.runtime.clip_records import Clip, Segment
from flamest.runtime.video.unreadable_files import MOST_COSTLY, MOST_COSTLY_OF_READ, UnreadableFiles


def tried(outcomes, name="a.mp4"):
    """Number of a file's segments that are tried; the n-th ends with ``outcomes[n]``: a code, or ``""``."""
    files, count, refusals = UnreadableFiles(), 0, []
    for number, code in enumerate(outcomes):
        clip = Clip(Path(name), f"{number:064}", segment=Segment(number, number + 1), file_sha256="a" * 64)
        try:
            files.check(clip)
        except DataError as error:
            refusals.append(error)
            continue
        count += 1
        try:
            with files.noted(clip):
                if code:
                    raise DataError("failed", fix="", code=code)
        except DataError:
            pass
    assert all(error.code in outcomes and "not tried" in error.message for error in refusals)
    return count


@pytest.mark.parametrize("codes", [["video_timeout"], ["decoder_crashed"], ["video_timeout", "decoder_crashed"]])
def test_costly_segments_end_a_file_of_which_none_is_read(codes):
    assert tried(codes * 50) == MOST_COSTLY


@pytest.mark.parametrize("first", [1, 5])
def test_costly_segments_end_a_file_of_which_some_are_read(first):
    assert tried([""] * first + ["video_timeout"] * 100) == first + MOST_COSTLY_OF_READ
    assert tried(["", "video_timeout"] * 100) == 2 * MOST_COSTLY_OF_READ


def test_cheap_failures_end_no_file():
    assert tried(["segment_empty", "video_damaged"] * 20 + [""] * 20) == 60
